"""Samplers and noise grids by themselves; tests/posterior/test_pairs.py has them with guidance."""

import pytest
import torch
from gaussian import SHAPE, denoise, power

from mrgen.physics.fourier import fft2c
from mrgen.posterior.samplers import GRIDS, SAMPLERS, noise_levels


def test_prior_samples_have_the_prior_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    sigmas = noise_levels(20.0, 0.002, 32).double()
    x = sigmas[0] * torch.randn(1_000, *SHAPE, dtype=torch.complex128, generator=generator)
    total = fft2c(SAMPLERS["heun"](denoise, x, sigmas, generator)).abs().square().mean(0)
    assert (total / power()).sub(1).abs().max() < 0.15  # standard error 0.03 a pixel


@pytest.mark.parametrize("grid", list(GRIDS))
def test_noise_levels_fall_from_end_to_end(grid: str) -> None:
    sigmas = noise_levels(5.0, 0.01, 20, grid)
    assert len(sigmas) == 20
    assert sigmas[0] == pytest.approx(5.0)
    assert sigmas[-1] == pytest.approx(0.01, rel=1e-4)
    assert (sigmas.diff() < 0).all()


def test_noise_levels_are_spaced_as_their_names_say() -> None:
    rho = noise_levels(5.0, 0.01, 20, "karras").double() ** (1 / 7)
    ratio = noise_levels(5.0, 0.01, 20, "log").double()
    alpha_bar = 1 / (1 + noise_levels(5.0, 0.01, 20, "cosine").double().square())
    for even in (rho, ratio.log(), alpha_bar.sqrt().acos()):
        assert even.diff().std() < 1e-5 * even.diff().abs().mean()


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
