"""Every objective that sees no clean image has the expectation it states, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cubature import DTYPE, SHAPE, N, expectation
from torch import Tensor

from mrgen.physics.operators import Fourier, sense
from mrgen.prior import objectives
from mrgen.prior.objectives import MeasuredBatch, ambient, gsure
from mrgen.settings import Training

SIGMA0, SIGMA_T = 0.5, 0.8  # sigma_t > sqrt(2) sigma0, so that every objective keeps it
MASK = torch.tensor([1.0, 0, 1, 1, 1])
WEIGHTS = torch.tensor([2.0, 2, 1, 3, 2])
STAYS = torch.tensor([0.0, 1, 1, 1, 0])  # among them one that is not sampled; line 2 is always sampled
OBJECTIVES = [(o, b) for o in ("gsure", "ambient-tweedie", "ambient") for b in ("sense", "fourier")]


def training(objective: str, basis: str, **changes: Any) -> Training:
    settings: dict[str, Any] = {"objective": objective, "basis": basis, "cg_iterations": 40, "lambda_min": 1e-6}
    settings["lambda_max"] = 1e6  # every level as it is
    return Training(**settings | changes)


def unit_maps(coils: int) -> Tensor:
    maps = torch.randn(coils, *SHAPE, dtype=DTYPE, generator=torch.Generator().manual_seed(5)) + 1
    return maps / maps.abs().square().sum(0).sqrt()


@dataclass(frozen=True)
class Linear:
    """D(u) = K1 u + K2 u*, real-linear but not holomorphic."""

    k1: Tensor
    k2: Tensor

    def __call__(self, u: Tensor, sigma: Tensor) -> Tensor:
        flat = u.flatten(1)
        return (flat @ self.k1.T + flat.conj() @ self.k2.T).reshape(u.shape)

    @classmethod
    def random(cls, seed: int) -> Linear:
        g = torch.Generator().manual_seed(seed)
        k1, k2 = (torch.randn(N, N, dtype=DTYPE, generator=g) / N**0.5 for _ in range(2))
        return cls(0.5 * torch.eye(N) + 0.3 * k1, 0.2 * k2)


def risk(denoise: Linear, a: Tensor, weights: Tensor, gain: Tensor, sigma_t: float, x: Tensor) -> float:
    """E||W^(1/2) A (D(u) - x)||^2 per pixel for u = gain x + sigma_t n: matrices (rows, N), weights (rows,), x (N,)."""
    seen = gain @ x
    bias = a @ (denoise.k1 @ seen + denoise.k2 @ seen.conj() - x)
    spread = (a @ denoise.k1).abs().square().sum(1) + (a @ denoise.k2).abs().square().sum(1)
    return float((weights * (bias.abs().square() + sigma_t**2 * spread)).sum()) / N


def case(objective: str, basis: str) -> tuple[Training, dict[str, Any], Callable[[Linear], float]]:
    """Settings, arguments for `expectation`, and the true risk of a denoiser."""
    maps = unit_maps(2)
    x = torch.randn(SHAPE, dtype=DTYPE, generator=torch.Generator().manual_seed(1))
    coils = torch.tensor([0.6, 0.8j], dtype=DTYPE)
    used = MASK * STAYS if objective == "ambient" else MASK
    arguments = {"sigma0": SIGMA0, "sigma_t": SIGMA_T, "maps": maps, "mask": MASK, "weights": WEIGHTS, "image": x}
    if basis == "fourier":
        signal = (coils[:, None, None] * maps).sum(0) * x
        f = Fourier(SHAPE).dense()
        a, gain = MASK.repeat(SHAPE[0])[:, None] * f, f.mH @ (used.repeat(SHAPE[0])[:, None] * f)
        weights = WEIGHTS.repeat(SHAPE[0])
    else:
        signal = x
        a, part = sense(maps, MASK).dense(), sense(maps, used).dense()
        normal = part.mH @ part
        lam = (1 if objective == "gsure" else 2) * SIGMA0**2 / (2 * SIGMA_T**2)
        gain = torch.linalg.solve(normal + lam * torch.eye(N), normal)
        weights = WEIGHTS.repeat(SHAPE[0] * len(maps))
    arguments |= {"stays": STAYS, "coils": coils}
    return (
        training(objective, basis),
        arguments,
        lambda denoise: risk(denoise, a, weights, gain, SIGMA_T, signal.flatten()),
    )


@pytest.mark.parametrize(("objective", "basis"), OBJECTIVES)
def test_the_expectation_is_the_weighted_projected_risk(objective: str, basis: str) -> None:
    settings, arguments, true = case(objective, basis)
    for seed in (1, 2):
        denoise = Linear.random(seed)
        assert expectation(settings, denoise, **arguments) == pytest.approx(true(denoise), rel=1e-5)


@pytest.mark.parametrize("basis", ["sense", "fourier"])
def test_the_trace_is_no_small_part(basis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, arguments, true = case("gsure", basis)
    monkeypatch.setattr(objectives, "DIVERGENCE_RANGE", 0.0)
    denoise = Linear.random(1)
    assert expectation(settings, denoise, **arguments) < 0.85 * true(denoise)


@pytest.mark.parametrize(("objective", "sigma_t"), [("gsure", 0.2), ("ambient-tweedie", 0.2), ("ambient", 0.2)])
def test_the_sense_basis_holds_below_sigma0(objective: str, sigma_t: float) -> None:
    """With lambda above 3, where the input has little of x and the denoiser must not be given sigma0 instead."""
    settings, arguments, _ = case(objective, "sense")
    maps, x = arguments["maps"], arguments["image"].flatten()
    used = MASK * STAYS if objective == "ambient" else MASK
    a, part = sense(maps, MASK).dense(), sense(maps, used).dense()
    lam = (1 if objective == "gsure" else 2) * SIGMA0**2 / (2 * sigma_t**2)
    gain = torch.linalg.solve(part.mH @ part + lam * torch.eye(N), part.mH @ part)
    denoise = Linear.random(3)
    true = risk(denoise, a, WEIGHTS.repeat(SHAPE[0] * len(maps)), gain, sigma_t, x)
    assert expectation(settings, denoise, **arguments | {"sigma_t": sigma_t}) == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize(("objective", "least"), [("gsure", 1.0), ("ambient-tweedie", 2**0.5), ("ambient", 2**0.5)])
def test_the_fourier_basis_raises_levels_that_it_cannot_reach(objective: str, least: float) -> None:
    settings, arguments, _ = case(objective, "fourier")
    told: list[Tensor] = []

    def spy(u: Tensor, sigma: Tensor) -> Tensor:
        told.append(sigma)
        return Linear.random(1)(u, sigma)

    low = expectation(settings, spy, **arguments | {"sigma_t": 0.01})
    assert low == pytest.approx(expectation(settings, spy, **arguments | {"sigma_t": least * SIGMA0}))
    assert all((sigma - least * SIGMA0).abs().max() < 1e-6 for sigma in told)


@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("objective", ["gsure", "ambient-tweedie", "ambient"])
def test_both_bases_agree_for_one_coil_without_a_map(objective: str, gain: float) -> None:
    """With S = 1 the SENSE input is the Fourier input at sigma_t (1 + lambda), divided by 1 + lambda."""
    denoise = Linear(gain * Linear.random(4).k1, gain * Linear.random(4).k2)
    lam = 0.3 if objective == "gsure" else 0.6  # above the least lambda, 0.195 and 0.39
    x = torch.randn(SHAPE, dtype=DTYPE, generator=torch.Generator().manual_seed(2))
    common: dict[str, Any] = {"sigma0": SIGMA0, "mask": MASK, "weights": WEIGHTS, "image": x, "stays": STAYS}
    common["maps"] = torch.ones(1, *SHAPE, dtype=DTYPE)
    by_sense = expectation(training(objective, "sense", lambda_min=lam), denoise, sigma_t=SIGMA_T, **common)
    by_fourier = expectation(
        training(objective, "fourier"),
        lambda u, sigma: denoise(u / (1 + lam), sigma),
        sigma_t=SIGMA_T * (1 + lam),
        **common,
    )
    assert by_sense == pytest.approx(by_fourier, rel=1e-6)


@pytest.mark.parametrize("basis", ["sense", "fourier"])
@pytest.mark.parametrize("objective", ["gsure", "ambient-tweedie"])
def test_the_minimiser_on_a_gaussian_is_the_wiener_filter(objective: str, basis: str) -> None:
    """x ~ CN(0, p), one coil, all lines sampled: the best gain of u = g x + sigma_t n is p g / (p g^2 + sigma_t^2)."""
    p, ones = 0.8, torch.ones(SHAPE[1])
    settings = training(objective, basis)
    common: dict[str, Any] = {"sigma0": SIGMA0, "sigma_t": SIGMA_T, "mask": ones, "weights": ones, "power": p}
    common["maps"] = torch.ones(1, *SHAPE, dtype=DTYPE)
    low, middle, high = (
        expectation(settings, lambda u, sigma, a=a: a * u, **common)  # type: ignore[misc]
        for a in (0.0, 0.5, 1.0)
    )
    best = 0.25 * (3 * low - 4 * middle + high) / (low - 2 * middle + high)  # the vertex of the parabola
    lam = (1 if objective == "gsure" else 2) * SIGMA0**2 / (2 * SIGMA_T**2)
    g = 1 / (1 + lam) if basis == "sense" else 1.0
    assert best == pytest.approx(p * g / (p * g**2 + SIGMA_T**2), rel=1e-5)
    assert low == pytest.approx(p, rel=1e-6)


def test_ambient_tweedie_is_the_regression_that_names_it() -> None:
    """||A (D - y')||^2 = ||A (h - y)||^2 / (1 - r)^2 for h = (1 - r) D + r u, r = sigma0^2 / sigma_t^2."""
    g = torch.Generator().manual_seed(3)
    y, e, d = (torch.randn(N, dtype=DTYPE, generator=g) for _ in range(3))
    c, r = (SIGMA_T**2 - SIGMA0**2) ** 0.5, SIGMA0**2 / SIGMA_T**2
    h = (1 - r) * d + r * (y + c * e)
    torch.testing.assert_close((h - y) / (1 - r), d - (y - SIGMA0**2 / c * e))
    torch.testing.assert_close(d, (SIGMA_T**2 * h - SIGMA0**2 * (y + c * e)) / (SIGMA_T**2 - SIGMA0**2))


@pytest.mark.parametrize("basis", ["sense", "fourier"])
def test_ambient_drops_lines_from_the_input_alone(basis: str) -> None:
    """An input of no noise at all is zero on the lines dropped: a quarter of them, none that is always sampled."""
    size, n = 3000, 12
    mask, weights = torch.ones(n), torch.full((n,), 4.0)
    mask[0], weights[5:7] = 0, 1
    maps = torch.ones(size, 1, 1, n, dtype=DTYPE)
    y = torch.ones(size, 1, 1, n, dtype=DTYPE) * mask
    wide = (mask.expand(size, 1, 1, n), maps, weights.expand(size, 1, 1, n), torch.zeros(size))
    seen: list[Tensor] = []

    def spy(u: Tensor, sigma: Tensor) -> Tensor:
        seen.append(u)
        return torch.zeros_like(u)

    level = torch.full((size,), 1e-6)
    settings = training("ambient", basis, survival=0.75)
    values = ambient(spy, MeasuredBatch(y, *wide), level, torch.Generator().manual_seed(0), settings)
    kept = (Fourier((1, n)).forward(seen[0]).abs() > 0.5).double().mean(0)[0]
    assert kept[0] == 0
    assert (kept[5:7] == 1).all()
    others = torch.cat([kept[1:5], kept[7:]])
    assert (others - 0.75).abs().max() < 0.035  # standard error 0.008
    torch.testing.assert_close(values, torch.full_like(values, (9 * 4 + 2) / n))  # all sampled lines are compared


@pytest.mark.parametrize("sigma0", [0.5, 0.1, 0.02])
def test_the_share_of_the_trace_in_the_risk(sigma0: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Gaussian with its Wiener filter: 2 sigma0^2 / sigma_t^2, in the Fourier basis whatever the mask."""
    sigma_t, p = 0.7, 0.8
    gain, share = p / (p + sigma_t**2), 2 * sigma0**2 / sigma_t**2
    common: dict[str, Any] = {"sigma0": sigma0, "sigma_t": sigma_t, "mask": MASK, "weights": WEIGHTS, "power": p}

    def found(basis: str, denoise: Callable[[Tensor, Tensor], Tensor], **changes: Any) -> float:
        settings = training("gsure", basis, **changes)
        whole = expectation(settings, denoise, **common)
        with monkeypatch.context() as patch:
            patch.setattr(objectives, "DIVERGENCE_RANGE", 0.0)
            return 1 - expectation(settings, denoise, **common) / whole

    common["maps"] = torch.ones(1, *SHAPE, dtype=DTYPE)
    assert found("fourier", lambda u, sigma: gain * u) == pytest.approx(share, rel=1e-5)

    common["maps"] = unit_maps(2)
    normal = sense(common["maps"], MASK).dense()
    normal = normal.mH @ normal
    for lam in (0.3, 0.6):
        inverse = torch.linalg.inv(normal + lam * torch.eye(N))
        g = normal @ inverse
        wiener = p * g @ torch.linalg.inv(p * g @ g + sigma_t**2 * torch.eye(N))
        amplification = float(torch.linalg.eigvalsh(inverse).max())
        assert 0 < found("sense", Linear(wiener, 0 * wiener), lambda_min=lam) < share * amplification


def test_a_trace_that_is_taken_more_rarely_counts_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four items with the same numbers at sigma_t = 2 sigma0 one has its trace: the mean is that of all four."""
    g = torch.Generator().manual_seed(0)
    maps, mask = unit_maps(2).expand(4, -1, -1, -1), MASK.expand(4, 1, 1, -1).double()
    y = mask * torch.randn(1, 2, *SHAPE, dtype=DTYPE, generator=g).expand(4, -1, -1, -1)
    batch = MeasuredBatch(y, mask, maps, WEIGHTS.expand(4, 1, 1, -1), torch.full((4,), SIGMA0, dtype=torch.float64))
    level, shown = torch.full((4,), 2 * SIGMA0, dtype=torch.float64), []

    def denoise(u: Tensor, sigma: Tensor) -> Tensor:
        shown.append(len(u))
        return Linear.random(1)(u, sigma)

    def values(numbers: list[float], basis: str) -> Tensor:
        monkeypatch.setattr(objectives, "complex_noise", lambda like, _: torch.ones_like(like))
        monkeypatch.setattr(objectives, "unit_phase", lambda like, _: torch.ones_like(like))
        monkeypatch.setattr(objectives, "uniform", lambda like, _: torch.tensor(numbers))
        return gsure(denoise, batch, level, torch.Generator(), training("gsure", basis))

    for basis in ("sense", "fourier"):
        some, none = values([0.9, 0.24, 0.26, 0.5], basis), values([0.9] * 4, basis)
        with monkeypatch.context() as patch:
            patch.setattr(objectives, "DIVERGENCE_RANGE", 2.0)
            whole = values([0.9] * 4, basis)
        torch.testing.assert_close(some.mean(), whole.mean())
        torch.testing.assert_close(some[[0, 2, 3]], none[[0, 2, 3]])
        assert abs(whole[0] - none[0]) > 0.05
    assert shown == [5, 4, 8] * 2


@pytest.mark.parametrize("basis", ["sense", "fourier"])
def test_for_the_same_input_the_divergence_is_not_needed(basis: str) -> None:
    """With lambda = 0.6, which both allow: the same risk for every denoiser, so the same minimiser."""
    _, arguments, _ = case("gsure", basis)
    for seed in (5, 6):
        one, other = (
            expectation(training(objective, basis, lambda_min=0.6), Linear.random(seed), **arguments)
            for objective in ("gsure", "ambient-tweedie")
        )
        assert one == pytest.approx(other, rel=1e-6)
