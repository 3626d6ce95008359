"""What kind of sampling a mask is, told from the mask itself.

With the ACS (the fully sampled centre) left out, the lines of a mask are tested against a lattice,

    line_i = round(offset + i a),      0 <= offset < a,

whose every point between the outermost lines is sampled and that explains every line outside the ACS. Lines that fit
none are random. Points in two directions are a lattice where the pattern, shifted onto itself, comes to lie on itself;
else the number of points with a direct neighbour, over that expected of independent draws of the same local density,
tells random points (1) from points that keep apart as in a Poisson disc (0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mrgen.physics.masks import achieved_acceleration, acs_lines, acs_region
from mrgen.scans.pattern import edges

Lines = NDArray[np.int64]

_FEWEST = 5  # lines outside the ACS; fewer fit too many lattices
_ROUNDED = 0.75  # lines that a line may lie off the least-squares lattice: 0.5 of rounding, and the fit's own error
_DENSER = 2.0  # times as many lines in the inner half as in the outer one: variable density
_GAPS = 6  # mean gaps of random lines: an edge without lines that is wider is no chance (exp(-6) = 0.2 %)
_ON_ITSELF, _APART = 0.9, 0.5  # share of points on points for a lattice; ratio of neighbours for a Poisson disc
_SHIFTS = 12  # samples: the largest period of a lattice that is looked for


@dataclass(frozen=True)
class SamplingFound:
    """How k-space is sampled."""

    kind: str  # fully sampled, lines or points
    pattern: str  # in words
    acceleration: float  # lines (points) that are not zero-filled over those measured
    acceleration_all: float  # the same of all lines (points), as fastMRI counts
    acceleration_outside: float | None  # the same outside the ACS and within the measured extent
    acs: tuple[int, int]  # rows and columns of the fully sampled centre
    spacing: float | None  # a of equispaced lines
    offset: float | None  # of equispaced lines, 0 <= offset < spacing
    padding: tuple[int, int]  # empty lines at the left and right edge, zero-filled or partial Fourier
    partial_fourier: str | None  # the side that is missing, in words


def _partial_fourier(empty: tuple[int, int], n: int, gap: float) -> str | None:
    """Which edge is missing, where the empty edges differ by more lines than `gap`."""
    left, right = empty
    if abs(left - right) <= gap:
        return None
    side = "left" if left > right else "right"
    return f"{side} side missing, {n - max(left, right)} of {n} lines ({(n - max(left, right)) / n:.0%}) spanned"


def _fit(left: Lines, right: Lines, spacing: float, hop: int) -> tuple[float, float, float]:
    """Spacing and offset of the lattice nearest to the lines, and their largest deviation from it.

    `spacing` is a first guess that holds for a side, but not over the ACS between them: over it, `hop` steps more.
    """
    steps = [np.rint((side - side[:1]) / spacing) for side in (left, right)]
    if len(left) and len(right):
        steps[1] += steps[0][-1] + np.rint((right[0] - left[-1]) / spacing) + hop
    lines, step = np.concatenate([left, right]), np.concatenate(steps)
    a, offset = np.polyfit(step, lines, 1)
    deviation = np.abs(lines - offset - a * step).max()
    return round(float(a), 6), round(float(offset), 6), float(deviation)


def lattice(mask: Tensor, acs: slice) -> tuple[float, float] | None:
    """Spacing and offset (0 <= offset < spacing) of the equispaced lines outside the `acs` of `mask` (n,), or None."""
    sampled = mask.bool().numpy()
    lines = np.flatnonzero(sampled)
    lines = lines[(lines < acs.start) | (lines >= acs.stop)]
    if len(lines) < _FEWEST:
        return None
    left, right = lines[lines < acs.start], lines[lines >= acs.stop]
    side = max(left, right, key=len)
    mean_gap = (side[-1] - side[0]) / (len(side) - 1)
    a, offset, deviation = min((_fit(left, right, mean_gap, hop) for hop in (-1, 0, 1)), key=lambda f: f[2])
    if deviation > _ROUNDED or a < 1.2:
        return None
    steps = np.arange(np.rint((lines[0] - offset) / a), np.rint((lines[-1] - offset) / a) + 1)
    below, above = (round_(offset + a * steps).astype(int).clip(0, len(sampled) - 1) for round_ in (np.floor, np.ceil))
    return (a, round(offset % a, 6) % a) if bool((sampled[below] | sampled[above]).all()) else None


def _sides(mask: Tensor, acs: slice) -> float | None:
    """The spacing shared by both sides of the ACS where each is equispaced for itself only, else None."""
    left, right = (np.flatnonzero(part.numpy()) for part in (mask[: acs.start], mask[acs.stop :]))
    gaps = {*np.diff(left).tolist(), *np.diff(right).tolist()}
    if min(len(left), len(right)) < 2 or len(left) + len(right) < _FEWEST or len(gaps) > 1 or gaps == {1}:
        return None
    spacing = gaps.pop()
    return None if (acs.stop + right[0] - left[0]) % spacing == 0 else float(spacing)


def _lines(mask: Tensor, rows: int, padding: tuple[int, int]) -> SamplingFound:
    n, acs, empty = mask.numel(), acs_lines(mask), edges(mask.bool())
    lines = torch.nonzero(mask).flatten()
    outside = lines[(lines < acs.start) | (lines >= acs.stop)]
    extent = n - sum(padding) - (acs.stop - acs.start)
    spacing = offset = None
    gap = _GAPS * extent / max(1, len(outside))
    found, mirrored = lattice(mask, acs), _sides(mask, acs)
    if len(outside) < _FEWEST:
        pattern = f"{len(outside)} lines beside the centre, too few to tell a pattern"
    elif mirrored:
        gap = mirrored + 1
        pattern = f"equispaced, every {mirrored:.3g} lines, with an offset of its own on each side (as fastMRI's magic)"
    elif found:
        spacing, offset = found
        gap = spacing + 1
        pattern = f"equispaced, every {spacing:.3g} lines from {offset:.3g}"
    else:
        away = (outside - n // 2).abs().float()
        middle = (acs.stop - acs.start) / 4 + n / 4  # halfway from the edge of the ACS to that of k-space
        inner, outer = int((away <= middle).sum()), int((away > middle).sum())
        pattern = "random" + (", denser towards the centre" if inner > _DENSER * max(outer, 1) else "")
    return SamplingFound(
        kind="lines",
        pattern=pattern,
        acceleration=achieved_acceleration(mask, sum(padding)),
        acceleration_all=achieved_acceleration(mask),
        acceleration_outside=extent / len(outside) if len(outside) else None,
        acs=(rows, acs.stop - acs.start),
        spacing=spacing,
        offset=offset,
        padding=padding,
        partial_fourier=_partial_fourier(padding if padding != (0, 0) else empty, n, gap),
    )


def _overlap(points: Tensor, valid: Tensor, y: int, x: int) -> float:
    """Share of `points` (ky, kx) that lie on points when shifted by (y, x), x and y >= 0 or x < 0; outside `valid`."""
    n_y, n_x = points.shape
    here = slice(0, n_y - y), slice(max(0, -x), n_x - max(0, x))
    there = slice(y, n_y), slice(max(0, x), n_x - max(0, -x))
    both = valid[here] & valid[there]
    return float((points[here] & points[there] & both).sum() / (points[here] & both).sum().clamp_min(1))


def _points(mask: Tensor, padding: tuple[int, int]) -> SamplingFound:
    rows, columns = acs_region(mask)
    valid = torch.ones_like(mask, dtype=torch.bool)
    valid[rows, columns] = False
    points = mask.bool() & valid
    shifts = [(y, x) for y in range(_SHIFTS + 1) for x in range(-_SHIFTS, _SHIFTS + 1) if y > 0 or x > 0]
    share, shift = max((_overlap(points, valid, *s), s) for s in shifts)
    # independent draws: the neighbour to the right is sampled with the local density, that of 9 x 9 samples around
    box = torch.stack([points.float(), valid.float()])[:, None]
    near = functional.avg_pool2d(box, 9, 1, 4, count_include_pad=False)[:, 0]
    density = near[0] / near[1].clamp_min(1e-6)
    away = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in mask.shape), indexing="ij")).norm(dim=0)
    judged = valid & (away > 0.5)  # nearer the centre, discs may be smaller than a sample
    pairs = judged[:, :-1] & judged[:, 1:]
    expected = float((density[:, :-1] * density[:, 1:])[pairs].sum())
    found = float((points[:, :-1] & points[:, 1:])[pairs].sum())
    inner, outer = (points[valid & region].float().mean() for region in (away <= 0.5, (away > 0.5) & (away <= 1)))
    if share > _ON_ITSELF:
        pattern = f"lattice, repeating after {shift[0]} rows and {shift[1]} columns"
    elif found < _APART * expected:
        pattern = "points that keep apart (Poisson disc)"
    else:
        pattern = "random points"
    if share <= _ON_ITSELF and inner > _DENSER * outer:
        pattern += ", denser towards the centre"
    acs = rows.stop - rows.start, columns.stop - columns.start
    return SamplingFound(
        kind="points",
        pattern=pattern,
        acceleration=achieved_acceleration(mask, sum(padding)),
        acceleration_all=achieved_acceleration(mask),
        acceleration_outside=float(valid.sum() / points.sum()) if points.any() else None,
        acs=acs,
        spacing=None,
        offset=None,
        padding=edges(mask.any(0)),
        partial_fourier=_partial_fourier(edges(mask.any(0)), mask.shape[1], mask.shape[1] / 16),
    )


def acceleration_text(acceleration: float, of_all: float) -> str:
    """R of the lines that could be measured, and that of all lines where the scanner zero-filled some."""
    text = f"R = {acceleration:.2f}"
    return text if acceleration == of_all else f"{text}, {of_all:.2f} with the zero-filled lines"


def recognise(mask: Tensor | None, shape: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> SamplingFound:
    """The sampling of a `mask` (kx,) or (ky, kx) of k-space of `shape` (ky, kx); None is fully sampled.

    `padding` is the number of empty lines (left, right) that the scan knows of.
    """
    n_y, n_x = shape
    if mask is not None:
        return _lines(mask.cpu(), n_y, padding) if mask.ndim == 1 else _points(mask.cpu(), padding)
    measured = torch.zeros(n_x)
    measured[padding[0] : n_x - padding[1]] = 1
    return SamplingFound(
        kind="fully sampled",
        pattern="every line" if padding == (0, 0) else "every line between the empty edges",
        acceleration=1.0,
        acceleration_all=achieved_acceleration(measured),
        acceleration_outside=None,
        acs=(n_y, n_x - sum(padding)),
        spacing=None,
        offset=None,
        padding=padding,
        partial_fourier=_partial_fourier(padding, n_x, 2),
    )
