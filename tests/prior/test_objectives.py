"""GSURE in closed form: it estimates the true weighted risk of a denoiser without seeing the clean image."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import sense
from mrgen.prior import objectives
from mrgen.prior.objectives import (
    CleanBatch,
    MeasuredBatch,
    complex_noise,
    denoise_with_slope,
    gsure_fourier,
    gsure_sense,
    supervised,
    unit_phase,
)
from mrgen.settings import Training

SHAPE = (6, 5)
N = SHAPE[0] * SHAPE[1]
TRAINING = Training(cg_iterations=12, lambda_min=0.01)  # lambda is 0.35 in these tests: solved to 1e-6
RATE = 0.5  # Pr(line is sampled)


def make_batch(size: int, x: Tensor, sigma0: float, coils: int, generator: torch.Generator) -> MeasuredBatch:
    """`size` independent scans of the image x, each with its own mask and noise but the same maps."""
    maps = torch.randn(coils, *SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(5)) + 1
    maps = (maps / maps.abs().square().sum(0).sqrt()).expand(size, -1, -1, -1)
    mask = (torch.rand(size, 1, 1, SHAPE[1], generator=generator) < RATE).float()
    y = sense(maps, mask).forward(x.expand(size, *SHAPE))
    y = y + sigma0 * mask * complex_noise(y, generator)
    weights = torch.full((size, 1, 1, SHAPE[1]), 1 / RATE)
    return MeasuredBatch(y, mask, maps, weights, torch.full((size,), sigma0))


def linear_denoiser(seed: int):
    """A random complex matrix plus a conjugate part, so that it is not holomorphic."""
    g = torch.Generator().manual_seed(seed)
    k1, k2 = (torch.randn(N, N, dtype=torch.complex64, generator=g) / N**0.5 for _ in range(2))
    k1 = 0.5 * torch.eye(N) + 0.3 * k1

    def denoise(u: Tensor, sigma: Tensor) -> Tensor:
        flat = u.flatten(1)
        return (flat @ k1.T + 0.2 * flat.conj() @ k2.T).reshape(u.shape)

    return denoise


def test_sense_basis_estimates_the_true_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, dtype=torch.complex64, generator=g)
    batch = make_batch(6_000, x, sigma0=0.5, coils=3, generator=g)
    sigma_t = torch.full((6_000,), 0.6)
    denoise = linear_denoiser(1)
    estimate = gsure_sense(denoise, batch, sigma_t, g, TRAINING).mean()

    clean = sense_risk(denoise, batch, sigma_t, x)
    assert estimate == pytest.approx(clean, rel=0.025)  # standard errors: 0.7 % of the estimate, 0.6 % of the risk

    monkeypatch.setattr(objectives, "DIVERGENCE_RANGE", 0.0)  # mutant: no trace
    assert gsure_sense(denoise, batch, sigma_t, g, TRAINING).mean() < 0.8 * clean


def sense_input(batch: MeasuredBatch, sigma_t: Tensor, training: Training = TRAINING) -> Tensor:
    """The denoiser's input, as the objective forms it."""
    seen: list[Tensor] = []

    def spy(u: Tensor, sigma: Tensor) -> Tensor:
        seen.append(u)
        return u

    far = MeasuredBatch(**{f.name: getattr(batch, f.name) for f in fields(batch)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "DIVERGENCE_RANGE", 0.0)
        gsure_sense(spy, far, sigma_t, torch.Generator().manual_seed(9), training)
    return seen[0]


def sense_risk(denoise, batch: MeasuredBatch, sigma_t: Tensor, x: Tensor) -> float:
    u = sense_input(batch, sigma_t)
    error = sense(batch.maps, batch.mask).forward(denoise(u, sigma_t) - x)
    return float((batch.weights * error.abs().square()).sum() / (N * len(u)))


@pytest.mark.parametrize("lambda_min", [0.01, 0.6])  # lambda is 0.35, where no noise is added to y, or 0.6
def test_sense_input_has_white_noise_of_std_sigma_t(lambda_min: float) -> None:
    g = torch.Generator().manual_seed(1)
    size, sigma = 8_000, 0.6
    one = make_batch(1, torch.zeros(SHAPE, dtype=torch.complex64), 0.5, 3, g)
    mask = torch.tensor([1.0, 0, 1, 1, 0]).expand(size, 1, 1, 5)
    maps = one.maps.expand(size, -1, -1, -1)
    y = 0.5 * mask * complex_noise(maps, g)
    batch = MeasuredBatch(y, mask, maps, torch.ones(size, 1, 1, 5), torch.full((size,), 0.5))
    training = TRAINING.model_copy(update={"lambda_min": lambda_min})
    u = sense_input(batch, torch.full((size,), sigma), training).flatten(1)
    covariance, pseudo = u.mH @ u / size, u.mT @ u / size
    # the standard error of an entry is 1 / sqrt(8000) = 1.1 %, of the mean of the diagonal 0.2 %; the largest of 900
    # entries is expected at 2.9 %
    assert (covariance - sigma**2 * torch.eye(N)).abs().max() < 0.045 * sigma**2
    assert pseudo.abs().max() < 0.06 * sigma**2  # the diagonal's standard error is larger by sqrt(2)
    assert float(covariance.diagonal().real.mean()) == pytest.approx(sigma**2, rel=0.008)


def test_fourier_basis_estimates_the_true_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(2)
    size, sigma0 = 40_000, 0.5
    x = torch.randn(SHAPE, dtype=torch.complex64, generator=g)
    batch = make_batch(size, x, sigma0, 1, g)  # one coil of unit modulus: its image is the signal
    x_coil = batch.maps[0, 0] * x
    sigma_t = torch.full((size,), 0.6)
    # a random unit-norm combination of one coil is a global phase: undo it by a phase-equivariant denoiser
    k = torch.randn(N, N, dtype=torch.complex64, generator=torch.Generator().manual_seed(4)) / N**0.5

    def denoise(u: Tensor, sigma: Tensor) -> Tensor:
        return (0.5 * u.flatten(1) + 0.3 * u.flatten(1) @ k.T).reshape(u.shape)

    estimate = gsure_fourier(denoise, batch, sigma_t, g, TRAINING).mean()
    n = complex_noise(batch.kspace[:, 0], g)
    k_t = batch.mask[:, 0] * (batch.kspace[:, 0] + (0.6**2 - sigma0**2) ** 0.5 * n) + (1 - batch.mask[:, 0]) * 0.6 * n
    error = batch.mask[:, 0] / RATE**0.5 * fft2c(denoise(ifft2c(k_t), sigma_t) - x_coil)
    clean = error.abs().square().sum() / (N * size)
    assert estimate == pytest.approx(float(clean), rel=0.03)
    monkeypatch.setattr(objectives, "DIVERGENCE_RANGE", 0.0)
    assert gsure_fourier(denoise, batch, sigma_t, g, TRAINING).mean() < 0.85 * clean


def test_probe_gives_the_exact_divergence() -> None:
    g = torch.Generator().manual_seed(3)
    denoise = linear_denoiser(7)
    u = torch.randn(1, *SHAPE, dtype=torch.complex64, generator=g)
    sigma = torch.ones(1)
    basis = torch.eye(N, dtype=torch.complex64).reshape(N, *SHAPE)
    exact = (
        sum(
            float((e.conj() * torch.func.jvp(lambda x: denoise(x, sigma), (u,), (e[None],))[1]).real.sum())
            + float(
                ((1j * e).conj() * torch.func.jvp(lambda x: denoise(x, sigma), (u,), (1j * e[None],))[1]).real.sum()
            )
            for e in basis
        )
        / 2
    )  # Re tr of the Wirtinger derivative
    probes = unit_phase(torch.zeros(20_000, *SHAPE), g)
    many = torch.ones(20_000)
    _, slope = denoise_with_slope(denoise, u.expand(20_000, -1, -1), probes, many, many > 0)
    assert float((probes.conj() * slope).real.flatten(1).sum(1).mean()) == pytest.approx(exact, rel=0.02)
    assert float(probes.abs().sub(1).abs().max()) < 1e-5


def test_slope_only_where_wanted() -> None:
    g = torch.Generator().manual_seed(4)
    denoise = linear_denoiser(8)
    u = torch.randn(5, *SHAPE, dtype=torch.complex64, generator=g)
    wanted = torch.tensor([True, False, True, False, False])
    xhat, slope = denoise_with_slope(denoise, u, torch.ones_like(u), torch.ones(5), wanted)
    torch.testing.assert_close(xhat, denoise(u, torch.ones(5)))
    assert slope[~wanted].abs().max() == 0
    assert slope[wanted].abs().min() > 0


def test_gaussian_toy_optimum_is_the_wiener_filter() -> None:
    """Scalar gain g minimising GSURE on x ~ CN(0, p) is the Wiener gain p / (p + sigma_t^2), at full sampling."""
    g = torch.Generator().manual_seed(5)
    size, p, sigma0, sigma_t = 4_000, 0.8, 0.3, 0.5
    x = p**0.5 * torch.randn(size, *SHAPE, dtype=torch.complex64, generator=g)
    ones = torch.ones(size, 1, 1, SHAPE[1])
    maps = torch.ones(size, 1, *SHAPE, dtype=torch.complex64)
    y = fft2c(x)[:, None] + sigma0 * complex_noise(maps, g)
    batch = MeasuredBatch(y, ones, maps, ones, torch.full((size,), sigma0))
    gains = torch.linspace(0.5, 1.0, 51)

    def best(factor: float) -> float:
        risks = []
        for gain in gains:
            value = gsure_fourier(
                lambda u, s, a=gain: a * u,
                batch,
                torch.full((size,), sigma_t),
                torch.Generator().manual_seed(1),
                TRAINING,
            )
            risks.append(float(value.mean()) + (factor - 2) * sigma0**2 * float(gain))
        return float(gains[int(torch.tensor(risks).argmin())])

    wiener = p / (p + sigma_t**2)
    assert best(2.0) == pytest.approx(wiener, abs=0.02)
    assert abs(best(1.0) - wiener) > 0.04  # mutant: factor 1 instead of 2


def test_supervised_is_the_squared_error() -> None:
    x = torch.randn(3, *SHAPE, dtype=torch.complex64)
    value = supervised(lambda u, s: torch.zeros_like(u), CleanBatch(x), torch.ones(3), torch.Generator(), TRAINING)
    torch.testing.assert_close(value, x.abs().square().flatten(1).mean(1))


def test_no_clean_image_can_reach_gsure() -> None:
    names = {f.name for f in fields(MeasuredBatch)}
    assert names == {"kspace", "mask", "maps", "weights", "sigma0"}
    g = torch.Generator().manual_seed(6)
    batch = make_batch(2, torch.randn(SHAPE, dtype=torch.complex64), 0.1, 2, g)
    assert (batch.kspace * (1 - batch.mask)).abs().max() == 0
