"""Samples of a prior by itself: the power of a Gaussian one, sample i alone, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c
from mrgen.posterior.batch import Batch
from mrgen.posterior.samplers import noise_levels
from mrgen.posterior.unconditional import RESTART_LEVELS, RESTART_RATIO, RESTARTS, unconditional_samples
from mrgen.prior.gaussian import Gaussian
from mrgen.prior.spectrum import BINS, Rings

SHAPE = (32, 28)
SIGMA_MIN, SIGMA_MAX = 0.1, 20.0
# Power from 900 in the centre, as of a head, where the noise at sigma_max has 400, to that of the noise at sigma_min.
GAUSSIAN = Gaussian(torch.logspace(math.log10(900), -2, BINS))


def start_power(p: Tensor) -> Tensor:
    """Of x_t at sigma_max after the restarts: Euler steps of the ODE scale each point of k-space."""

    def d(sigma: Tensor | float) -> Tensor:
        return p / (p + sigma**2)

    high = noise_levels(SIGMA_MAX, SIGMA_MAX / RESTART_RATIO, RESTART_LEVELS)
    v = torch.full_like(p, SIGMA_MAX**2)
    for _ in range(RESTARTS):
        for now, after in pairwise(high):
            v = (d(now) + after / now * (1 - d(now))) ** 2 * v
        v = d(high[-1]) ** 2 * v + SIGMA_MAX**2
    return v


def test_samples_of_a_gaussian_have_its_power_spectrum() -> None:
    """Ring by ring within 4 standard errors, and 1 % for the finite number of levels."""
    n = 400
    levels = noise_levels(SIGMA_MAX, SIGMA_MIN, 60)
    k = fft2c(unconditional_samples(GAUSSIAN, (n, *SHAPE), levels, seed=0, batch=Batch(n)))
    p = GAUSSIAN.power(SHAPE)
    present = start_power(p) / (p + SIGMA_MAX**2)
    assert present.min() > 0.7  # and with noise alone:
    assert SIGMA_MAX**2 / (p.max() + SIGMA_MAX**2) < 0.35
    expected = present * p**2 / (p + SIGMA_MIN**2)
    assert expected[0, 0] < 0.55 * p[0, 0]  # as the power that is open at sigma_min is missing

    rings = Rings(torch.ones(SHAPE), SHAPE)
    ratio = (rings.total(k.abs().square().mean(0) / expected) / rings.count)[rings.known]
    error = 1 / (n * rings.count[rings.known]).sqrt()  # of a mean of independent exponentials
    assert ((ratio - 1).abs() < 4 * error + 0.01).all()
    noise = (p / n).sqrt()  # of means of k, of its pseudo-power and of neighbouring samples' products, at one point
    assert (k.mean(0).abs() < 5 * noise).all()
    assert (k.square().mean(0).abs() < 5 * noise * p.sqrt()).all()
    assert ((k[1:] * k[:-1].conj()).mean(0).abs() < 5 * noise * p.sqrt()).all()


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    levels = noise_levels(SIGMA_MAX, SIGMA_MIN, 6)

    def draw(n: int, seed: int, images: int) -> Tensor:
        return unconditional_samples(GAUSSIAN, (n, *SHAPE), levels, seed, batch=Batch(images))

    five = draw(5, seed=3, images=2)
    torch.testing.assert_close(draw(2, seed=3, images=1), five[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(draw(5, seed=3, images=2), five, rtol=0, atol=0)
    assert not torch.isclose(draw(5, seed=4, images=2), five).any(-1).any()
    assert (five[1:] - five[:-1]).abs().mean() > 0.5 * five.abs().mean()


def test_progress_counts_every_image_that_is_denoised() -> None:
    seen: list[tuple[int, int]] = []
    levels = noise_levels(SIGMA_MAX, SIGMA_MIN, 5)
    unconditional_samples(GAUSSIAN, (3, *SHAPE), levels, 0, progress=lambda *now: seen.append(now), batch=Batch(2))
    calls = RESTARTS * RESTART_LEVELS + 5
    assert seen == [(3 * call + done, 3 * calls) for call in range(calls) for done in (2, 3)]


def test_nan_is_refused() -> None:
    with pytest.raises(MrgenError, match="diverged"):
        unconditional_samples(lambda x, sigma: x / 0, (1, *SHAPE), noise_levels(SIGMA_MAX, SIGMA_MIN, 3), 0)
