"""Sampling probabilities of measured masks, and the weights 1 / Pr that GSURE takes from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.physics.masks import sampling_mask, sampling_probability
from mrgen.prior.weights import gsure_weights, line_probability
from mrgen.settings import Sampling


def test_lines_that_are_never_sampled_are_refused_but_for_the_edge() -> None:
    probability = torch.full((40,), 0.5)
    probability[[0, 1, 38, 39]] = 0
    weights = gsure_weights(probability)
    torch.testing.assert_close(weights[2:38], torch.full((36,), 2.0))
    assert weights[[0, 1, 38, 39]].max() == 0
    probability[17] = 0
    with pytest.raises(MrgenError, match=r"1 of 40 phase-encode lines \(the first is 17\) are never sampled"):
        gsure_weights(probability)


def test_zero_filled_lines_do_not_change_the_acceleration_that_is_assumed() -> None:
    """A scan whose outer lines the scanner left out keeps fewer lines than R says; its weights are still R's."""
    sampling = Sampling(acceleration=(2.0, 3.0, 4.0), center_fraction=(0.1, 0.08, 0.06))
    for r in sampling.acceleration:
        mask = sampling_mask(sampling.pattern, 368, r, sampling.fraction(r), np.random.RandomState(0))
        mask[:34] = mask[-34:] = 0
        expected = sampling_probability(sampling.pattern, 368, r, sampling.fraction(r))
        torch.testing.assert_close(line_probability(mask, sampling), expected)


def test_a_known_acceleration_is_believed() -> None:
    sampling = Sampling(acceleration=(2.0, 4.0), center_fraction=0.08)
    mask = sampling_mask(sampling.pattern, 368, 2.0, 0.08, np.random.RandomState(0))
    expected = sampling_probability(sampling.pattern, 368, 4.0, 0.08)
    assert torch.equal(line_probability(mask, sampling, 4.0), expected)


def test_a_scan_far_from_the_protocols_acceleration_is_refused() -> None:
    mask = torch.zeros(64)
    mask[::8] = 1
    mask[28:36] = 1
    with pytest.raises(MrgenError, match="15 of 64 lines, which no R of the protocol"):
        line_probability(mask, Sampling(acceleration=(2.0,), center_fraction=0.08))


def test_what_has_no_weights_is_refused() -> None:
    with pytest.raises(MrgenError, match="samples points"):
        line_probability(torch.ones(48, 40), Sampling(pattern="poisson-disc"))
    with pytest.raises(MrgenError, match=r"Poisson-disc mask .* has no closed form, so GSURE has no weights for it"):
        line_probability(torch.ones(40), Sampling(pattern="poisson-disc"))
    with pytest.raises(MrgenError, match="cannot sample 64 lines with R = 4: a centre of"):
        line_probability(torch.ones(64), Sampling(acceleration=(4.0,), center_fraction=0.5), 4.0)
