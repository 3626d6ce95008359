"""Coils of a measured scan: found in a simulated one, whose coils and noise are known."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, grid
from mrgen.physics.noise import covariance
from mrgen.scans.coils import fit_cosines, measured_coils
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.simulate import noise_factor, ring, smooth_phase

MEASURED = Path(__file__).parents[2].parent / "shared/data/scans/brain_vfa_fa05_13ch_224x224.h5"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unlike(a: Tensor, b: Tensor) -> Tensor:
    """1 - |cos| of the angle between coil vectors (coil, y, x), for every pixel."""
    return 1 - (a.conj() * b).sum(0).abs() / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-12)


def body(shape: tuple[int, int], size: float) -> Tensor:
    y, x = grid(shape)
    return ((y / size) ** 2 + (x / size) ** 2 < 1).float()


def test_maps_and_noise_of_a_scan_are_found(tmp_path: Path) -> None:
    shape, coils = (96, 80), 6
    loops, factor = ring(coils, rng(1)), noise_factor(coils, rng(2))
    image = body(shape, 0.7) * (1 + 0.3 * torch.sin(9 * grid(shape)[0]))
    clean = fft2c(loops.maps(shape) * image * torch.exp(1j * smooth_phase(shape, rng(3))))
    level = float((loops.maps(shape).norm(dim=0) * image).max())
    white = torch.randn(coils, *shape, dtype=torch.complex64, generator=rng(4))
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = (clean + 0.01 * level * torch.einsum("dc,cyx->dyx", factor, white))[None].numpy()

    maps, found = measured_coils(open_fastmri(tmp_path / "scan.h5"))
    assert float(found.abs().square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    whitened = torch.linalg.solve(factor, found)  # unitary, where L L^H is the same
    assert (whitened @ whitened.mH - torch.eye(coils)).abs().max() < 0.25  # 4 x 6 x 5 corner samples: 9 % each

    for matrix in ((96, 80), (128, 64), (61, 75)):  # the field of view stays, whatever the matrix
        error = unlike(maps(matrix, 0.0), loops.maps(matrix))
        assert error[body(matrix, 0.62) > 0].max() < 2e-3
        assert error[body(matrix, 0.8) > 0].max() < 0.05  # and they go on smoothly outside
    assert torch.equal(maps((96, 80), 0.0), maps((96, 80), 0.7))


def test_cosines_go_on_smoothly_where_nothing_is_known() -> None:
    shape = (64, 64)
    maps = ring(4, rng(1)).maps(shape)
    maps = maps / maps.norm(dim=0)
    known = body(shape, 0.5)
    spoilt = torch.where(known > 0, maps, torch.randn(maps.shape, dtype=torch.complex64, generator=rng(2)))
    found = fit_cosines(spoilt, known)
    t_y, t_x = ((torch.arange(64).double() / 64)[:, None], (torch.arange(64).double() / 64)[None])
    series = sum(
        found[:, p, q, None, None] * torch.cos(math.pi * p * t_y) * torch.cos(math.pi * q * t_x)
        for p in range(found.shape[1])
        for q in range(found.shape[2])
    )
    assert unlike(series, maps)[known > 0].max() < 1e-4
    assert unlike(series, maps)[body(shape, 0.7) > 0].max() < 0.03
    step = torch.maximum(series.diff(dim=1).norm(dim=0).max(), series.diff(dim=2).norm(dim=0).max())
    assert step < 0.2


@pytest.mark.skipif(not MEASURED.is_file(), reason=f"no {MEASURED.name} in the data folder beside the repository")
def test_coils_of_a_measured_head() -> None:
    maps, factor = measured_coils(open_fastmri(MEASURED))
    assert factor.shape == (13, 13)
    seen = maps((180, 160), 0.0)
    assert seen.shape == (13, 180, 160)
    white = torch.einsum("dc,cyx->dyx", torch.linalg.inv(factor), seen)
    norm = white.norm(dim=0)
    assert float(norm.max() / norm.min()) < 1.001  # of unit norm once whitened, up to a factor
    step = torch.maximum(white.diff(dim=1).norm(dim=0).max(), white.diff(dim=2).norm(dim=0).max()) / norm.max()
    assert step < 0.12
    noise = torch.randn(13, 4000, dtype=torch.complex64, generator=rng())
    assert float(covariance(factor @ noise).diagonal().real.mean()) == pytest.approx(1, rel=0.05)
