"""Two sets of maps: an object folded onto itself, and posteriors of two images against dense algebra."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from moments import sample_errors
from torch import Tensor

from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.physics.operators import Fourier
from mrgen.posterior.baselines import cg_sense, l1_wavelet, total_variation, zero_filled
from mrgen.posterior.check import withheld_ratio
from mrgen.posterior.guidance import guide
from mrgen.posterior.proximal import Proximal
from mrgen.posterior.samplers import decoupled, noise_levels
from mrgen.posterior.sets import each_set, power_shares
from mrgen.posterior.system import System, fourier_diagonal, transform, transform_back
from mrgen.prior.draws import complex_noise
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe

SHAPE, COILS, SIGMA0 = (12, 10), 6, 0.1
N = prod(SHAPE)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal() -> Tensor:
    """Smooth maps (set, coil, y, x), orthonormal at every pixel."""
    y, x = grid(SHAPE)
    rough = torch.randn(COILS, 2, *SHAPE, dtype=torch.complex128, generator=generator(1))
    smooth = ifft2c(fft2c(rough) * (-30 * (y.square() + x.square())).exp())
    return torch.linalg.qr(smooth.permute(2, 3, 0, 1))[0].permute(3, 2, 0, 1)


def mask(n: int = SHAPE[1]) -> Tensor:
    line = torch.arange(n) % 2 == 0
    line[n // 2 - 1 : n // 2 + 2] = True
    return line.double()


def power() -> Tensor:
    """P of each image, (set, ky, kx): the second is weaker and has finer detail."""
    y, x = grid(SHAPE)
    square = (y.square() + x.square()).double()
    return torch.stack([4 * (1 + 20 * square).pow(-1.5), (1 + 5 * square).pow(-1.5)])


def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
    """E[x | x_t] of both images, (n, set, y, x)."""
    gain = power() / (power() + sigma.double().reshape(-1, 1, 1, 1).square())
    return ifft2c(gain * fft2c(x_t))


def case() -> tuple[Slice, Tensor, Tensor]:
    """A slice of two stationary Gaussian images; posterior mean (2 N,) and covariance (2 N, 2 N) by dense algebra."""
    g, maps = generator(2), orthonormal()
    blank = Slice(torch.zeros(COILS, *SHAPE, dtype=torch.complex128), mask(), maps, SIGMA0, 1.0, None, sets=2)
    images = ifft2c(power().sqrt() * complex_noise(maps[:, 0], g))
    slice_ = replace(blank, kspace=blank.operator().forward(images) + SIGMA0 * mask() * complex_noise(blank.kspace, g))
    a, f = slice_.operator().dense(), Fourier(SHAPE).dense()
    prior = torch.block_diag(*[f.mH @ torch.diag(1 / p.flatten() + 0j) @ f for p in power()])
    covariance = torch.linalg.inv(a.mH @ a / SIGMA0**2 + prior)
    return slice_, covariance @ a.mH @ slice_.kspace.flatten() / SIGMA0**2, covariance


def test_the_slice_is_the_sum_of_its_sets() -> None:
    slice_, g = case()[0], generator(3)
    x, y = (torch.randn(s, dtype=torch.complex128, generator=g) for s in (slice_.support.shape, slice_.kspace.shape))
    one, two = (Slice(slice_.kspace, slice_.mask, maps, SIGMA0, 1.0, None) for maps in slice_.maps)
    a = slice_.operator()
    torch.testing.assert_close(a.forward(x), one.operator().forward(x[0]) + two.operator().forward(x[1]))
    torch.testing.assert_close((y.conj() * a.forward(x)).sum(), (a.adjoint(y).conj() * x).sum())
    torch.testing.assert_close(slice_.normal()(x[None])[0], a.normal(x))
    # the magnitude is the RSS of the coil images that both stand for
    coil_images = (slice_.maps * x.unsqueeze(1)).sum(0)
    torch.testing.assert_close(slice_.magnitude(x), coil_images.abs().square().sum(0).sqrt())


def folded() -> tuple[Slice, Tensor]:
    """An object twice as wide as the field of view, every other line of it, without noise; and its coil images."""
    n_y, n_x = 24, 20
    y, x = grid((n_y, 2 * n_x))
    loops = torch.tensor([[-1.2, -0.6], [-1.2, 0.6], [1.2, -0.6], [1.2, 0.6], [0.0, -1.3], [0.0, 1.3]])
    distance = (y - loops[:, :1, None]).square() + (x - loops[:, 1:, None]).square()
    wide = (torch.exp(-distance) * torch.exp(1j * (y + distance))).to(torch.complex128)
    image = (((y / 0.8) ** 2 + (x / 0.75) ** 2 < 1) * (1 + 0.5 * torch.cos(9 * y * x))).double()
    sensed = wide * image
    # columns n_x apart share a pixel
    coil_images = sensed[..., :n_x] + sensed[..., n_x:]
    pairs = torch.stack([wide[..., :n_x], wide[..., n_x:]])  # (place, coil, y, x)
    maps = torch.linalg.qr(pairs.permute(2, 3, 1, 0))[0].permute(3, 2, 0, 1)
    lines = mask(n_x)
    return Slice(lines * fft2c(coil_images), lines, maps, 1e-4, 1.0, None, sets=2), coil_images


def test_two_sets_recover_a_folded_object_and_one_does_not() -> None:
    """From half of the lines, without noise: exactly, where one set leaves much of what shares a pixel."""
    slice_, coil_images = folded()
    both = cg_sense(slice_, 1e-9, 400)
    torch.testing.assert_close((slice_.maps * both.unsqueeze(1)).sum(0), coil_images, rtol=0, atol=1e-5)
    # the strongest direction of the coils at each pixel, as far as one direction goes
    one = replace(slice_, maps=slice_.maps[0], sets=1)
    left = one.maps * cg_sense(one, 1e-9, 400) - coil_images
    assert float(left.norm() / coil_images.norm()) > 0.1


@pytest.mark.parametrize("method", [l1_wavelet, total_variation])
def test_penalties_solve_for_all_sets_together(method) -> None:
    slice_ = folded()[0]
    single = replace(slice_, kspace=slice_.kspace.to(torch.complex64), maps=slice_.maps.to(torch.complex64))
    single = replace(single, mask=slice_.mask.float())
    found = method(single, 0.0, 250)
    assert found.shape == (2, 24, 20)
    gradient = single.operator().adjoint(single.operator().forward(found) - single.kspace)
    assert float(gradient.abs().max()) < 1e-3 * float(zero_filled(single).abs().max())
    # a set without maps has no image, and does not disturb the other one
    blank = replace(single, maps=single.maps * torch.tensor([1.0, 0.0])[:, None, None, None])
    alone = replace(single, maps=single.maps[0], sets=1)
    both, one = (method(s, 0.01, 30) for s in (blank, alone))
    torch.testing.assert_close(both[0], one)
    assert (both[1] == 0).all()
    # the penalty couples nothing but through the data: swapping the sets swaps the images
    torch.testing.assert_close(
        method(replace(single, maps=single.maps.flip(0)), 0.01, 30), method(single, 0.01, 30).flip(0)
    )


def test_the_matrices_of_the_solve_are_the_dense_ones() -> None:
    slice_ = case()[0]
    part = replace(slice_, maps=slice_.maps * (torch.arange(10) > torch.tensor([[[[1]]], [[[6]]]])))
    r = torch.randn(3, 2, *SHAPE, dtype=torch.complex128, generator=generator(4))
    spread = torch.rand(1, 2, *SHAPE, dtype=torch.float64, generator=generator(5))
    for s in (slice_, part):
        a, f = s.operator().dense(), torch.block_diag(*[Fourier(SHAPE).dense()] * 2)
        dense = (f @ a.mH @ a @ f.mH).diagonal().real.reshape(2, *SHAPE)
        torch.testing.assert_close(fourier_diagonal(s.maps, s.mask), dense)
        # q = 1 leaves the diagonal, 4^3 everywhere the system itself
        system, q, by = System(s), torch.tensor(64.0, dtype=torch.float64), spread.flatten()
        local = (f @ (by[:, None] * (a.mH @ a) * by) @ f.mH).diagonal().real.reshape(2, *SHAPE)
        centred = torch.fft.fftshift(system(q / 64, spread)(r), dim=(-2, -1))
        torch.testing.assert_close(centred, torch.fft.fftshift(r, dim=(-2, -1)) / (1 + local))
        for e in (None, spread):
            z, by_e = system(q, e)(r), 1 if e is None else e
            image = transform_back(z) / N
            exact = by_e * s.operator().normal(by_e * image)
            torch.testing.assert_close(by_e * system.normal(by_e * image), exact)
            torch.testing.assert_close(z + 64 * transform(exact), r)


@pytest.mark.parametrize("sigma", [0.03, 0.3, 3.0])
def test_proximal_is_the_exact_posterior_mean(sigma: float) -> None:
    """Given x_t, too, which is one more measurement of both images."""
    slice_, _, _ = case()
    x_t = torch.randn(2, 2, *SHAPE, dtype=torch.complex128, generator=generator(6))
    found = Proximal(denoise, slice_, power(), iterations=200)(x_t, torch.full((2,), sigma, dtype=torch.float64))
    a, f = slice_.operator().dense(), Fourier(SHAPE).dense()
    prior = torch.block_diag(*[f.mH @ torch.diag(1 / p.flatten() + 0j) @ f for p in power()])
    precision = a.mH @ a / SIGMA0**2 + prior + torch.eye(2 * N) / sigma**2
    right = (a.mH @ slice_.kspace.flatten() / SIGMA0**2)[:, None] + x_t.flatten(1).T / sigma**2
    torch.testing.assert_close(found.flatten(1), torch.linalg.solve(precision, right).T, rtol=1e-5, atol=1e-7)


def test_samples_are_those_of_the_dense_posterior() -> None:
    """Standard errors of the 1,000 samples: 0.032 (mean, in sd), 0.015 (sd)."""
    slice_, mean, covariance = case()
    g, sigmas = generator(7), noise_levels(20.0, 0.005, 6, "log").double()
    posterior = Proximal(denoise, slice_, power(), iterations=20, draw=g, draw_above=0.005)
    x = 20 * complex_noise(torch.zeros(1_000, 2, *SHAPE, dtype=torch.complex128), g)
    found = sample_errors(decoupled(posterior, x, sigmas, g), mean, covariance)
    assert found.mean < 0.05
    assert abs(found.sd) < 0.05


def test_nothing_is_where_a_set_has_no_maps() -> None:
    slice_ = case()[0]
    blind = torch.zeros(2, *SHAPE, dtype=torch.bool)
    blind[1, :, 3:8] = True
    part = replace(slice_, maps=slice_.maps * ~blind.unsqueeze(1))
    x_t = torch.randn(2, 2, *SHAPE, dtype=torch.complex128, generator=generator(8))
    sigma = torch.full((2,), 0.3, dtype=torch.float64)
    for covariance in ("local", "residual", "spectral"):
        for draw in (None, generator(9)):
            recipe = Recipe(description="", covariance=covariance)
            out = guide(denoise, part, recipe, sigma_data=0.4, draw=draw)(x_t, sigma)
            assert (out[:, blind] == 0).all()
            assert (out[:, ~blind] != 0).all()


def test_a_prior_is_asked_about_each_set_alone() -> None:
    seen = []

    def prior(x_t: Tensor, sigma: Tensor) -> Tensor:
        seen.append((x_t, sigma))
        return x_t * sigma[:, None, None]

    x_t, sigma = torch.randn(3, 2, *SHAPE, generator=generator(10)), torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(each_set(prior, 2)(x_t, sigma), x_t * sigma[:, None, None, None])
    assert seen[0][0].shape == (6, *SHAPE)
    assert each_set(prior, 1) is prior


def test_shares_of_the_power_are_what_the_sets_hold() -> None:
    slice_ = case()[0]
    shares = torch.as_tensor(power_shares(slice_)).flatten()
    assert float(shares.sum()) == pytest.approx(1)
    true = power().sum((1, 2)) / power().sum()
    assert (shares - true).abs().max() < 0.15


@pytest.mark.parametrize(("sure", "sigma0"), [(False, 0.1), (True, 0.1), (True, 0.5)])
def test_the_data_tell_how_much_of_the_error_each_set_holds(sure: bool, sigma0: float) -> None:
    """Within a tenth, also of a denoiser that says, with no doubt, that the second image is 0."""
    slice_, level = case()[0], torch.tensor([0.3], dtype=torch.float64)
    wide = replace(slice_, mask=torch.ones(SHAPE[1], dtype=torch.float64))
    g, true, found = generator(11), [], []
    images = ifft2c(power().sqrt() * complex_noise(slice_.maps[:, 0].expand(40, -1, -1, -1), g))
    for x in images:
        noisy = wide.operator().forward(x) + sigma0 * complex_noise(slice_.kspace, g)
        given = replace(slice_, kspace=slice_.mask * noisy, sigma0=sigma0)
        only_first = torch.tensor([1.0, 0.0 if sure else 1.0])[:, None, None]
        posterior = Proximal(lambda x, s: denoise(x, s) * only_first, given, None, iterations=1, local=True)  # noqa: B023
        mean, root = posterior.denoise(x[None] + level * complex_noise(x[None], g), level)
        assert root is not None
        torch.testing.assert_close(root.square().sum(1).mean(), torch.ones((), dtype=torch.float64))
        true.append((mean[0] - x).abs().square().sum((-2, -1)))
        found.append(root.square().mean((0, -2, -1)))
    share, told = torch.stack(true).sum(0), torch.stack(found).mean(0)
    assert float(told[1]) == pytest.approx(float(share[1] / share.sum()), rel=0.1)


def test_a_set_without_maps_has_no_error() -> None:
    slice_ = case()[0]
    part = replace(slice_, maps=slice_.maps * torch.tensor([1.0, 0.0])[:, None, None, None])
    x_t, level = torch.randn(1, 2, *SHAPE, dtype=torch.complex128, generator=generator(14)), torch.ones(1)
    _, root = Proximal(denoise, part, None, iterations=1, local=True).denoise(x_t, level.double())
    assert root is not None
    assert float(root[:, 0].square().mean()) == pytest.approx(1)
    assert (root[:, 1] == 0).all()


def test_a_set_without_power_changes_nothing() -> None:
    slice_, level = case()[0], torch.tensor([0.5], dtype=torch.float64)
    nothing = torch.zeros_like(slice_.maps[0])
    one = replace(slice_, maps=slice_.maps[0], sets=1)
    two = replace(slice_, maps=torch.stack([slice_.maps[0], nothing]))
    x_t = complex_noise(slice_.maps[:, 0], generator(15))[None]
    powers = power()[0], torch.stack([power()[0], torch.zeros_like(power()[0])])
    alone = Proximal(lambda x, s: 0.3 * x, one, powers[0], iterations=60)(x_t[:, 0], level)
    beside = Proximal(lambda x, s: 0.3 * x, two, powers[1], iterations=60)(x_t, level)
    torch.testing.assert_close(beside[:, 0], alone, rtol=1e-6, atol=1e-8)
    assert (beside[:, 1] == 0).all()


def test_withheld_lines_are_predicted_by_both_sets() -> None:
    """Exact samples, so the ratio is 1 within three of its standard errors; without the second set it is not."""
    slice_ = case()[0]
    held = torch.zeros(SHAPE[1], dtype=torch.float64)
    held[0] = held[8] = 1
    given = replace(slice_, kspace=slice_.kspace * (slice_.mask - held), mask=slice_.mask - held)
    g = generator(12)
    posterior = Proximal(denoise, given, power(), iterations=60, draw=g, draw_above=0.005)
    x = 20 * complex_noise(torch.zeros(400, 2, *SHAPE, dtype=torch.complex128), g)
    samples = decoupled(posterior, x, noise_levels(20.0, 0.005, 6, "log").double(), g)
    found = withheld_ratio(slice_, held, samples, antithetic=False)
    assert abs(found.ratio - 1) < 3 * found.standard_error
    without = samples * torch.tensor([1.0, 0.0])[:, None, None]
    assert withheld_ratio(slice_, held, without, antithetic=False).ratio > 1.2


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("sigma", [0.03, 0.3])
def test_the_residual_tells_the_covariance_of_both_sets(sigma: float, local: bool) -> None:
    """With an exact denoiser of two images of one power, E Lambda is sigma_t^2 P / (P + sigma_t^2) for each of them."""
    shape, g, sigma0 = (48, 40), generator(13), 0.01
    y, x = grid(shape)
    p = (1 + 50 * (y.square() + x.square()).double()).pow(-1.5)
    gain, lines = p / (p + sigma**2), mask(40)
    maps = torch.linalg.qr(torch.randn(COILS, 2, dtype=torch.complex128, generator=g))[0].T  # the same at every pixel
    maps = maps[..., None, None].expand(2, COILS, *shape)
    blank = Slice(torch.zeros(COILS, *shape, dtype=torch.complex128), lines, maps, sigma0, 1.0, None, sets=2)
    images = ifft2c(p.sqrt() * complex_noise(maps[:, 0], g))
    noisy = blank.operator().forward(images) + sigma0 * lines * complex_noise(blank.kspace, g)
    level = torch.tensor([sigma], dtype=torch.float64)
    posterior = Proximal(
        lambda x_t, _: ifft2c(gain * fft2c(x_t)), replace(blank, kspace=noisy), None, iterations=1, local=local
    )
    x_t = images + sigma * complex_noise(images.expand(8, -1, -1, -1), g)
    mean, root = posterior.denoise(x_t, level.expand(8))
    e = torch.ones(2) if root is None else root.square().mean((0, -2, -1))
    found = e[:, None, None] * posterior.covariance(mean, level[0])
    assert found.shape == (8, 2, *shape)
    expected = sigma**2 * gain
    told = (expected > 3 * sigma0**2) & (p < 0.5)
    assert 0.85 < float((found.mean(0) / expected)[:, told].mean()) < 1.15
    assert 0.7 < float((found[:, 0] / found[:, 1]).mean()) < 1.4
