"""The linear-Gaussian posterior and half-quadratic splitting against their closed forms."""

from dataclasses import replace

import gaussian
import pytest
import torch
from gaussian import SHAPE, SIGMA0, case, denoise, power
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.operators import Fourier
from mrgen.posterior.antithetic import moments
from mrgen.posterior.draws import DrawPerSample
from mrgen.posterior.splitting import CONVERGED, gaussian_posterior, split

N = SHAPE[0] * SHAPE[1]


def test_gaussian_posterior_is_the_exact_mean() -> None:
    c = case()
    found = gaussian_posterior(c.slice_, 2, 200, None, power())
    torch.testing.assert_close(found, c.mean.expand(2, -1, -1), rtol=1e-6, atol=1e-7)


def test_draws_of_the_gaussian_posterior_have_its_variance() -> None:
    c, n = case(), 4_000
    samples = gaussian_posterior(c.slice_, n, 40, torch.Generator().manual_seed(1), power())
    variance = c.covariance.diagonal().real.reshape(SHAPE)
    centred = samples - c.mean
    assert (centred.mean(0).abs() / variance.sqrt()).max() < 0.08  # standard error 0.016
    assert (centred.abs().square().mean(0) / variance - 1).abs().max() < 0.08  # standard error 0.016
    flat = centred.flatten(1)
    scale = variance.sqrt().flatten()
    error = flat.T @ flat.conj() / n - c.covariance
    assert (error.abs() / scale[:, None] / scale[None]).max() < 0.08


def test_antithetic_draws_of_the_gaussian_posterior_have_its_mean_whatever_their_number() -> None:
    c = case()
    single = replace(c.slice_, kspace=c.slice_.kspace.to(torch.complex64), maps=c.slice_.maps.to(torch.complex64))
    draws = DrawPerSample(torch.Generator().manual_seed(2), antithetic=True)
    samples = gaussian_posterior(single, 4, 60, draws, power().float())
    mean, variance, of_mean = moments(samples, antithetic=True)
    scale = c.covariance.diagonal().real.reshape(SHAPE).sqrt()
    assert ((mean - c.mean).abs() / scale).max() < 0.01
    assert (of_mean.sqrt() / scale).max() < 0.01
    assert 0.5 < (variance.sqrt() / scale).mean() < 1.5


def fixed_point(c: gaussian.Case, sigma: float, regularisation: float) -> Tensor:
    """(A^H A / sigma0^2 + lambda / sigma^2 (I - W)) x = A^H y / sigma0^2 with Wiener's filter W = P / (P + sigma^2)."""
    a, f = c.slice_.operator().dense(), Fourier(SHAPE).dense()
    wiener = f.mH @ torch.diag(power().flatten() / (power().flatten() + sigma**2) + 0j) @ f
    system = a.mH @ a / SIGMA0**2 + regularisation / sigma**2 * (torch.eye(N) - wiener)
    return torch.linalg.solve(system, a.mH @ c.slice_.kspace.flatten() / SIGMA0**2).reshape(SHAPE)


def iterate(c: gaussian.Case, sigmas: list[float], regularisation: float, iterations: int = 2000) -> Tensor:
    start, levels = torch.zeros(SHAPE, dtype=torch.complex128), torch.tensor(sigmas, dtype=torch.float64)
    found = split(c.slice_, denoise, start, levels, regularisation, iterations=iterations, cg_iterations=60)
    assert found.converged
    assert found.changes[-1] < CONVERGED <= min(found.changes[len(sigmas) - 1 : -1], default=1)
    return found.image


@pytest.mark.parametrize("regularisation", [0.25, 1.0])
@pytest.mark.parametrize("sigmas", [[0.2], [2.0, 1.0, 0.5, 0.2]], ids=["red", "pnp"])
def test_splitting_converges_to_the_solution_of_a_linear_system(
    sigmas: list[float], regularisation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrgen.posterior.splitting.CONVERGED", 1e-8)
    monkeypatch.setitem(globals(), "CONVERGED", 1e-8)
    c = case()
    found = iterate(c, sigmas, regularisation)
    torch.testing.assert_close(found, fixed_point(c, 0.2, regularisation), rtol=0, atol=1e-5)


def test_with_lambda_1_it_is_the_posterior_mean_of_the_blurred_prior() -> None:
    c = case()
    torch.testing.assert_close(
        fixed_point(c, 0.2, 1.0), gaussian_posterior(c.slice_, 1, 200, None, power() + 0.04)[0], rtol=0, atol=1e-7
    )


def test_it_stops_when_told_and_says_that_it_has_not_converged() -> None:
    c, told = case(), []
    levels = torch.tensor([2.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    start = torch.zeros(SHAPE, dtype=torch.complex128)
    found = split(
        c.slice_,
        denoise,
        start,
        levels,
        1.0,
        iterations=3,
        cg_iterations=20,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(found.changes) == 3
    assert found.changes[0] == pytest.approx(1)  # from an image of zeros
    assert not found.converged


def test_nan_is_told() -> None:
    c = case()
    start = torch.zeros(SHAPE, dtype=torch.complex128)
    with pytest.raises(MrgenError, match="diverged"):
        split(c.slice_, lambda x, _: x * torch.nan, start, torch.tensor([0.2]), 1.0, iterations=3, cg_iterations=2)
