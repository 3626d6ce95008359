"""Posterior denoisers against the closed form of a Gaussian."""

from dataclasses import replace
from typing import get_args
from unittest.mock import Mock

import gaussian
import pytest
import torch
from gaussian import SHAPE, SIGMA0, case, denoise, power
from moments import sample_errors
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.physics.operators import Fourier
from mrgen.posterior.baselines import cg_sense
from mrgen.posterior.dps import Dps
from mrgen.posterior.fourier import ClosedForm
from mrgen.posterior.guidance import GUIDANCE, guide
from mrgen.posterior.mmps import Mmps
from mrgen.posterior.proximal import Proximal
from mrgen.posterior.samplers import GRIDS, SAMPLERS
from mrgen.posterior.system import System, fourier_diagonal, transform, transform_back
from mrgen.prior.draws import complex_noise
from mrgen.prior.spectrum import power_spectrum
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe

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


def sense_scan() -> Slice:
    """32 x 32, 6 smooth coils, R = 4 but for 4 lines, sigma0 = 0.01."""
    g = torch.Generator().manual_seed(9)
    y, x = grid((32, 32))
    angles = torch.arange(6) * torch.pi / 3
    maps = torch.stack([torch.exp(-((y - a.sin()) ** 2 + (x - a.cos()) ** 2) + 1j * a) for a in angles])
    maps = (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex128)
    mask = torch.zeros(32, dtype=torch.float64)
    mask[::4] = mask[14:18] = 1
    return Slice(torch.randn(6, 32, 32, dtype=torch.complex128, generator=g) * mask, mask, maps, 0.01, 1.0, None)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def falling() -> Tensor:
    """The power spectrum (32, 32) of images for that scan."""
    y, x = grid((32, 32))
    return 5 * (1 + 100 * (y.square() + x.square())).pow(-1.5).double()


def wiener(x_t: Tensor, sigma: Tensor) -> Tensor:
    p = falling()
    return ifft2c(p / (p + sigma[0].square()) * fft2c(x_t))


def test_ten_iterations_are_within_a_percent_of_the_converged_answer() -> None:
    """With the exact inverse of the rows; the diagonal alone, all there is for points, is far behind."""
    slice_, sigma, p = sense_scan(), torch.tensor([2.0], dtype=torch.float64), falling()
    x_t = 2 * torch.randn(1, 32, 32, dtype=torch.complex128, generator=torch.Generator().manual_seed(4))
    converged = Proximal(wiener, slice_, p, iterations=1000)(x_t, sigma)
    points = replace(slice_, mask=slice_.mask.expand(32, 32))
    full, diagonal = (Proximal(wiener, scan, p, iterations=10) for scan in (slice_, points))
    error, plain = (float((d(x_t, sigma) - converged).norm() / converged.norm()) for d in (full, diagonal))
    assert error < 0.01
    assert plain > 0.1


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("sigma", [5.0, 1.0, 0.3, 0.05])
def test_the_default_recipe_stops_within_one_percent_of_the_converged_answer(sigma: float, draw: bool) -> None:
    """For each of a batch, at R = 8, where the solve is harder, of a scan of an image that there could be."""
    recipe, blank, mask = Recipe(description=""), sense_scan(), torch.zeros(32, dtype=torch.float64)
    mask[::8] = mask[14:18] = 1
    image, noise = (complex_noise(like, seeded(3)) for like in (blank.maps[0], blank.kspace))
    slice_ = replace(blank, mask=mask)
    kspace = slice_.operator().forward(ifft2c(falling().sqrt() * image)) + blank.sigma0 * mask * noise
    slice_ = replace(slice_, kspace=kspace)
    x_t = cg_sense(slice_, 0.01, 10) + sigma * complex_noise(
        torch.zeros(3, 32, 32, dtype=torch.complex128), torch.Generator().manual_seed(1)
    )
    level = torch.full((3,), sigma, dtype=torch.float64)

    def denoise_all(iterations: int, settled: float) -> tuple[Tensor, int]:
        g = seeded(2) if draw else None
        guided = Proximal(wiener, slice_, None, iterations=iterations, settled=settled, local=True, draw=g)
        guided.normal = Mock(wraps=guided.normal)
        return guided(x_t, level), guided.normal.call_count - 1

    found, iterations = denoise_all(recipe.cg_iterations, recipe.cg_settled)
    exact, _ = denoise_all(400, 0.0)
    errors = (found - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert float(errors.max()) < 0.01
    assert 1 < iterations < recipe.cg_iterations


def test_the_preconditioner_is_exact_for_one_number() -> None:
    """q = 4^e everywhere: then P is the system itself."""
    slice_ = sense_scan()
    r = torch.randn(2, 32, 32, dtype=torch.complex128, generator=seeded(1))
    spread = torch.rand(1, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    system, q, points = System(slice_), torch.tensor(4.0**3, dtype=torch.float64), 32 * 32
    for e in (None, spread, spread.flip(1)):
        z, by = system(q, e)(r), 1 if e is None else e
        image = transform_back(z) / points
        exact = slice_.operator().normal(by * image)
        torch.testing.assert_close(system.normal(by * image), exact)
        torch.testing.assert_close(z + 64 * transform(by * exact), r)


def test_the_closed_form_is_the_proximal_solve() -> None:
    c, sigma = case(coils=1), torch.full((1,), 0.3, dtype=torch.float64)
    recipe = Recipe(description="", covariance="residual")
    assert isinstance(guide(denoise, c.slice_, recipe, sigma_data=0.4), ClosedForm)
    x_t = torch.randn(1, *SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    for p in (power(), None):
        expected = Proximal(denoise, c.slice_, p, iterations=60)(x_t, sigma)
        torch.testing.assert_close(ClosedForm(denoise, c.slice_, p)(x_t, sigma), expected)


def test_the_closed_form_draws_with_the_exact_covariance() -> None:
    c, sigma, n = case(coils=1), 0.3, 10_000
    x_t = torch.randn(SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    draw = ClosedForm(denoise, c.slice_, power(), draw=torch.Generator().manual_seed(3))
    samples = draw(x_t.expand(n, -1, -1), torch.full((n,), sigma, dtype=torch.float64)).flatten(1)
    mean, covariance = exact_given_x_t(c, x_t, sigma)
    found = sample_errors(samples, mean.flatten(), covariance)
    assert found.mean < 0.02
    assert abs(found.sd) < 0.01
    assert found.covariance < 0.05


def test_the_closed_form_refuses_coils() -> None:
    recipe = Recipe(description="", guidance="fourier")
    with pytest.raises(MrgenError, match="one coil whose map is 1 in the object, this scan has 3"):
        guide(denoise, case().slice_, recipe, sigma_data=0.4)
    one = case(coils=1).slice_
    with pytest.raises(MrgenError, match="guidance 'fourier'"):
        guide(denoise, replace(one, maps=1j * one.maps), recipe, sigma_data=0.4)


@pytest.mark.parametrize("guidance", ["mmps", "dps"])
def test_means_are_refused_where_draws_are_needed(guidance: str) -> None:
    with pytest.raises(ValueError, match="decoupled needs draws"):
        Recipe(description="", guidance=guidance)
    assert isinstance(
        guide(denoise, case().slice_, Recipe(description="", guidance=guidance, sampler="heun"), sigma_data=0.4),
        {"mmps": Mmps, "dps": Dps}[guidance],
    )


def test_the_names_are_those_of_the_settings() -> None:
    for name, found in (("guidance", GUIDANCE), ("sampler", SAMPLERS), ("grid", GRIDS)):
        assert set(get_args(Recipe.model_fields[name].annotation)) == set(found)


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
    ratio = (found.mean(0) / expected)[told]  # each image has its own
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
