"""Which points of k-space were measured, told from the zeros.

A point is measured where any coil is not exactly zero. Zeros mean one of four things:

    columns or rows at the edges       zero-filling by the scanner, partial Fourier, asymmetric echo
    other whole columns (lines)        undersampling along the phase encodes, mask (kx,)
    anything else                      undersampling in both directions, mask (ky, kx)
    up to 5 % of the measured box      chance: receivers quantise, and a sample may be zero
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHANCE = 0.05  # share of points within sampled lines that may be zero without being a pattern


def contiguous(measured: Tensor) -> bool:
    """Whether the true entries of `measured` (n,) form a single run."""
    where = torch.nonzero(measured).flatten()
    return len(where) > 0 and int(where[-1] - where[0]) + 1 == len(where)


def edges(measured: Tensor) -> tuple[int, int]:
    """False entries before the first and after the last true one of `measured` (n,)."""
    where = torch.nonzero(measured).flatten()
    return int(where[0]), len(measured) - 1 - int(where[-1])


def measured_points(kspace: Tensor) -> Tensor:
    """(ky, kx) bool, the points that k-space (coil, ky, kx) measured, chance zeros among them filled in."""
    points = (kspace != 0).any(0)
    rows, lines = points.any(1), points.any(0)
    box = rows[:, None] & lines
    holes = int((box & ~points).sum())
    return box if contiguous(rows) and holes <= _CHANCE * int(box.sum()) else points


def sampling_mask_of(points: Tensor) -> Tensor | None:
    """The mask of measured `points` (ky, kx): (kx,) for lines, (ky, kx), or None where only edges are missing."""
    rows, lines = points.any(1), points.any(0)
    if not contiguous(rows) or not torch.equal(points, rows[:, None] & lines):
        return points.float()
    return None if contiguous(lines) else lines.float()


def follows(kspace: Tensor, points: Tensor) -> bool:
    """Whether k-space (coil, ky, kx) fills the same lines as `points` (ky, kx), with few holes and nothing beside them.

    Few is twice the share of chance zeros, as slices differ.
    """
    found = (kspace != 0).any(0)
    holes = int((points & ~found).sum())
    return (
        torch.equal(found.any(0), points.any(0))
        and not bool((found & ~points).any())
        and holes <= 2 * _CHANCE * int(points.sum())
    )


def uncentred_axis(kspace: Tensor) -> int | None:
    """The axis (0 for ky, 1 for kx) along which k-space (coil, ky, kx) has its centre at index 0 instead of n // 2.

    Compares the mean energy of the points measured in the quarter of the indices around 0 with that around n // 2. A
    factor 4 decides, which noise, partial Fourier or an echo off the centre by n / 8 do not reach.
    """
    energy = kspace.abs().double().square().sum(0)
    for axis in (0, 1):
        n = energy.shape[axis]
        middle = slice(n // 2 - n // 8, n // 2 + n // 8 + 1)
        total, count = energy.sum(1 - axis), (energy > 0).sum(1 - axis)
        at_zero, at_middle = (
            total.roll(shift)[middle].sum() / count.roll(shift)[middle].sum() for shift in (n // 2, 0)
        )
        if at_zero > 4 * at_middle:  # false for NaN, where nothing was measured
            return axis
    return None
