"""Posterior denoisers against the closed form of a Gaussian."""

from dataclasses import replace

import gaussian
import pytest
import torch
from gaussian import SHAPE, SIGMA0, case, denoise, power

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import Fourier
from mrgen.posterior.precondition import fourier_diagonal
from mrgen.posterior.proximal import Proximal
from mrgen.prior.spectrum import power_spectrum
from mrgen.scans.scan import Slice

N = SHAPE[0] * SHAPE[1]


def exact_given_x_t(c: gaussian.Case, x_t: torch.Tensor, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of x given y and x_t = x + sigma n."""
    a, f = c.slice_.operator().dense(), Fourier(SHAPE).dense()
    precision = a.mH @ a / SIGMA0**2 + f.mH @ torch.diag(1 / power().flatten() + 0j) @ f + torch.eye(N) / sigma**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (a.mH @ c.slice_.kspace.flatten() / SIGMA0**2 + x_t.flatten() / sigma**2)
    return mean.reshape(SHAPE), covariance


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_proximal_is_the_exact_posterior_mean(sigma: float) -> None:
    c = case()
    x_t = torch.randn(2, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(1)) * sigma
    posterior = Proximal(denoise, c.slice_, power(), iterations=200)
    out = posterior(x_t, torch.full((2,), sigma, dtype=torch.float64))
    for item, found in zip(x_t, out, strict=True):
        torch.testing.assert_close(found, exact_given_x_t(c, item, sigma)[0], rtol=1e-6, atol=1e-7)


def test_draws_have_the_exact_covariance() -> None:
    c, sigma, n = case(), 0.3, 10_000
    x_t = torch.randn(SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    draw = Proximal(denoise, c.slice_, power(), iterations=40, draw=torch.Generator().manual_seed(3))
    samples = draw(x_t.expand(n, -1, -1), torch.full((n,), sigma, dtype=torch.float64)).flatten(1)
    mean, covariance = exact_given_x_t(c, x_t, sigma)
    centred = samples - mean.flatten()
    sd = covariance.diagonal().real.sqrt()
    assert ((centred.mean(0)).abs() / sd).max() < 0.04  # standard error 0.007
    assert (((centred.T @ centred.conj() / n) - covariance).abs() / sd[:, None] / sd[None]).max() < 0.05


def test_nothing_is_where_no_coil_has_a_map() -> None:
    """The prior believes in an image everywhere; the scan is blind to the left third."""
    c, sigma = case(), torch.full((1,), 0.3, dtype=torch.float64)
    blind = torch.zeros(SHAPE, dtype=torch.bool)
    blind[:, : SHAPE[1] // 3] = True
    slice_ = replace(c.slice_, maps=c.slice_.maps * ~blind)
    x_t = torch.randn(1, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(5))
    for draw in (None, torch.Generator().manual_seed(6)):
        out = Proximal(denoise, slice_, power(), iterations=40, draw=draw)(x_t, sigma)[0]
        assert (out[blind] == 0).all()
        assert (out[~blind] != 0).all()


def test_no_draw_at_the_last_level() -> None:
    c = case()
    x_t = torch.randn(1, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(7))
    mean = Proximal(denoise, c.slice_, power(), iterations=40)
    draw = Proximal(denoise, c.slice_, power(), iterations=40, draw=torch.Generator().manual_seed(8), draw_above=0.1)
    for level, same in ((0.1, True), (0.2, False)):
        sigma = torch.full((1,), level, dtype=torch.float64)
        assert torch.equal(mean(x_t, sigma), draw(x_t, sigma)) is same


def test_ten_preconditioned_iterations_are_closer_than_ten_plain_ones() -> None:
    c, sigma = case(), torch.full((1,), 5.0, dtype=torch.float64)
    x_t = 5 * torch.randn(1, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(4))
    exact = exact_given_x_t(c, x_t[0], 5.0)[0]
    good = Proximal(denoise, c.slice_, power(), iterations=10)
    plain = Proximal(denoise, c.slice_, power(), iterations=10)
    plain.measured = torch.zeros_like(plain.measured)
    assert (good(x_t, sigma)[0] - exact).norm() < 0.5 * (plain(x_t, sigma)[0] - exact).norm()


def test_fourier_diagonal_is_the_dense_one() -> None:
    c = case()
    a, f = c.slice_.operator().dense(), Fourier(SHAPE).dense()
    dense = (f @ a.mH @ a @ f.mH).diagonal().real.reshape(SHAPE)
    torch.testing.assert_close(fourier_diagonal(c.slice_.maps, c.slice_.mask), dense)


@pytest.mark.parametrize("sigma", [0.03, 0.3])
def test_the_residual_tells_the_covariance_of_the_denoiser(sigma: float) -> None:
    """With an exact denoiser, V_t of the residual is sigma_t^2 P / (P + sigma_t^2) wherever that exceeds the noise."""
    g = torch.Generator().manual_seed(6)
    slice_, p, image = stationary_scan(g)
    gain = p / (p + sigma**2)

    def exact(x_t: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return ifft2c(gain * fft2c(x_t))

    x_t = image + sigma * torch.randn(8, *image.shape, dtype=torch.complex64, generator=g)
    posterior = Proximal(exact, slice_, None, iterations=1)
    found = posterior.covariance(exact(x_t, torch.tensor(sigma)), torch.tensor(sigma))
    expected = sigma**2 * gain
    assert found.max() <= sigma**2 * 1.0001
    told = (expected > 3 * slice_.sigma0**2) & (p < 0.5)
    assert told.float().mean() > 0.2
    ratio = (found / expected)[told]
    assert 0.85 < float(ratio.mean()) < 1.15
    assert ratio.min() > 0.4
    assert ratio.max() < 2.5


def test_power_spectrum_finds_a_known_spectrum() -> None:
    slice_, p, _ = stationary_scan(torch.Generator().manual_seed(5))
    ratio = (power_spectrum(slice_) / p)[(p > 20 * slice_.sigma0**2) & (p < 0.5)]
    assert 0.85 < float(ratio.mean()) < 1.15
    assert ratio.min() > 0.4
    assert ratio.max() < 2.5


def stationary_scan(g: torch.Generator) -> tuple[Slice, torch.Tensor, torch.Tensor]:
    """A scan of a stationary Gaussian image by equal coils, its power spectrum (ky, kx) and the image."""
    n, coils, sigma0 = 64, 4, 0.01
    y = (torch.arange(n) - n // 2) / (n / 2)
    p = (1 + 100 * (y[:, None].square() + y[None].square())).pow(-1.5)
    image = ifft2c(p.sqrt() * torch.randn(n, n, dtype=torch.complex64, generator=g))
    maps = torch.full((coils, n, n), 1 / coils**0.5, dtype=torch.complex64)
    mask = torch.zeros(n)
    mask[::3] = 1
    mask[28:36] = 1
    blank = Slice(torch.zeros_like(maps), mask, maps, sigma0, 1.0, None)
    noise = torch.randn(maps.shape, dtype=torch.complex64, generator=g)
    slice_ = Slice(blank.operator().forward(image) + sigma0 * mask * noise, mask, maps, sigma0, 1.0, None)
    return slice_, p, image
