"""What zeros in k-space mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrgen.scans.pattern import contiguous, edges, follows, measured_points, sampling_mask_of, uncentred_axis


def noise(coils: int = 2, shape: tuple[int, int] = (40, 30), seed: int = 0) -> torch.Tensor:
    return torch.randn(coils, *shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def mask_of(kspace: torch.Tensor) -> torch.Tensor | None:
    return sampling_mask_of(measured_points(kspace))


def test_runs_and_edges():
    assert contiguous(torch.tensor([0, 1, 1, 0]).bool())
    assert not contiguous(torch.tensor([1, 0, 1]).bool())
    assert not contiguous(torch.zeros(3).bool())
    assert edges(torch.tensor([0, 0, 1, 0, 1, 0]).bool()) == (2, 1)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (5, 0), (0, 9), (3, 4)])
@pytest.mark.parametrize("rows", [0, 6])
def test_zeros_at_edges_are_no_undersampling(left, right, rows):
    kspace = noise()
    kspace[..., :left] = 0
    kspace[..., 30 - right :] = 0
    kspace[:, :rows] = 0
    assert mask_of(kspace) is None
    assert edges(measured_points(kspace).any(0)) == (left, right)


def test_missing_lines_are_a_mask_of_lines_even_with_a_few_zeros_and_an_asymmetric_echo():
    lines = torch.arange(30) % 3 == 1
    kspace = noise() * lines
    kspace[:, :4] = 0
    kspace[:, 7:9, 13] = 0
    assert torch.equal(mask_of(kspace), lines.float())
    one_coil = noise()
    one_coil[0] *= torch.rand(40, 30) < 0.3  # a coil with zeros of its own: the other one measured the points
    assert mask_of(one_coil) is None


@pytest.mark.parametrize(("share", "found"), [(0.04, False), (0.08, True)])
def test_five_percent_of_zeros_make_a_pattern(share, found):
    order = torch.rand(1200, generator=torch.Generator().manual_seed(1)).argsort().reshape(40, 30)
    points = order >= share * 1200
    mask = mask_of(noise() * points)
    assert torch.equal(mask, points.float()) if found else mask is None


def test_corners_left_out_and_missing_rows_are_masks_of_points():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 30), indexing="ij")
    for points in (y**2 + x**2 < 1, (torch.arange(40) % 2 == 0)[:, None].expand(40, 30)):
        assert torch.equal(mask_of(noise() * points), points.float())


def test_follows_wants_the_same_lines_nothing_beside_and_few_holes():
    lines = torch.arange(30) % 3 == 1
    points = measured_points(noise() * lines)
    other = noise(seed=1) * lines
    assert follows(other, points)
    other[:, 3, 4] = 0
    assert follows(other, points)
    beside, missing, broken = other.clone(), other.clone(), other.clone()
    beside[0, 3, 5] = 1
    missing[..., 4] = 0
    broken[:, 30:] = 0
    assert not any(follows(k, points) for k in (beside, missing, broken))
    corners = points.clone()
    corners[:10] = False
    assert follows(other * corners, corners)
    assert not follows(other, corners)  # the same lines, but more of them


@pytest.mark.parametrize("shape", [(40, 30), (31, 33), (16, 16)])
def test_the_centre_at_index_0_is_noticed(shape):
    y, x = torch.meshgrid(*[torch.arange(n) - n // 2 for n in shape], indexing="ij")
    centred = noise(shape=shape) * 0.01 + 10 / (1 + y**2 + x**2)
    assert uncentred_axis(centred) is None
    assert uncentred_axis(centred.roll((2, -2), (-2, -1))) is None
    assert uncentred_axis(torch.fft.ifftshift(centred, dim=(-2, -1))) == 0
    assert uncentred_axis(torch.fft.ifftshift(centred, dim=-1)) == 1
    assert uncentred_axis(noise(shape=shape)) is None
    centre = (y.abs() < 4) | (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.1)
    assert uncentred_axis(centred * centre) is None
    outer = x.abs() >= shape[1] // 4
    assert uncentred_axis(noise(shape=shape) * outer) is None  # no centre to compare with


def test_a_poisson_disc_scan_is_centred(scans):
    kspace = torch.from_numpy(np.load(scans / "brain_poisson2d_R8_8ch_230x180.npz", allow_pickle=False)["kspace"])
    assert uncentred_axis(kspace) is None
    assert uncentred_axis(torch.fft.ifftshift(kspace, dim=(-2, -1))) == 0
    mask = mask_of(kspace)
    assert mask.shape == (230, 180)
    assert float(mask.mean()) == pytest.approx(0.124, abs=0.001)
    assert bool(mask[115 - 12 : 115 + 12, 90 - 12 : 90 + 12].all())
    peak = int(kspace.abs().square().sum(0).argmax())
    assert abs(peak // 180 - 115) <= 1
    assert abs(peak % 180 - 90) <= 1
