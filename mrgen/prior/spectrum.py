"""The power of images in k-space, from undersampled noisy data: E[sum_c |y_c|^2] - coils sigma0^2, over rings of |k|.

Rings are elliptical where the matrix is not square, as |k| is relative to the Nyquist frequency of each axis, and finer
near the centre: ring b of `BINS` lies about |k| = (b / (BINS - 1))^2, and the last one takes the corners too. So a
profile over rings means the same on every matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrgen.physics.fourier import grid
from mrgen.scans.scan import Slice

BINS = 24


def ring_position(shape: tuple[int, int]) -> Tensor:
    """Where each point of k-space (ky, kx) lies between the rings, 0 to BINS - 1."""
    y, x = grid(shape)
    return (y.square() + x.square()).sqrt().clamp_max(1).sqrt().mul(BINS - 1)


def spread_rings(profile: Tensor, rings: Tensor, position: Tensor) -> Tensor:
    """`profile` (..., ring), positive, of rising `rings` (ring,), at `position` (ky, kx): linear in its logarithm."""
    return _between(profile.log(), *_neighbours(rings, position)).exp()


def _neighbours(rings: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Of each point the index of the ring before it, and how far on the way to the next one it lies, 0 to 1."""
    left = (torch.searchsorted(rings, position.floor().long(), right=True) - 1).clamp(0, len(rings) - 2)
    start, stop = rings[left], rings[left + 1]
    return left, ((position - start) / (stop - start)).clamp(0, 1)


def _between(profile: Tensor, left: Tensor, t: Tensor) -> Tensor:
    return torch.lerp(profile[..., left], profile[..., left + 1], t)


class Rings:
    """Averages of what is known at the sampled points of k-space over rings of equal |k|, spread to all points."""

    def __init__(self, mask: Tensor, shape: tuple[int, int], weights: Tensor | None = None) -> None:
        """`mask` and `weights`, which points have in an average (without them, all count 1), broadcast to `shape`.

        Or to (slice, *shape), for values (..., slice, ky, kx) of slices that are sampled at points of their own.
        """
        position, sampled = ring_position(shape).to(mask.device), mask.expand(*mask.shape[:-2], *shape) > 0
        self.shape, points = shape, sampled.reshape(-1, *shape).any(0)  # of any slice
        self.points = points.flatten().nonzero().flatten()
        ring = position.round().long()[points]
        members = [(ring == b).nonzero().flatten() for b in range(BINS)]
        # of each ring the numbers of its points, filled up with that of a zero behind them: sums of rows, unlike
        # index_add, are the same each time on a GPU
        self.members = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=len(ring))
        weights = torch.ones_like(mask, dtype=position.dtype) if weights is None else weights
        self.weights = (weights * sampled)[..., points]
        self.count = self.total(torch.ones(shape, device=mask.device))
        rings, self.known = torch.arange(BINS, device=mask.device), self.count > 0
        # rings without a point lie between those known before and after them
        before = torch.where(self.known, rings, -1).cummax(-1).values
        after = torch.where(self.known, rings, BINS).flip(-1).cummin(-1).values.flip(-1)
        self.before, self.after = torch.where(before < 0, after, before), torch.where(after == BINS, before, after)
        self.way = (rings - self.before) / (self.after - self.before).clamp_min(1)
        self.neighbours = _neighbours(rings, position)

    def total(self, values: Tensor) -> Tensor:
        """Weighted sums of values (..., ky, kx) or (..., ky, line) over the rings' sampled points, (..., BINS)."""
        whole, values = values.shape[-2:] == self.shape, values.flatten(-2)
        terms = self.weights * (values[..., self.points] if whole else values).to(self.weights)
        return torch.nn.functional.pad(terms, (0, 1))[..., self.members].sum(-1)

    def average(self, values: Tensor, least: float | Tensor) -> Tensor:
        """Ring means of values as for `total`, not below `least`, interpolated linearly in their logarithm."""
        means = (self.total(values) / self.count).clamp_min(least).log()
        before, after = (means.gather(-1, ring.expand_as(means)) for ring in (self.before, self.after))
        return _between(torch.lerp(before, after, self.way), *self.neighbours).exp()


def excess_power(kspace: Tensor, sigma0: float | Tensor, coils: int | Tensor | None = None) -> Tensor:
    """sum_c |k_c|^2 less its noise, coils sigma0^2, (..., ky, kx), of k-space (..., coil, ky, kx).

    `coils` are those with noise, without them all.
    """
    coils = kspace.shape[-3] if coils is None else coils
    return torch.view_as_real(kspace).square().sum((-4, -1)) - coils * sigma0**2


def power_spectrum(slice_: Slice) -> Tensor:
    """Radial power spectrum P (ky, kx) of the image in k-space, from the sampled points of this slice alone.

    No lower than sigma0^2 / 100.
    """
    rings = Rings(slice_.mask, (slice_.kspace.shape[-2], slice_.kspace.shape[-1]))
    return rings.average(excess_power(slice_.kspace, slice_.sigma0), slice_.sigma0**2 / 100)
