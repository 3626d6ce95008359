"""What the objectives are made of: the input's noise, the probe, the slope, items apart from each other."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from mrgen.physics.operators import sense
from mrgen.prior import objectives
from mrgen.prior.draws import complex_noise
from mrgen.prior.objectives import (
    OBJECTIVES,
    CleanBatch,
    MeasuredBatch,
    denoise_with_slope,
    supervised,
    unit_phase,
)
from mrgen.settings import Training

SHAPE = (6, 5)
N = SHAPE[0] * SHAPE[1]
TRAINING = Training(cg_iterations=12, lambda_min=0.01, lambda_max=1)  # lambda is 0.35: solved to 1e-6
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


def sense_input(batch: MeasuredBatch, sigma_t: Tensor, training: Training = TRAINING) -> Tensor:
    """The denoiser's input, as the objective forms it."""
    seen: list[Tensor] = []

    def spy(u: Tensor, sigma: Tensor) -> Tensor:
        seen.append(u)
        return u

    OBJECTIVES[training.objective](spy, batch, sigma_t, torch.Generator().manual_seed(9), training)
    return seen[0][: len(sigma_t)]


@pytest.mark.parametrize(
    ("limits", "sigma"),  # lambda is 0.35, where no noise is added to y, or 0.6, or 0.2, for which the level is raised
    [((0.01, 1), 0.6), ((0.6, 1), 0.6), ((0.01, 0.2), 0.5 / 0.4**0.5)],
)
def test_sense_input_has_white_noise_of_std_sigma_t(limits: tuple[float, float], sigma: float) -> None:
    g = torch.Generator().manual_seed(1)
    size = 8_000
    one = make_batch(1, torch.zeros(SHAPE, dtype=torch.complex64), 0.5, 3, g)
    mask = torch.tensor([1.0, 0, 1, 1, 0]).expand(size, 1, 1, 5)
    maps = one.maps.expand(size, -1, -1, -1)
    y = 0.5 * mask * complex_noise(maps, g)
    batch = MeasuredBatch(y, mask, maps, torch.ones(size, 1, 1, 5), torch.full((size,), 0.5))
    training = TRAINING.model_copy(update=dict(zip(("lambda_min", "lambda_max"), limits, strict=True)))
    u = sense_input(batch, torch.full((size,), 0.6), training).flatten(1)
    covariance, pseudo = u.mH @ u / size, u.mT @ u / size
    # the standard error of an entry is 1 / sqrt(8000) = 1.1 %, of the mean of the diagonal 0.2 %; the largest of 900
    # entries is expected at 2.9 %
    assert (covariance - sigma**2 * torch.eye(N)).abs().max() < 0.045 * sigma**2
    assert pseudo.abs().max() < 0.06 * sigma**2  # the diagonal's standard error is larger by sqrt(2)
    assert float(covariance.diagonal().real.mean()) == pytest.approx(sigma**2, rel=0.008)


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
    _, slope = denoise_with_slope(denoise, u.expand(20_000, -1, -1), probes, many, torch.arange(20_000))
    assert float((probes.conj() * slope).real.flatten(1).sum(1).mean()) == pytest.approx(exact, rel=0.02)
    assert float(probes.abs().sub(1).abs().max()) < 1e-5


def test_slope_only_where_wanted() -> None:
    g = torch.Generator().manual_seed(4)
    denoise = linear_denoiser(8)
    u, direction = (torch.randn(5, *SHAPE, dtype=torch.complex64, generator=g) for _ in range(2))
    chosen = torch.tensor([0, 2])
    xhat, slope = denoise_with_slope(denoise, u, direction[chosen], torch.arange(1.0, 6.0), chosen)
    torch.testing.assert_close(xhat, denoise(u, torch.ones(5)))
    torch.testing.assert_close(slope, denoise(direction[chosen], torch.ones(2)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("basis", ["sense", "fourier"])
@pytest.mark.parametrize("objective", ["gsure", "ambient-tweedie", "ambient"])
def test_a_batch_gives_what_its_items_give(objective: str, basis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks, weights and noise levels of their own, where some have a trace and some have none."""
    g = torch.Generator().manual_seed(7)
    batch = make_batch(5, torch.randn(SHAPE, dtype=torch.complex64, generator=g), 0.1, 3, g)
    batch = replace(batch, sigma0=torch.linspace(0.1, 0.2, 5), weights=1 + torch.rand(5, 1, 1, 5, generator=g))
    sigma_t = torch.tensor([0.11, 9.0, 0.15, 8.0, 0.05])
    for name in ("complex_noise", "unit_phase", "uniform"):
        number = 0.8 if name == "uniform" else 0.6 + 0.8j  # 0.8 drops all lines of `ambient`, with survival = 0.75
        monkeypatch.setattr(objectives, name, lambda like, _, number=number: torch.full(like.shape, number))
    denoise, training = linear_denoiser(9), Training(objective=objective, basis=basis)  # type: ignore[arg-type]

    def estimate(rows: slice) -> Tensor:
        part = MeasuredBatch(**{f.name: getattr(batch, f.name)[rows] for f in fields(batch)})
        return OBJECTIVES[objective](denoise, part, sigma_t[rows], torch.Generator(), training)

    whole = estimate(slice(5))
    torch.testing.assert_close(whole, torch.cat([estimate(slice(i, i + 1)) for i in range(5)]), rtol=1e-4, atol=1e-5)
    assert len(set(whole.tolist())) == 5


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
