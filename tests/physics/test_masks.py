"""Sampling masks against the fastMRI package's own definitions."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.masks import (
    PATTERNS,
    achieved_acceleration,
    acs_lines,
    adjusted_spacing,
    centre_lines,
    sampling_mask,
    sampling_probability,
)
from mrgen.prior.data import gsure_weights

CASES = [(224, 4, 0.08), (224, 8, 0.04), (368, 4, 0.08), (320, 10, 0.04), (171, 6, 0.06), (181, 3.5, 0.1)]


def draw(pattern: str, case: tuple[int, float, float], seeds: Sequence[int]) -> Tensor:
    """Masks (seed, n)."""
    return torch.stack([sampling_mask(pattern, *case, torch.Generator().manual_seed(s)) for s in seeds])


def distinct(masks: Tensor) -> set[tuple[float, ...]]:
    return {tuple(m) for m in masks.tolist()}


@pytest.fixture(scope="module")
def subsample():  # type: ignore[no-untyped-def]
    return pytest.importorskip("fastmri.data.subsample", reason="fastmri is not installed", exc_type=ImportError)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equispaced_is_fastmris_fraction_mask_at_every_offset(subsample, case) -> None:  # type: ignore[no-untyped-def]
    n, acceleration, center_fraction = case
    theirs = subsample.EquispacedMaskFractionFunc([center_fraction], [acceleration])
    offsets = range(round(adjusted_spacing(*case)))
    expected = torch.stack([theirs((1, n, 1), offset=o)[0].flatten() for o in offsets])
    ours = draw("equispaced", case, range(15 * len(offsets)))
    assert distinct(ours) == distinct(expected)
    assert distinct(1 - ours) != distinct(expected), "a complemented mask would not pass"
    torch.testing.assert_close(sampling_probability("equispaced", *case), expected.mean(0))


def test_random_is_fastmris_in_distribution(subsample) -> None:  # type: ignore[no-untyped-def]
    case, draws = (120, 4, 0.08), 3000
    theirs = subsample.RandomMaskFunc([0.08], [4], seed=0)
    expected = torch.stack([theirs((1, 120, 1))[0].flatten() for _ in range(draws)])
    ours = draw("random", case, range(draws))
    noise = (2 * 0.25 * 0.75 / draws) ** 0.5
    assert (ours.mean(0) - expected.mean(0)).abs().max() < 4.5 * noise
    assert ours.sum(1).mean() == pytest.approx(float(expected.sum(1).mean()), rel=0.01)
    assert ours.sum(1).std() == pytest.approx(float(expected.sum(1).std()), rel=0.06)


@pytest.mark.parametrize("case", [(120, 4, 0.08), (96, 8, 0.04), (75, 1, 0.08)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_probability_is_the_mean_mask(pattern: str, case: tuple[int, float, float]) -> None:
    draws = 3000
    mean, expected = draw(pattern, case, range(draws)).mean(0), sampling_probability(pattern, *case)
    assert (mean - expected).abs().max() < 4.5 * 0.5 / draws**0.5
    certain = (expected == 0) | (expected == 1)
    assert torch.equal(mean[certain], expected[certain])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_mask_keeps_its_centre_and_its_r(pattern: str, case: tuple[int, float, float]) -> None:
    n, acceleration, center_fraction = case
    masks = draw(pattern, case, range(200))
    assert masks.unique().tolist() == [0, 1]
    centre = centre_lines(n, center_fraction)
    assert centre.stop - centre.start == round(n * center_fraction)
    assert centre.start <= n // 2 < centre.stop
    assert (masks[:, centre] == 1).all()
    assert float(masks.mean()) == pytest.approx(1 / acceleration, rel=0.03)
    if pattern != "random":  # one mask at a time; a random one scatters
        for mask in masks:
            assert achieved_acceleration(mask) == pytest.approx(acceleration, rel=0.06)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_seed_gives_one_mask(pattern: str) -> None:
    twice = draw(pattern, (224, 4, 0.08), [7, 7])
    assert torch.equal(twice[0], twice[1])
    assert len(distinct(draw(pattern, (224, 4, 0.08), range(30)))) > 3


def test_no_acceleration_keeps_every_line() -> None:
    assert torch.equal(draw("random", (50, 1, 0.08), [0])[0], torch.ones(50))


@pytest.mark.parametrize("n", [16, 15])
def test_acs_lines_are_the_run_through_the_centre(n: int) -> None:
    mask = torch.zeros(n)
    mask[[0, 5, 6, 7, 8, 9, 12]] = 1
    assert acs_lines(mask) == slice(5, 10)
    assert acs_lines(torch.ones(n)) == slice(0, n)
    mask[n // 2] = 0
    assert acs_lines(mask) == slice(n // 2, n // 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_acs_lines_hold_the_centre_of_a_drawn_mask(case: tuple[int, float, float]) -> None:
    n, _, center_fraction = case
    for mask in draw("equispaced", case, range(20)):
        found, centre = acs_lines(mask), centre_lines(n, center_fraction)
        assert found.start <= centre.start
        assert found.stop >= centre.stop
        assert (mask[found] == 1).all()


def test_achieved_acceleration() -> None:
    assert achieved_acceleration(torch.tensor([1.0, 0, 0, 1])) == 2
    assert achieved_acceleration(torch.zeros(4)) == np.inf


def test_errors_say_what_to_do() -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match="unknown mask pattern 'spiral'; there are random, equispaced"):
        sampling_mask("spiral", 100, 4, 0.08, generator)
    with pytest.raises(ValueError, match="unknown mask pattern"):
        sampling_probability("spiral", 100, 4, 0.08)
    with pytest.raises(ValueError, match="R must be at least 1, not 0"):
        sampling_mask("random", 100, 0, 0.08, generator)
    with pytest.raises(ValueError, match="25 of 100 lines alone exceeds 1/R = 1/4: lower the centre fraction or R"):
        sampling_mask("equispaced", 100, 4, 0.25, generator)
    with pytest.raises(ValueError, match="lower the centre fraction or R"):
        sampling_probability("random", 100, 4, 0.5)


def test_fastmris_offsets_never_sample_some_lines() -> None:
    case = (368, 4, 0.08)
    spacing = adjusted_spacing(*case)
    assert (round(spacing, 2), round(spacing)) == (5.38, 5)
    never = sampling_probability("equispaced", *case) == 0
    assert int(never.sum()) == 24, "docs/protocols.md quotes this: 6.5 % of the lines"
    assert torch.equal(draw("equispaced", case, range(200)).sum(0) == 0, never)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_offset_samples_every_line_outside_the_centre_alike(case: tuple[int, float, float]) -> None:
    draws, outside = 4000, torch.ones(case[0], dtype=torch.bool)
    outside[centre_lines(case[0], case[2])] = False
    rate = 1 / adjusted_spacing(*case)
    probability = sampling_probability("equispaced-any-offset", *case)
    torch.testing.assert_close(probability[outside], torch.full_like(probability[outside], rate))
    assert bool((probability[~outside] == 1).all())
    mean = draw("equispaced-any-offset", case, range(draws)).mean(0)
    assert (mean - probability).abs().max() < 4.5 * (rate * (1 - rate) / draws) ** 0.5


def test_gsure_refuses_a_pattern_that_leaves_lines_out() -> None:
    case = (368, 4, 0.08)
    with pytest.raises(MrgenError, match="never sampled by this protocol") as error:
        gsure_weights(sampling_probability("equispaced", *case))
    assert "\n" not in str(error.value)
    probability = sampling_probability("equispaced-any-offset", *case)
    torch.testing.assert_close(gsure_weights(probability) * probability, torch.ones(368))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_offset_leaves_no_line_out(case: tuple[int, float, float]) -> None:
    assert bool((draw("equispaced-any-offset", case, range(400)).sum(0) > 0).all())
