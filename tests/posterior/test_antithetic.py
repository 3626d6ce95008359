"""Antithetic pairs: the noise of DrawPerSample, and mean and variance without bias."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mrgen.posterior.antithetic import moments
from mrgen.posterior.draws import DrawPerSample
from mrgen.prior.draws import complex_noise


def noise(n: int, antithetic: bool) -> Tensor:
    draws = DrawPerSample(torch.Generator().manual_seed(0), antithetic)
    return complex_noise(torch.empty(n, 5, 400, dtype=torch.complex64), draws)


def test_the_second_of_a_pair_has_the_noise_of_the_first_with_the_other_sign() -> None:
    independent, pairs = noise(3, False), noise(6, True)
    assert torch.equal(pairs[::2], independent)
    assert torch.equal(pairs[1::2], -independent)
    for n in (1, 2, 5):  # how many there are does not matter to one of them
        assert torch.equal(noise(n, True), pairs[:n])


def pairs_of(correlation: float, n: int, repetitions: int, complex_values: bool) -> Tensor:
    """n samples of variance 4 about 3, of which two and two have a correlation."""
    dtype = torch.complex128 if complex_values else torch.float64
    generator = torch.Generator().manual_seed(1)
    odd, even = torch.randn(2, n // 2, repetitions, dtype=dtype, generator=generator)
    a, c = 2 * ((1 - correlation) / 2) ** 0.5 * odd, 2 * ((1 + correlation) / 2) ** 0.5 * even
    return 3 + torch.stack([c + a, c - a], dim=1).flatten(0, 1)


@pytest.mark.parametrize("correlation", [-1.0, -0.8, 0.0, 0.5])
@pytest.mark.parametrize("complex_values", [False, True])
def test_the_moments_have_no_bias_whatever_the_correlation(correlation: float, complex_values: bool) -> None:
    values = pairs_of(correlation, 6, 40_000, complex_values)
    mean, variance, of_mean = moments(values, antithetic=True)
    assert torch.allclose(mean, values.mean(0))
    assert float(variance.mean()) == pytest.approx(4, rel=0.02)
    assert float(of_mean.mean()) == pytest.approx(float((mean - 3).abs().square().mean()), rel=0.03, abs=1e-12)


def test_of_independent_samples_they_are_the_usual_ones() -> None:
    values = torch.randn(5, 7, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    mean, variance, of_mean = moments(values, antithetic=False)
    assert torch.equal(mean, values.mean(0))
    assert torch.equal(variance, values.var(0))
    assert torch.equal(of_mean, values.var(0) / 5)


def test_a_single_pair_tells_what_its_two_differ_by() -> None:
    mean, variance, of_mean = moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), antithetic=True)
    assert mean.tolist() == [2, 5]
    assert variance.tolist() == [1, 0]
    assert of_mean.tolist() == [0, 0]
    with pytest.raises(ValueError, match="expected pairs, found 3 samples"):
        moments(torch.zeros(3, 2), antithetic=True)
