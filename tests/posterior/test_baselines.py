"""Classical reconstructions against dense algebra, sigpy, and each other on a wavelet-sparse phantom."""

from dataclasses import replace

import numpy as np
import pytest
import sigpy.mri
import torch
from torch import Tensor

from mrgen.physics.operators import sense
from mrgen.posterior.baselines import cg_sense, l1_wavelet, total_variation, zero_filled
from mrgen.scans.scan import Slice

COILS = 4


def birdcage(shape: tuple[int, int]) -> Tensor:
    maps = torch.as_tensor(sigpy.mri.birdcage_maps((COILS, *shape)))
    return (maps / maps.norm(dim=0)).to(torch.complex64)


def simulate(image: Tensor, mask: Tensor, sigma0: float) -> Slice:
    """A slice that measures `image` (y, x) at `mask` (kx,) with noise std sigma0."""
    maps = birdcage((image.shape[0], image.shape[1]))
    generator = torch.Generator().manual_seed(0)
    noise = sigma0 * torch.randn(maps.shape, dtype=torch.complex64, generator=generator)
    kspace = sense(maps, mask).forward(image.to(torch.complex64)) + mask * noise
    return Slice(kspace, mask, maps, sigma0, scale=1.0, reference=image.abs())


@pytest.fixture(scope="module")
def tiny() -> Slice:
    image = torch.randn(8, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    return simulate(image, torch.tensor([1.0, 0, 1, 1, 0, 1]), 0.05)


@pytest.fixture(scope="module")
def blocks() -> Slice:
    """64 x 60, R = 4 with 8 central lines; piecewise constant, so few of its wavelet coefficients matter."""
    image = torch.zeros(64, 60, dtype=torch.complex64)
    image[10:54, 8:52] = 0.6
    image[20:34, 14:30] = 1.0
    image[36:48, 30:46] = 0.2 + 0.3j
    image[16:20, 36:48] = 0.9j
    mask = torch.zeros(60)
    mask[torch.randperm(60, generator=torch.Generator().manual_seed(3))[:9]] = 1
    mask[26:34] = 1
    return simulate(image, mask, 0.01)


def error(image: Tensor, slice_: Slice) -> float:
    assert slice_.reference is not None
    return float((image.abs() - slice_.reference).norm() / slice_.reference.norm())


def test_zero_filled_is_the_adjoint(tiny: Slice) -> None:
    matrix = tiny.operator().dense()
    expected = (matrix.mH @ tiny.kspace.to(torch.complex128).flatten()).reshape(8, 6)
    torch.testing.assert_close(zero_filled(tiny).to(torch.complex128), expected, atol=1e-5, rtol=0)


def test_cg_sense_is_the_dense_solution(tiny: Slice) -> None:
    matrix, y = tiny.operator().dense(), tiny.kspace.to(torch.complex128).flatten()
    for regularisation in (0.01, 0.3):
        damped = matrix.mH @ matrix + regularisation * torch.eye(48)
        expected = torch.linalg.solve(damped, matrix.mH @ y).reshape(8, 6)
        found = cg_sense(tiny, regularisation, iterations=100)
        assert found.shape == (8, 6)
        torch.testing.assert_close(found.to(torch.complex128), expected, atol=1e-4, rtol=0)


def test_cg_sense_agrees_with_sigpy(blocks: Slice) -> None:
    app = sigpy.mri.app.SenseRecon(
        blocks.kspace.numpy(),
        blocks.maps.numpy(),
        lamda=0.02,
        weights=blocks.mask.expand(64, 60).numpy(),
        max_iter=30,
        show_pbar=False,
    )
    np.testing.assert_allclose(cg_sense(blocks, 0.02, 30).numpy(), app.run(), atol=2e-4)


def test_l1_wavelet_beats_cg_sense_on_a_sparse_phantom(blocks: Slice) -> None:
    l1 = min(error(l1_wavelet(blocks, lam, 60), blocks) for lam in (0.001, 0.003, 0.01))
    sense_ = min(error(cg_sense(blocks, lam, 30), blocks) for lam in (0.001, 0.003, 0.01, 0.03))
    assert l1 < 0.85 * sense_ < sense_ < error(zero_filled(blocks), blocks)


def test_l1_wavelet_is_a_minimum_of_its_objective(blocks: Slice) -> None:
    # lambda acts on 1/2 ||A x - y||^2 + lambda ||W x||_1 in the units of the slice.
    lam = 0.01
    wavelet = sigpy.linop.Wavelet((64, 60), wave_name="db4")

    def objective(image: Tensor) -> float:
        residual = blocks.operator().forward(image) - blocks.kspace
        return float(residual.norm() ** 2 / 2) + lam * float(np.abs(wavelet(image.numpy())).sum())

    best = l1_wavelet(blocks, lam, 300)
    assert objective(best) < objective(l1_wavelet(blocks, lam / 1.5, 300))
    assert objective(best) < objective(l1_wavelet(blocks, lam * 1.5, 300))
    assert objective(best) < min(objective(scale * best) for scale in (0.98, 1.02))


def test_l1_wavelet_without_regularisation_fits_the_data(tiny: Slice) -> None:
    found = l1_wavelet(tiny, 0.0, 2000)
    assert found.dtype == torch.complex64
    gradient = tiny.operator().adjoint(tiny.operator().forward(found) - tiny.kspace)
    assert float(gradient.abs().max()) < 1e-4


def test_l1_wavelet_is_reproducible_and_takes_the_mask_from_the_slice(blocks: Slice) -> None:
    once = l1_wavelet(blocks, 0.003, 10)
    assert torch.equal(once, l1_wavelet(blocks, 0.003, 10))
    # A sampled line that happens to be zero is data; the estimate by zeros would drop it.
    silent = Slice(blocks.kspace.clone(), blocks.mask, blocks.maps, 0.01, 1.0, None)
    line = int(torch.nonzero(blocks.mask)[0])
    silent.kspace[:, :, line] = 0
    kept = silent.operator().forward(l1_wavelet(silent, 1e-4, 60))[..., line].norm()
    unsampled = torch.ones_like(blocks.mask)
    unsampled[line] = 0
    dropped = Slice(silent.kspace, blocks.mask * unsampled, blocks.maps, 0.01, 1.0, None)
    free = silent.operator().forward(l1_wavelet(dropped, 1e-4, 60))[..., line].norm()
    assert float(kept) < 0.5 * float(free)


def test_inputs_are_left_alone(blocks: Slice) -> None:
    before = blocks.kspace.clone()
    for method in (cg_sense, l1_wavelet):
        method(blocks, 0.01, 3)
    zero_filled(blocks)
    assert torch.equal(blocks.kspace, before)


def test_total_variation_is_what_another_solver_finds(tiny: Slice) -> None:
    lam, weights = 0.1, tiny.mask.expand(8, 6).numpy()
    app = sigpy.mri.app.TotalVariationRecon(
        tiny.kspace.numpy(),
        tiny.maps.numpy(),
        lam,
        weights=weights,
        solver="ADMM",
        rho=0.1,
        max_iter=80,
        max_cg_iter=10,
        show_pbar=False,
    )
    found = total_variation(tiny, lam, 400)
    np.testing.assert_allclose(found.numpy(), app.run(), atol=2e-3)
    differences = sigpy.linop.FiniteDifference((8, 6))

    def objective(image: Tensor) -> float:
        residual = tiny.operator().forward(image) - tiny.kspace
        return float(residual.norm() ** 2 / 2) + lam * float(np.abs(differences(image.numpy())).sum())

    others = [total_variation(tiny, lam * factor, 400) for factor in (0.7, 1.4)]
    assert objective(found) < min(objective(x) for x in [*others, 0.98 * found, 1.02 * found])


def test_nothing_is_where_no_coil_has_a_map(blocks: Slice) -> None:
    blind = torch.zeros(64, 60, dtype=torch.bool)
    blind[:, :14] = True
    slice_ = replace(blocks, maps=blocks.maps * ~blind)
    for method in (l1_wavelet, total_variation, cg_sense):
        image = method(slice_, 0.01, 20)
        assert (image[blind] == 0).all()
        assert (image[~blind] != 0).float().mean() > 0.9


@pytest.mark.parametrize("sets", [1, 2])
def test_l1_wavelet_takes_the_steps_of_sigpy(blocks: Slice, sets: int) -> None:
    maps = blocks.maps if sets == 1 else torch.stack([blocks.maps, blocks.maps.flip(0)]) / 2**0.5
    slice_ = replace(blocks, maps=maps, sets=sets)
    arrays = maps.reshape(sets, COILS, 64, 60).numpy()
    linop = sigpy.linop
    images = linop.Reshape((sets, 1, 64, 60), (sets, 64, 60))
    coils = linop.Sum((sets, COILS, 64, 60), axes=(0,)) * linop.Multiply(images.oshape, arrays)
    model = linop.Multiply((COILS, 64, 60), blocks.mask.expand(64, 60).numpy()) * linop.FFT(
        (COILS, 64, 60), axes=(-2, -1)
    )
    wavelet = linop.Wavelet((sets, 64, 60), axes=(-2, -1), wave_name="db4")
    sparse = sigpy.prox.UnitaryTransform(sigpy.prox.L1Reg(wavelet.oshape, 0.01), wavelet)
    app = sigpy.app.LinearLeastSquares(
        model * coils * images, blocks.kspace.numpy(), max_iter=7, proxg=sparse, alpha=1.0, show_pbar=False
    )
    expected = app.run().reshape(slice_.support.shape)
    np.testing.assert_allclose(l1_wavelet(slice_, 0.01, 7).numpy(), expected, atol=1e-5)
