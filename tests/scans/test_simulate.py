"""Simulated k-space: coils and noise do what their docstrings say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.physics.noise import covariance, whiten, whitening_matrix
from mrgen.scans import simulate
from mrgen.scans.prepare import noise_covariance, prepare_slice
from mrgen.scans.simulate import noise_factor, receive_maps, simulate_kspace, smooth_phase, tissue_phase, uniform


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(shape: tuple[int, int]) -> Tensor:
    """A few ellipses, the largest reaching 3/4 of the field of view."""
    y, x = grid(shape)
    image = 0.4 * ((y / 0.75) ** 2 + (x / 0.7) ** 2 < 1).float()
    image += 0.4 * (((y + 0.2) / 0.2) ** 2 + ((x - 0.1) / 0.3) ** 2 < 1)
    return image + 0.2 * (((y - 0.3) / 0.1) ** 2 + ((x + 0.2) / 0.15) ** 2 < 1)


def steepness(maps: Tensor) -> float:
    """Largest change between neighbouring pixels inside the head, relative to the coil's largest value there."""
    y, x = grid((maps.shape[-2], maps.shape[-1]))
    inside = y**2 + x**2 < 0.85**2
    largest = (maps.abs() * inside).amax((-2, -1), keepdim=True)
    step = (maps[:, 1:, 1:] - maps[:, :-1, 1:]).abs() + (maps[:, 1:, 1:] - maps[:, 1:, :-1]).abs()
    return float((step * inside[1:, 1:] / largest).max())


@pytest.mark.parametrize("seed", range(4))
def test_receive_maps_are_smooth_and_finite(seed: int) -> None:
    coarse, fine = (receive_maps((n, n), 8, rng(seed)) for n in (64, 256))
    assert torch.isfinite(torch.view_as_real(fine)).all()
    assert fine.dtype == torch.complex64
    assert fine.abs().amin((-2, -1)).max() >= 0
    assert steepness(fine) < 0.15
    # four times finer, four times smaller steps: there are no jumps, in the phase neither
    assert steepness(fine) == pytest.approx(steepness(coarse) / 4, rel=0.25)
    torch.testing.assert_close(fine[:, ::4, ::4], coarse)  # the field, not the matrix, says where coils are


def test_receive_maps_are_a_function_of_the_seed() -> None:
    maps = receive_maps((32, 24), 6, rng(1))
    assert maps.shape == (6, 32, 24)
    assert torch.equal(maps, receive_maps((32, 24), 6, rng(1)))
    other = receive_maps((32, 24), 6, rng(2))
    likeness = (maps.conj() * other).sum((-2, -1)).abs() / (maps.norm(dim=(-2, -1)) * other.norm(dim=(-2, -1)))
    assert likeness.max() < 0.99


def test_kspace_without_noise_is_the_forward_model_exactly() -> None:
    shape, coils, image = (48, 40), 4, head((48, 40))
    noisy, clean, scan = simulate_kspace(image, coils, 0.0, rng(3))
    assert torch.equal(noisy, clean)
    assert scan.abs().max() == 0
    g = rng(3)
    maps, phase = receive_maps(shape, coils, g), smooth_phase(shape, g)
    phase = phase + tissue_phase(image, uniform(-0.12, 0.12, g))
    coil_images = maps * image * torch.exp(1j * phase)
    rss = coil_images.abs().square().sum(0).sqrt()
    torch.testing.assert_close(clean, fft2c(coil_images / rss.flatten().quantile(0.99)))
    assert torch.equal(simulate_kspace(image, coils, 0.3, rng(3))[1], clean)
    found = ifft2c(clean).abs().square().sum(0).sqrt().flatten()
    assert float(found.quantile(0.99)) == pytest.approx(1, abs=1e-4)


def test_tissue_phase_has_its_strength_and_follows_detail_only() -> None:
    image = head((96, 80))
    phase = tissue_phase(image, 0.1)
    inside = functional.avg_pool2d(image[None, None], 17, 1, 8)[0, 0] > 0.15
    assert float(phase[inside].std()) == pytest.approx(0.1, rel=0.1)
    assert phase[:4].abs().max() == 0
    y, x = grid((96, 80))
    flat = (y**2 + x**2 < 0.25) & (image == image[48, 40])  # no edge near: no phase
    assert phase[flat].abs().median() < 0.05
    torch.testing.assert_close(tissue_phase(image, -0.05), -0.5 * phase)


def speck() -> Tensor:
    """One bright pixel among noise: the 99th percentile, to which sigma relates, would be the noise's."""
    image = 1e-4 * torch.rand(32, 32, generator=rng())
    image[16, 16] = 1
    return image


@pytest.mark.parametrize("image", [torch.zeros(32, 32), torch.full((32, 32), float("nan")), speck()])
def test_an_image_without_signal_is_refused(image: Tensor) -> None:
    with pytest.raises(ValueError, match="empty or not finite"):
        simulate_kspace(image, 2, 0.1, rng())


def test_noise_has_its_std_and_the_covariance_of_the_noise_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: list[Tensor] = []

    def spy(coils: int, generator: torch.Generator) -> Tensor:
        factors.append(noise_factor(coils, generator))
        return factors[-1]

    monkeypatch.setattr(simulate, "noise_factor", spy)
    noisy, clean, scan = simulate_kspace(head((256, 256)), 3, 0.02, rng(4))
    noise = (noisy - clean).flatten(1)
    true = 0.02**2 * factors[0] @ factors[0].mH
    loudness = true.diagonal().real.sqrt()
    unit = loudness[:, None] * loudness
    # standard errors of an entry: 0.4 % from the 65,536 samples of the image, 1.6 % from the 4,096 of the scan
    assert ((covariance(noise) - true).abs() / unit).max() < 0.015
    assert ((covariance(scan) - true).abs() / unit).max() < 0.06
    torch.testing.assert_close(scan.abs().square().mean(1).sqrt(), loudness, rtol=0.03, atol=0)
    assert (noise @ noise.mT / noise.shape[1] / unit).abs().max() < 0.02  # circular
    assert (true - torch.diag(true.diagonal())).abs().max() > 0.05 * 0.02**2  # and correlated

    monkeypatch.setattr(simulate, "noise_factor", lambda coils, generator: torch.eye(coils) + 0j)
    noisy, clean, _ = simulate_kspace(head((256, 256)), 3, 0.02, rng(4))
    assert float((noisy - clean).abs().square().mean().sqrt()) == pytest.approx(0.02, rel=0.01)


def test_noise_of_the_average_coil_is_1() -> None:
    for coils in (1, 2, 8, 32):
        factors = torch.stack([noise_factor(coils, rng(s)) for s in range(50)])
        variance = factors.abs().square().sum(-1)  # (draw, coil), the diagonal of L L^H
        torch.testing.assert_close(variance.mean(1), torch.ones(50))
    assert 0.15 < float(variance.sqrt().std()) < 0.3  # gains differ by about 20 %
    assert float(variance.sqrt().min()) > 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_prepared_simulation_has_white_noise_of_sigma0_within_3_percent(seed: int) -> None:
    noisy, clean, _ = simulate_kspace(head((256, 224)), 6, 0.03, rng(seed))
    mask = torch.zeros(224)
    mask[::3] = 1
    mask[100:124] = 1
    prepared = prepare_slice(noisy, None, undersample=mask, keep_reference=False)
    whitener = whitening_matrix(noise_covariance(noisy, None)[0])
    scale = prepared.sigma0  # 1 / p: the factor from whitened to scaled k-space
    residual = (prepared.kspace - scale * whiten(clean, whitener) * mask)[..., mask.bool()].flatten(1)
    assert float(residual.abs().square().mean().sqrt()) == pytest.approx(prepared.sigma0, rel=0.03)
    white = covariance(residual) / prepared.sigma0**2
    # the corners give 4 x 16 x 14 samples: a standard error of 3.3 % for each entry
    assert (white - torch.eye(6)).abs().max() < 0.15
