"""Noise covariance and whitening on simulated receivers of known covariance."""

import pytest
import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c
from mrgen.physics.noise import (
    background_covariance,
    covariance,
    edge_covariance,
    readout_covariance,
    undersampled_covariance,
    whiten,
    whitening_matrix,
)

COILS = 4


def true_covariance() -> Tensor:
    """Correlated receivers of unequal strength, (coil, coil)."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(COILS) + 0.3 * torch.randn(COILS, COILS, dtype=torch.complex128, generator=generator)
    mixing = torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.complex128)) @ mixing
    return mixing @ mixing.mH


def noise(cov: Tensor, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Complex noise (coil, *shape) with E[n n^H] = cov."""
    white = torch.randn(COILS, *shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))
    return torch.einsum("dc,c...->d...", torch.linalg.cholesky(cov), white)


def head(n: int) -> Tensor:
    """A bright disc in the middle of the image, seen by every coil; (coil, n, n)."""
    axis = torch.linspace(-1, 1, n, dtype=torch.float64)
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 < 0.3).to(torch.complex128)
    return 50 * torch.stack([disc * torch.exp(1j * axis * c) for c in range(COILS)])


def error(found: Tensor, cov: Tensor) -> float:
    return float((found - cov).norm() / cov.norm())


def test_covariance_of_samples() -> None:
    cov = true_covariance()
    found = covariance(noise(cov, (40_000,)))
    assert error(found, cov) < 0.02
    assert error(found.conj(), cov) > 0.1, "the conjugate of the covariance would not pass"


def test_background_covariance_beside_a_head() -> None:
    cov = true_covariance()
    kspace = fft2c(head(384) + noise(cov, (384, 384)))
    found = background_covariance(kspace, fraction=1 / 5)
    assert error(found, cov) < 0.02
    whitened = whiten(kspace, whitening_matrix(found))
    sigma0 = background_covariance(whitened, fraction=1 / 5).diagonal().real.mean().sqrt()
    assert float(sigma0) == pytest.approx(1, rel=0.02)


def test_a_corner_with_signal_is_left_out() -> None:
    cov = true_covariance()
    images = noise(cov, (384, 384))
    images[:, :80, :80] += 20
    assert error(background_covariance(fft2c(images), fraction=1 / 5), cov) < 0.02
    corners = torch.cat([images[:, :76, :76].flatten(1), images[:, -76:, -76:].flatten(1)], dim=1)
    assert error(covariance(corners), cov) > 1, "with that corner the estimate is useless"


def test_edge_covariance_is_right_on_noise_and_an_upper_bound_on_signal() -> None:
    cov, mask = true_covariance(), torch.zeros(512)
    mask[::2] = 1
    mask[240:272] = 1
    kspace = noise(cov, (1024, 512)) * mask
    assert error(edge_covariance(kspace, mask), cov) < 0.03
    signal = fft2c(head(512)[:, :, :].repeat_interleave(2, dim=1)) * mask
    excess = edge_covariance(kspace + signal, mask) - cov
    assert float(excess.diagonal().real.min()) > -0.05 * float(cov.diagonal().real.max())


def test_whitening_gives_the_identity() -> None:
    cov = true_covariance()
    matrix = whitening_matrix(cov)
    eye = torch.eye(COILS, dtype=torch.complex128)
    torch.testing.assert_close(matrix @ cov @ matrix.mH, eye)
    samples = noise(cov, (200, 200))
    assert error(covariance(whiten(samples, matrix).flatten(1)), eye) < 0.02
    assert error(covariance(whiten(samples, matrix.conj()).flatten(1)), eye) > 0.1


def test_whiten_takes_leading_axes_and_single_precision() -> None:
    cov = true_covariance()
    matrix = whitening_matrix(cov.to(torch.complex64))
    assert matrix.dtype == torch.complex64
    slices = noise(cov, (3, 8, 6)).to(torch.complex64).movedim(1, 0)  # (slice, coil, ky, kx)
    together = whiten(slices, matrix)
    for i in range(3):
        torch.testing.assert_close(together[i], whiten(slices[i], matrix))


def test_a_dead_coil_stays_quiet() -> None:
    cov = true_covariance()
    cov[2, :] = cov[:, 2] = 0
    matrix = whitening_matrix(cov)
    assert torch.isfinite(torch.view_as_real(matrix)).all()
    live = [0, 1, 3]
    whitened = matrix @ cov @ matrix.mH
    torch.testing.assert_close(whitened[live][:, live], torch.eye(3, dtype=torch.complex128), atol=1e-4, rtol=0)
    assert float(whitened[2].abs().max()) < 1e-6


@pytest.mark.parametrize("bad", [torch.zeros(3, 3), torch.full((3, 3), torch.nan), torch.full((3, 3), torch.inf)])
def test_zero_and_broken_covariances_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match="zero or not finite"):
        whitening_matrix(bad.to(torch.complex64))


def test_edge_covariance_of_points_is_that_of_the_noise_far_out() -> None:
    generator = torch.Generator().manual_seed(11)
    mix = torch.tensor([[1.0, 0], [0.5, 2.0]]) + 0j
    noise = torch.einsum("dc,cyx->dyx", mix, torch.randn(2, 160, 128, dtype=torch.complex64, generator=generator))
    y, x = ((torch.arange(n) - n // 2) / (n / 2) for n in (160, 128))
    inner = ((y[:, None].square() + x.square()) < 0.5).float()
    mask = (torch.rand(160, 128, generator=generator) < 0.4).float()
    found = edge_covariance((noise + 1000 * inner) * mask, mask)
    expected = mix @ mix.mH
    assert float((found - expected).norm() / expected.norm()) < 0.1


@pytest.mark.parametrize("r", [4, 8])
def test_rows_beside_the_object_tell_the_noise_of_an_undersampled_scan(r: int) -> None:
    generator = torch.Generator().manual_seed(r)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 320), torch.linspace(-1, 1, 256), indexing="ij")
    image = ((y / 0.7) ** 2 + (x / 0.7) ** 2 < 1) * (1 + 0.5 * torch.cos(9 * x))
    maps = torch.stack(
        [torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 2 + 1j * b * y) for a, b in ((1, 0), (0, 1), (-1, 0))]
    )
    mix = torch.tensor([[1.0, 0, 0], [0.3, 1.5, 0], [0.2, 0.1, 0.8]]) + 0j
    noise = 0.02 * torch.einsum(
        "dc,cyx->dyx", mix, torch.randn(3, 320, 256, dtype=torch.complex64, generator=generator)
    )
    mask = (torch.arange(256) % r == 0).float()
    mask[118:138] = 1
    kspace = (fft2c(maps * image) + noise) * mask
    expected = 0.02**2 * mix @ mix.mH
    found, source = undersampled_covariance(kspace, mask)
    assert source == "readout beside the object"
    whitener = whitening_matrix(found)
    power = (whitener @ expected @ whitener.mH).diagonal().real.mean()
    assert float(power) == pytest.approx(1, abs=0.05)
    assert torch.logdet(found).real < torch.logdet(edge_covariance(kspace, mask)).real


def test_points_have_no_readout_to_look_beside() -> None:
    points = (torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    noise = torch.randn(2, 64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)) * points
    with pytest.raises(ValueError, match="at least 8 lines that are read out in one piece"):
        readout_covariance(noise, points)
    assert undersampled_covariance(noise, points)[1] == "k-space edge (an upper bound)"
