"""Samplers against the analytic posterior of a Gaussian: mean, std and covariance, not only shapes."""

import pytest
import torch
from gaussian import SHAPE, case, denoise, power

from mrgen.posterior.proximal import Proximal
from mrgen.posterior.samplers import SAMPLERS, noise_levels

COUNT = 1_000  # relative standard error of a complex std: 1 / (2 sqrt(1000)) = 1.6 % a pixel, 0.3 % over 48 pixels

# steps needed to be within 5 % in std; Euler's bias falls as 1 / steps
STEPS = {"ddim": 128, "multistep": 40, "heun": 32, "ancestral": 150, "decoupled": 6}


def draw(name: str, steps: int, guided: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples (n, N), the exact mean (N,) and covariance (N, N)."""
    c = case()
    generator = torch.Generator().manual_seed(0)
    sigmas = noise_levels(20.0, 0.002, steps).double()
    x = sigmas[0] * torch.randn(COUNT, *SHAPE, dtype=torch.complex128, generator=generator)
    stochastic = generator if name == "decoupled" else None
    posterior = Proximal(denoise, c.slice_, power(), iterations=25, draw=stochastic)
    samples = SAMPLERS[name](posterior if guided else denoise, x, sigmas, generator).flatten(1)
    return samples, c.mean.flatten(), c.covariance


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_posterior_mean_std_and_covariance(name: str) -> None:
    samples, mean, covariance = draw(name, STEPS[name], guided=True)
    sd = covariance.diagonal().real.sqrt()
    assert ((samples.mean(0) - mean).abs() / sd).max() < 0.14  # 48 pixels, standard error 0.03 each
    assert ((samples.mean(0) - mean).abs() / sd).square().mean().sqrt() < 0.05
    found = samples.std(0)
    assert abs(float((found / sd).mean()) - 1) < 0.05
    centred = samples - samples.mean(0)
    correlation = (centred.T @ centred.conj() / COUNT) / (sd[:, None] * sd[None])
    exact = covariance / (sd[:, None] * sd[None])
    assert (correlation - exact).abs().max() < 0.2


@pytest.mark.parametrize("name", ["ddim", "multistep", "heun", "ancestral"])
def test_prior_samples_have_the_prior_spectrum(name: str) -> None:
    samples, _, _ = draw(name, STEPS[name], guided=False)
    total = samples.abs().square().mean()
    assert float(total) == pytest.approx(float(power().mean()), rel=0.1)


def test_few_euler_steps_underestimate_the_std() -> None:
    """The known bias that the step counts above guard against: a mutant of this test suite's power."""
    samples, _, covariance = draw("ddim", 16, guided=True)
    ratio = (samples.std(0) / covariance.diagonal().real.sqrt()).mean()
    assert ratio < 0.95


def test_noise_levels_fall_from_end_to_end() -> None:
    sigmas = noise_levels(5.0, 0.01, 20)
    assert len(sigmas) == 20
    assert sigmas[0] == pytest.approx(5.0)
    assert sigmas[-1] == pytest.approx(0.01, rel=1e-4)
    assert (sigmas.diff() < 0).all()


def test_last_step_returns_the_last_update() -> None:
    """Every sampler ends with what the denoiser says at the last level, not with the iterate before it."""
    for sampler in SAMPLERS.values():
        seen = []

        def spy(x: torch.Tensor, sigma: torch.Tensor, seen: list = seen) -> torch.Tensor:
            seen.append((float(sigma[0]), torch.full_like(x, len(seen))))
            return seen[-1][1]

        out = sampler(spy, torch.zeros(1, 2, 2, dtype=torch.complex64), noise_levels(1.0, 0.1, 4), torch.Generator())
        assert seen[-1][0] == pytest.approx(0.1)
        assert torch.equal(out, seen[-1][1])
