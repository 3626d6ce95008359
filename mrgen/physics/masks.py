"""Sampling masks, in the definitions of the fastMRI package where it has them.

A mask is a float tensor of 0 and 1: (n,) for lines along the phase-encode axis, (ky, kx) for points where both axes are
phase-encoded. `center_fraction` of all samples, around the middle, are always kept (the autocalibration region, ACS).
R counts everything kept, R = all / kept, but for `magic`. With n_centre = round(n * center_fraction):

- `random`: every other line with probability (n / R - n_centre) / (n - n_centre).
- `equispaced`: every a-th line from a random offset, a adjusted so that the total stays near n / R:
  a = R (n_centre - n) / (n_centre R - n), the fastMRI "fraction" variant.
- `equispaced-any-offset`: the same spacing from an offset uniform over one whole spacing, so that every line outside
  the centre is sampled with probability 1/a. fastMRI's round(a) integer offsets leave some lines out in every scan
  when a is not an integer, and what no scan samples cannot be learned: train with this one.
- `magic` (Defazio, arXiv 1912.01101): every R-th line, on the negative side two further out or in than on the positive
  one. Where y(-k) is close to the conjugate of y(k), the mirrored lines fill the gaps. R, an integer, is the spacing
  here, and the centre comes on top. With an even R no even line outside the centre is ever sampled.
- `poisson-disc`: points no closer than a distance that grows with |k| (sigpy.mri.poisson), corners left out.

`sampling_probability` is E[mask] under the pattern's own randomness, the P of the GSURE weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PATTERNS = ("random", "equispaced", "equispaced-any-offset", "magic", "poisson-disc")
_POISSON_TOLERANCE = 0.03  # relative error of R
_POISSON_ATTEMPTS = 20


def fastmri_rng(filename: str, seed: int = 0, slice_index: int = 0) -> np.random.RandomState:
    """The random numbers of a file's mask, for `sampling_mask`.

    seed = slice_index = 0 is what fastMRI's evaluation uses for a file of that name (without folder, with extension),
    for all its slices: RandomState(tuple(map(ord, filename))). Any other pair of integers does the same with the text
    "filename:seed:slice_index".
    """
    text = filename if seed == slice_index == 0 else f"{filename}:{seed}:{slice_index}"
    return np.random.RandomState([ord(character) for character in text])


def centre_lines(n: int, center_fraction: float) -> slice:
    """The fully sampled lines around the middle, placed as fastMRI places them."""
    count = round(n * center_fraction)
    first = (n - count + 1) // 2
    return slice(first, first + count)


def adjusted_spacing(n: int, acceleration: float, center_fraction: float) -> float:
    """Spacing of the equispaced lines that makes centre and lines together n / R lines."""
    count = round(n * center_fraction)
    if acceleration * count >= n:
        raise ValueError(
            f"a centre of {count} of {n} lines alone exceeds 1/R = 1/{acceleration:g}: lower the centre fraction or R"
        )
    return acceleration * (count - n) / (count * acceleration - n)


def _random_rate(n: int, acceleration: float, center_fraction: float) -> float:
    adjusted_spacing(n, acceleration, center_fraction)  # refuses what the centre alone exceeds
    count = round(n * center_fraction)
    return (n / acceleration - count) / (n - count)


def _equispaced_offsets(n: int, acceleration: float, center_fraction: float) -> NDArray[np.bool_]:
    """The lines outside the centre at each offset, (offset, n)."""
    spacing = adjusted_spacing(n, acceleration, center_fraction)
    masks = np.zeros((round(spacing), n), bool)
    for offset, mask in enumerate(masks):
        mask[np.arange(offset, n - 1, spacing).round().astype(int)] = True
    return masks


def _magic_offsets(n: int, acceleration: float) -> NDArray[np.bool_]:
    """The lines outside the centre at each offset, (offset, n): |k| = first, first + R, ... on either side."""
    if acceleration != int(acceleration):
        raise ValueError(f"R is the spacing of the lines in a magic mask, an integer: not {acceleration:g}")
    offset, k = np.arange(int(acceleration))[:, None], np.arange(n) - n // 2
    positive = np.where(offset % 2 == 0, offset + 1, offset + 2)
    negative = np.where(offset % 2 == 0, offset + 3, offset)
    beyond = abs(k) - np.where(k >= 0, positive, negative)
    masks: NDArray[np.bool_] = (beyond >= 0) & (beyond % int(acceleration) == 0)
    return masks


def _offsets(pattern: str, n: int, acceleration: float, center_fraction: float) -> NDArray[np.bool_]:
    if pattern == "magic":
        return _magic_offsets(n, acceleration)
    return _equispaced_offsets(n, acceleration, center_fraction)


def _any_offset(n: int, spacing: float, rng: np.random.RandomState) -> NDArray[np.bool_]:
    first = spacing * rng.uniform() - 0.5
    mask = np.zeros(n, bool)
    mask[np.arange(first, n - 0.5, spacing).round().astype(int).clip(0, n - 1)] = True
    return mask


def _poisson_disc(
    shape: tuple[int, int], acceleration: float, center_fraction: float, rng: np.random.RandomState
) -> NDArray[np.bool_]:
    """Points (ky, kx); the calibration rectangle has about `center_fraction` of all, in sides of even length."""
    from sigpy.mri import poisson  # compiles with numba, which takes seconds

    calibration = tuple(2 * round(n * math.sqrt(center_fraction) / 2) for n in shape)
    if acceleration < 2 or acceleration * math.prod(calibration) >= math.prod(shape):
        raise ValueError(
            f"a Poisson-disc mask with a centre of {calibration[0]} x {calibration[1]} of {shape[0]} x {shape[1]} "
            f"points cannot reach R = {acceleration:g}: R is at least 2, and below 1 / centre fraction"
        )
    for _ in range(_POISSON_ATTEMPTS):  # sigpy fails where its first point happens to fall inside the calibration
        seed = rng.randint(2**31)
        try:
            mask = poisson(shape, acceleration, calibration, bool, seed=seed, tol=_POISSON_TOLERANCE * acceleration)
        except ValueError:
            continue
        return np.asarray(mask)
    raise ValueError(f"found no Poisson-disc mask of {shape[0]} x {shape[1]} with R = {acceleration:g}: lower the R")


def _check(pattern: str, acceleration: float) -> None:
    if pattern not in PATTERNS:
        raise ValueError(f"unknown mask pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    if not 1 <= acceleration < math.inf:
        raise ValueError(f"R must be at least 1, not {acceleration:g}")


def sampling_mask(
    pattern: str,
    n: int,
    acceleration: float,
    center_fraction: float,
    rng: np.random.RandomState,
    rows: int | None = None,
) -> Tensor:
    """One mask: (n,), or (rows, n) for `poisson-disc`, which alone needs `rows`.

    The stream of a RandomState is frozen by NumPy, and each pattern draws from it in a fixed order, `random`,
    `equispaced` and `magic` in fastMRI's: the same `rng` gives the same mask in every version, and that of fastMRI's
    RandomMaskFunc, EquispacedMaskFractionFunc and MagicMaskFunc with one pair of centre fraction and R. With several
    pairs these first choose one by `rng.randint(number of pairs)`, which for a single pair takes nothing from the
    stream. A `poisson-disc` mask stays the same only with the same sigpy and numba.

    R = 1 keeps everything. Raises ValueError for an unknown pattern or an R that cannot be.
    """
    _check(pattern, acceleration)
    if pattern == "poisson-disc":
        if rows is None:
            raise ValueError("a poisson-disc mask is drawn in two phase-encode directions: give the rows too")
        if acceleration == 1:
            return torch.ones(rows, n)
        return torch.from_numpy(_poisson_disc((rows, n), acceleration, center_fraction, rng)).float()
    if acceleration == 1:
        return torch.ones(n)
    if pattern == "random":
        mask = rng.uniform(size=n) < _random_rate(n, acceleration, center_fraction)
    elif pattern == "equispaced-any-offset":
        mask = _any_offset(n, adjusted_spacing(n, acceleration, center_fraction), rng)
    else:
        masks = _offsets(pattern, n, acceleration, center_fraction)
        mask = masks[rng.randint(0, high=len(masks))]
    mask[centre_lines(n, center_fraction)] = True
    return torch.from_numpy(mask).float()


def sampling_probability(pattern: str, n: int, acceleration: float, center_fraction: float) -> Tensor:
    """Pr(line is sampled), (n,), exact over the pattern's random choices; for `magic` with an even R it is, outside the
    centre, 2 / R for odd |k| > 1, 1 / R for |k| = 1 and 0 for even k, k = line - n // 2.

    Raises ValueError as `sampling_mask` does, and for `poisson-disc`, of which no closed form is known.
    """
    _check(pattern, acceleration)
    if pattern == "poisson-disc":
        raise ValueError(
            "how likely a Poisson-disc mask samples a point has no closed form, so GSURE has no weights for it: train "
            "with a pattern of lines; a prior trained with any reconstructs Poisson-disc scans"
        )
    if acceleration == 1:
        return torch.ones(n)
    if pattern == "random":
        probability = torch.full((n,), _random_rate(n, acceleration, center_fraction))
    elif pattern == "equispaced-any-offset":
        probability = torch.full((n,), 1 / adjusted_spacing(n, acceleration, center_fraction))
    else:
        probability = torch.from_numpy(_offsets(pattern, n, acceleration, center_fraction)).float().mean(0)
    probability[centre_lines(n, center_fraction)] = 1.0
    return probability


def acs_lines(mask: Tensor) -> slice:
    """The contiguous sampled lines of `mask` (n,) that hold the centre line n // 2; they need not be symmetric.

    An empty slice where the centre line itself is missing.
    """
    n = mask.shape[-1]
    sampled = mask.bool().tolist()
    low = high = n // 2
    if not sampled[low]:
        return slice(n // 2, n // 2)
    while low > 0 and sampled[low - 1]:
        low -= 1
    while high < n - 1 and sampled[high + 1]:
        high += 1
    return slice(low, high + 1)


def acs_region(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the largest fully sampled rectangle of `mask` (ky, kx) that holds the centre (ky//2, kx//2).

    Largest by its shorter side, then by its area: the shorter side is what limits coil calibration, and a full central
    row (a mask of spokes has one) would beat a square by area. Empty slices where the centre itself is missing.
    """
    y, x = (n // 2 for n in mask.shape)
    sampled = mask.long().cpu()
    if not sampled[y, x]:
        return slice(y, y), slice(x, x)

    def narrowest(run: Tensor) -> Tensor:
        """(i, j): the shortest run of the rows from i above the centre to j below it."""
        above, below = run[: y + 1].flip(0).cummin(0).values, run[y:].cummin(0).values
        return torch.minimum(above[:, None], below)

    # columns sampled in a row from the centre column on, that one included, to the left and to the right
    left, right = (narrowest(half.cumprod(1).sum(1)) for half in (sampled[:, : x + 1].flip(1), sampled[:, x:]))
    width = left + right - 1
    height = torch.arange(len(left))[:, None] + torch.arange(left.shape[1]) + 1
    rank = torch.where(width > 0, torch.minimum(height, width) * mask.numel() + height * width, 0)
    above, below = divmod(int(rank.argmax()), rank.shape[1])
    return slice(y - above, y + below + 1), slice(x + 1 - int(left[above, below]), x + int(right[above, below]))


def achieved_acceleration(mask: Tensor, zero_filled: int = 0) -> float:
    """Samples in all over samples kept, of a mask (n,) or (ky, kx).

    `zero_filled` of the lines, all 0 in the mask, do not count: they were never to be measured.
    """
    kept = float(mask.sum())
    lines = mask.shape[-1]
    return math.inf if kept == 0 else mask.numel() // lines * (lines - zero_filled) / kept
