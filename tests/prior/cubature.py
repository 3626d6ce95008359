"""Expectations of an objective without Monte Carlo.

For a linear denoiser an objective is quadratic in its d real Gaussian numbers, so its mean over the 2 d points
+- sqrt(d) e_i is its expectation exactly (spherical cubature, degree 3). Its probe b enters as b^H Q b + b^H R b*: the
n columns of a Fourier matrix, each once times 1 and once times i, have the mean of b b^H = I and of b b^T = 0.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mrgen.physics.operators import sense
from mrgen.prior import objectives
from mrgen.prior.denoiser import Denoise
from mrgen.prior.objectives import OBJECTIVES, MeasuredBatch
from mrgen.settings import Training

SHAPE = (4, 5)
N = SHAPE[0] * SHAPE[1]
DTYPE = torch.complex128


class Points:
    """Cubature points in the place of noise: `take` hands out the next numbers of each point."""

    def __init__(self, numbers: int) -> None:
        self.d, self.used = 2 * numbers, 0
        points = math.sqrt(self.d / 2) * torch.cat([torch.eye(self.d), -torch.eye(self.d)]).double()
        self.values = torch.view_as_complex(points.reshape(2 * self.d, numbers, 2))

    def take(self, shape: tuple[int, ...], repeats: int) -> Tensor:
        """CN(0, 1) numbers (repeats * points, *shape)."""
        count = math.prod(shape)
        part = self.values[:, self.used : self.used + count]
        assert part.shape[1] == count
        self.used += count
        return part.repeat(repeats, 1).reshape(-1, *shape)


def expectation(
    training: Training,
    denoise: Denoise,
    *,
    sigma0: float,
    sigma_t: float,
    maps: Tensor,
    mask: Tensor,
    weights: Tensor,
    image: Tensor | None = None,
    power: float = 0.0,
    stays: Tensor | None = None,
    coils: Tensor | None = None,
) -> float:
    """E of the objective over all its noise, and over images CN(0, power) where no `image` is given.

    `maps` (coil, y, x), `mask`, `weights` and `stays` (kx,); `stays` are the lines that `ambient` keeps, `coils` is the
    virtual coil of the Fourier basis.
    """
    count = len(maps)
    points = Points(2 * count * N + 3 * N)
    size = len(points.values)
    probes = 2 * (N if training.basis == "fourier" else count * N)
    repeats = math.lcm(size, probes) // size
    total = size * repeats
    assert total <= 40_000

    if image is None:
        image = math.sqrt(power) * points.take(SHAPE, repeats)
    maps_, mask_ = maps.expand(total, *maps.shape), mask.expand(total, 1, 1, -1).double()
    y = sense(maps_, mask_).forward(image.expand(total, *SHAPE))
    y = y + sigma0 * mask_ * points.take(tuple(maps.shape), repeats)
    batch = MeasuredBatch(
        y, mask_, maps_, weights.expand(total, 1, 1, -1).double(), torch.full((total,), sigma0, dtype=torch.float64)
    )

    def noise(like: Tensor, generator: torch.Generator) -> Tensor:
        if like.ndim == 2:  # the virtual coil
            return torch.ones_like(like) if coils is None else coils.expand_as(like)
        return points.take(tuple(like.shape[1:]), repeats)

    def probe(like: Tensor, generator: torch.Generator) -> Tensor:
        n = math.prod(like.shape[1:])
        k = torch.arange(n, dtype=torch.float64)
        columns = torch.exp(2j * torch.pi * k[:, None] * k / n)
        both = torch.cat([columns, 1j * columns])
        return both.repeat(len(like) // len(both), 1).reshape(like.shape)

    def kept(like: Tensor, generator: torch.Generator) -> Tensor:
        if like.ndim == 1:  # whether an item has its trace
            return torch.zeros_like(like)
        assert stays is not None
        return torch.where(stays > 0, 0.0, 1.0).expand_as(like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "complex_noise", noise)
        patch.setattr(objectives, "unit_phase", probe)
        patch.setattr(objectives, "uniform", kept)
        if objectives.DIVERGENCE_RANGE > 0:
            patch.setattr(objectives, "DIVERGENCE_RANGE", 1e9)  # every item has its trace
        level = torch.full((total,), sigma_t, dtype=torch.float64)
        values = OBJECTIVES[training.objective](denoise, batch, level, torch.Generator(), training)
    return float(values.mean())
