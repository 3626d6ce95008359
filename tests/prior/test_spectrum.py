"""Averages over rings: against numpy, point by point, for one slice and for several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mrgen.prior.spectrum import Rings, ring_position

SHAPE = (20, 32)


def lines(*sampled: int) -> Tensor:
    mask = torch.zeros(SHAPE[1])
    mask[list(sampled)] = 1
    return mask


def by_numpy(mask: Tensor, values: Tensor, least: float) -> Tensor:
    """The averages (ky, kx) over the points of `mask` (ky, kx), with numpy's own interpolation."""
    position = ring_position(SHAPE).numpy()
    ring, sampled = np.round(position), mask.numpy() > 0
    known = np.unique(ring[sampled])
    means = [max(values.numpy()[sampled & (ring == b)].mean(), least) for b in known]
    return torch.from_numpy(np.exp(np.interp(position, known, np.log(means)))).float()


MASKS = [lines(*range(0, 32, 3), 15, 16, 17), lines(1, 2, 3, 9), lines(*range(32))]  # the second without a centre


@pytest.mark.parametrize("mask", [*MASKS, (torch.arange(640).reshape(SHAPE) % 7 == 0).float()])
def test_averages_are_those_of_the_points_of_each_ring(mask: Tensor) -> None:
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) + 0.5
    expected, rings = by_numpy(mask.expand(SHAPE), values, 0.1), Rings(mask, SHAPE)
    torch.testing.assert_close(rings.average(values, 0.1), expected)
    if mask.ndim == 1:
        torch.testing.assert_close(rings.average(values[:, mask > 0], 0.1), expected)


def test_slices_have_averages_of_their_own() -> None:
    values = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(1)) + 0.5
    together = Rings(torch.stack(MASKS)[:, None], SHAPE).average(values, torch.tensor(0.1))
    alone = [Rings(mask, SHAPE).average(values[:, i], 0.1) for i, mask in enumerate(MASKS)]
    torch.testing.assert_close(together, torch.stack(alone, dim=1))
