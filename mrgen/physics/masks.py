"""Sampling masks along the phase-encode axis, in the definitions of the fastMRI package.

A mask is a float tensor (n,) of 0 and 1. `center_fraction` of the lines, round(n * fraction), around the
middle are always kept (the autocalibration lines, ACS); R counts all lines: R = n / kept.

- `random`: every other line with probability (n / R - n_centre) / (n - n_centre).
- `equispaced`: every a-th line from a random offset, a adjusted so that the total stays near n / R:
  a = R (n_centre - n) / (n_centre R - n), the fastMRI "fraction" variant.
- `equispaced-any-offset`: the same spacing from an offset uniform over one whole spacing, so that every line outside
  the centre is sampled with probability 1/a. fastMRI's round(a) integer offsets leave some lines out in every scan
  when a is not an integer, and what no scan samples cannot be learned: train with this one.

`sampling_probability` is E[mask] under the pattern's own randomness, the P of the GSURE weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PATTERNS = ("random", "equispaced", "equispaced-any-offset")


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


def _equispaced(n: int, spacing: float, offset: int) -> Tensor:
    mask = torch.zeros(n)
    lines = torch.arange(offset, n - 1, spacing, dtype=torch.float64)
    mask[lines.round().long()] = 1.0
    return mask


def sampling_mask(
    pattern: str, n: int, acceleration: float, center_fraction: float, generator: torch.Generator
) -> Tensor:
    """One mask (n,), drawn with `generator`. Raises ValueError for an unknown pattern or an R that cannot be."""
    if acceleration < 1:
        raise ValueError(f"R must be at least 1, not {acceleration:g}")
    if acceleration == 1:
        return torch.ones(n)
    spacing = adjusted_spacing(n, acceleration, center_fraction)
    centre = centre_lines(n, center_fraction)
    if pattern == "random":
        mask = (torch.rand(n, generator=generator) < _random_rate(n, acceleration, center_fraction)).float()
    elif pattern == "equispaced":
        offset = int(torch.randint(0, round(spacing), (), generator=generator))
        mask = _equispaced(n, spacing, offset)
    elif pattern == "equispaced-any-offset":
        first = spacing * float(torch.rand((), generator=generator, dtype=torch.float64)) - 0.5
        mask = torch.zeros(n)
        mask[torch.arange(first, n - 0.5, spacing, dtype=torch.float64).round().long().clamp(0, n - 1)] = 1.0
    else:
        raise ValueError(f"unknown mask pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    mask[centre] = 1.0
    return mask


def _random_rate(n: int, acceleration: float, center_fraction: float) -> float:
    count = round(n * center_fraction)
    return (n / acceleration - count) / (n - count)


def sampling_probability(pattern: str, n: int, acceleration: float, center_fraction: float) -> Tensor:
    """Pr(line is sampled), (n,), exact over the pattern's random choices."""
    if acceleration == 1:
        return torch.ones(n)
    spacing = adjusted_spacing(n, acceleration, center_fraction)
    if pattern == "random":
        probability = torch.full((n,), _random_rate(n, acceleration, center_fraction))
    elif pattern == "equispaced":
        offsets = range(round(spacing))
        probability = torch.stack([_equispaced(n, spacing, o) for o in offsets]).mean(0)
    elif pattern == "equispaced-any-offset":
        probability = torch.full((n,), 1 / spacing)
    else:
        raise ValueError(f"unknown mask pattern {pattern!r}; there are {', '.join(PATTERNS)}")
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


def achieved_acceleration(mask: Tensor) -> float:
    """Lines in all over lines kept."""
    kept = float(mask.sum())
    return math.inf if kept == 0 else mask.numel() / kept
