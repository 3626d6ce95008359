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
    return _between(profile, *_neighbours(rings, position))


def _neighbours(rings: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Of each point the index of the ring before it, and how far on the way to the next one it lies, 0 to 1."""
    left = (torch.searchsorted(rings, position.floor().long(), right=True) - 1).clamp(0, len(rings) - 2)
    start, stop = rings[left], rings[left + 1]
    return left, ((position - start) / (stop - start)).clamp(0, 1)


def _between(profile: Tensor, left: Tensor, t: Tensor) -> Tensor:
    logarithm = profile.log()
    between: Tensor = torch.lerp(logarithm[..., left], logarithm[..., left + 1], t).exp()
    return between


class Rings:
    """Averages of what is known at the sampled points of k-space over rings of equal |k|, spread to all points."""

    def __init__(self, mask: Tensor, shape: tuple[int, int], weights: Tensor | None = None) -> None:
        """`mask` and `weights`, which points have in an average (without them, all count 1), broadcast to `shape`."""
        self.position = ring_position(shape).to(mask.device)
        self.sampled = mask.expand(shape) > 0
        ring = self.position.round().long()[self.sampled]
        members = [(ring == b).nonzero().flatten() for b in range(BINS)]
        # of each ring the numbers of its points, filled up with that of a zero behind them: sums of rows, unlike
        # index_add, are the same each time on a GPU
        self.members = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=len(ring))
        weights = torch.ones_like(mask, dtype=self.position.dtype) if weights is None else weights
        self.weights = weights.expand(shape)[self.sampled]
        self.count = self.total(torch.ones(shape, device=mask.device))
        self.known = (self.count > 0).nonzero().flatten()
        self.count_known, self.neighbours = self.count[self.known], _neighbours(self.known, self.position)

    def total(self, values: Tensor) -> Tensor:
        """Weighted sums of values (..., ky, kx) or (..., ky, line) over the rings' sampled points, (..., BINS)."""
        whole = values.shape[-2:] == self.position.shape
        terms = self.weights * (values[..., self.sampled] if whole else values.flatten(-2)).to(self.weights)
        return torch.nn.functional.pad(terms, (0, 1))[..., self.members].sum(-1)

    def average(self, values: Tensor, least: float | Tensor) -> Tensor:
        """Ring means of values as for `total`, not below `least`, interpolated linearly in their logarithm."""
        means = self.total(values)[..., self.known] / self.count_known
        return _between(means.clamp_min(least), *self.neighbours)


def excess_power(kspace: Tensor, sigma0: float) -> Tensor:
    """sum_c |k_c|^2 less its noise, coils sigma0^2, (..., ky, kx), of k-space (..., coil, ky, kx)."""
    return torch.view_as_real(kspace).square().sum((-4, -1)) - kspace.shape[-3] * sigma0**2


def power_spectrum(slice_: Slice) -> Tensor:
    """Radial power spectrum P (ky, kx) of the image in k-space, from the sampled points of this slice alone.

    No lower than sigma0^2 / 100.
    """
    rings = Rings(slice_.mask, (slice_.kspace.shape[-2], slice_.kspace.shape[-1]))
    return rings.average(excess_power(slice_.kspace, slice_.sigma0), slice_.sigma0**2 / 100)
