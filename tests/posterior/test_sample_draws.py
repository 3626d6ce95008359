"""Noise of a sample: SplitMix64 as published, CN(0, 1), independent of company, the same on every device."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from mrgen.posterior.draws import DrawPerSample, complex_normal, random_bits
from mrgen.prior.draws import DrawPerItem, complex_noise, integers, uniform


def draw(n: int, shape: tuple[int, ...] = (50, 60), times: int = 1, seed: int = 3, device: str = "cpu") -> Tensor:
    draws, like = DrawPerSample(torch.Generator().manual_seed(seed)), torch.empty(n, *shape, device=device) + 0j
    for _ in range(times):
        noise = complex_noise(like, draws)
    return noise


def test_the_bits_are_those_of_the_published_generator() -> None:
    """The first five numbers of seed 1234567 of Vigna's reference program, splitmix64.c."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423,
                4593380528125082431, 16408922859458223821]  # fmt: skip
    assert [z % 2**64 for z in random_bits(1234567, torch.arange(5)).tolist()] == expected
    assert torch.equal(random_bits(2**64 - 1, torch.arange(3)), random_bits(-1, torch.arange(3)))


def test_the_noise_is_complex_normal() -> None:
    noise = draw(4, (100_000,))
    for part in (noise.real, noise.imag):
        assert stats.kstest(math.sqrt(2) * part.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(noise.abs().square().flatten().numpy(), "expon").pvalue > 1e-3
    # neighbours, samples, and the conjugate: 4.5 standard errors of 1 / sqrt(n)
    assert abs((noise[:, 1:] * noise[:, :-1].conj()).mean()) < 4.5 / math.sqrt(noise.numel())
    assert (noise @ noise.mH / 1e5 - torch.eye(4)).abs().max() < 4.5 / math.sqrt(1e5)
    assert abs(noise.square().mean()) < 4.5 / math.sqrt(noise.numel())


@pytest.mark.parametrize("columns", [torch.tensor([0, 3, 59]), slice(None)])
def test_columns_are_those_of_all_the_noise(columns: Tensor | slice, monkeypatch: pytest.MonkeyPatch) -> None:
    """From whatever the generator of the samples, of a batch, or of torch is."""
    like, computed = torch.empty((2, 50, 60), dtype=torch.complex64), []

    def counted(seed: int, numbers: Tensor) -> Tensor:
        computed.append(numbers.numel())
        return random_bits(seed, numbers)

    monkeypatch.setattr("mrgen.posterior.draws.random_bits", counted)
    for source in (
        lambda: DrawPerSample(torch.Generator().manual_seed(3)),
        lambda: DrawPerItem([torch.Generator().manual_seed(i) for i in range(2)]),
        lambda: torch.Generator().manual_seed(1),
    ):
        found = [complex_noise(like, source(), wanted) for wanted in (columns, slice(None))]
        assert torch.equal(found[0], found[1][..., columns])
        assert found[1].std() > 0.9
        assert not torch.equal(found[1][0], found[1][1])
    assert computed == [like[..., columns].numel(), like.numel()], "those of a sample alone, and no others"


def test_the_ends_of_the_range_are_finite() -> None:
    bits = torch.tensor([-(2**63), 2**31 - 1, -1, 0, 2**63 - 1, -(2**31)])
    noise = complex_normal(bits)
    assert torch.isfinite(torch.view_as_real(noise)).all()
    assert noise.abs().max() == pytest.approx(math.sqrt(27 * math.log(2)))
    assert noise.abs().min() == 0


def test_a_sample_does_not_depend_on_the_others() -> None:
    few, many = draw(2), draw(5)
    assert torch.equal(few, many[:2])
    assert not torch.equal(many[0], many[1])
    assert torch.equal(draw(2, times=2), draw(4, times=2)[:2])
    assert not torch.equal(draw(2, times=2), few)
    assert not torch.equal(draw(2, seed=4), few)
    assert torch.equal(draw(1, (7,)), draw(1, (9,))[:, :7])


def test_whole_numbers_are_even_over_their_range() -> None:
    draws = DrawPerSample(torch.Generator().manual_seed(0))
    numbers, others = (integers(10, 6000, draws) for _ in range(2))
    assert stats.chisquare(torch.bincount(numbers, minlength=10).numpy()).pvalue > 1e-3
    assert (numbers != others).any()


def test_a_sample_has_no_other_draws() -> None:
    draws = DrawPerSample(torch.Generator())
    with pytest.raises(TypeError):
        uniform(torch.empty(3), draws)
    with pytest.raises(AssertionError, match="float32 noise"):
        complex_noise(torch.empty(3), draws)


@pytest.mark.gpu
def test_a_gpu_draws_the_numbers_of_a_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    torch.testing.assert_close(draw(3, device="cuda").cpu(), draw(3), rtol=1e-6, atol=1e-6)
