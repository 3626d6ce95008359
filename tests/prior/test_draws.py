"""An item's random numbers do not depend on the items that are computed with it."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from tinyset import image, slices
from torch import Tensor

from mrgen.prior.data import TrainingSet
from mrgen.prior.draws import DrawPerItem, complex_noise, draws_of_step, stream, uniform
from mrgen.prior.objectives import OBJECTIVES, CleanBatch, MeasuredBatch
from mrgen.settings import Training

SIGMA = torch.tensor([0.05, 0.1, 0.3, 0.8])


def batch_for(name: str) -> MeasuredBatch | CleanBatch:
    data = TrainingSet.from_images([image(i) for i in range(4)], "") if name == "supervised" else slices(4)
    return data.collate([0, 1, 2, 3])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("places", [[2], [1, 3]])
def test_every_objective_gives_an_item_the_same_risk_in_any_company(name: str, places: list[int]) -> None:
    def risk(batch: MeasuredBatch | CleanBatch, positions: list[int], step: int) -> Tensor:
        draws, training = draws_of_step(7, step, positions, "cpu"), Training(cg_iterations=8)
        return OBJECTIVES[name](lambda u, sigma: 0.3 * u, batch, SIGMA[positions], draws, training)

    whole = batch_for(name)
    part = type(whole)(**{f.name: getattr(whole, f.name)[places] for f in fields(whole)})
    everyone = risk(whole, [0, 1, 2, 3], step=5)
    torch.testing.assert_close(risk(part, places, step=5), everyone[places], rtol=1e-4, atol=1e-6)
    assert ((risk(part, places, step=6) - everyone[places]).abs() > 1e-4).all()


def test_items_draw_numbers_of_their_own() -> None:
    draws, like = draws_of_step(0, 0, range(3), "cpu"), torch.empty(3, 50_000)
    normal, phase = complex_noise(like.to(torch.complex64), draws), uniform(like, draws)
    covariance = normal @ normal.mH / 50_000
    torch.testing.assert_close(covariance, torch.eye(3) + 0j, rtol=0, atol=0.03)  # 6 standard errors
    assert torch.allclose(phase.mean(1), torch.tensor(0.5), atol=0.01)
    assert torch.corrcoef(phase).fill_diagonal_(0).abs().max() < 0.03


def test_a_draw_that_does_not_begin_with_the_batch_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="batch of 3"):
        uniform(torch.empty(2, 3), draws_of_step(0, 0, range(3), "cpu"))


def test_the_batch_may_be_another_axis() -> None:
    items = [torch.Generator().manual_seed(n) for n in range(3)]
    draws = DrawPerItem(items, axis=1)
    found = [complex_noise(torch.empty(2, 3, 4), draws) for _ in range(2)]
    with pytest.raises(AssertionError, match="batch of 3"):
        uniform(torch.empty(3, 2), draws)
    for n in range(3):
        alone = torch.Generator().manual_seed(n)
        assert all(torch.equal(drawn[:, n], torch.randn(2, 4, generator=alone)) for drawn in found)


def test_streams_of_other_keys_differ() -> None:
    keys = [(), (0,), (1,), (0, 1), (1, 0), (0, -1), (0, 0), (11,), (1, 1)]
    assert len({stream(*key).initial_seed() for key in keys}) == len(keys)
    assert torch.equal(torch.rand(3, generator=stream(4, 2)), torch.rand(3, generator=stream(4, 2)))
