"""Rules for lambda against dense algebra and brute force."""

import math
from dataclasses import replace

import gaussian
import pytest
import torch
from torch import Tensor

from mrgen.physics.operators import sense
from mrgen.posterior.baselines import cg_sense
from mrgen.posterior.regularisation import REACH, SHARE, choose, discrepancy, prediction_error
from mrgen.prior.heldout import withhold
from mrgen.scans.scan import Slice


def scan(mask: Tensor | None = None, seed: int = 0) -> Slice:
    """A 48 x 40 image of falling spectrum behind smooth maps, every third line and a centre."""
    g, (n_y, n_x) = torch.Generator().manual_seed(seed), (48, 40)
    y, x = torch.linspace(-1, 1, n_y)[:, None], torch.linspace(-1, 1, n_x)[None]
    maps = torch.stack([torch.exp(-((y - a) ** 2) - (x - b) ** 2) + 0j for a in (-1, 1) for b in (-1, 1)])
    maps = (maps / maps.abs().square().sum(0).sqrt()).to(torch.complex64)
    image = ((y.abs() < 0.7) & (x.abs() < 0.6)) * (1 + 0.5 * torch.sin(9 * y) * torch.cos(7 * x)) + 0j
    if mask is None:
        mask = torch.zeros(n_x)
        mask[::3] = 1
        mask[16:24] = 1
    blank = Slice(torch.zeros_like(maps), mask, maps, 0.1, 1.0, None)
    noise = 0.1 * torch.randn(maps.shape, dtype=torch.complex64, generator=g)
    return replace(blank, kspace=blank.operator().forward(image.to(torch.complex64)) + mask * noise)


def solve(slice_: Slice, regularisation: float) -> Tensor:
    return cg_sense(slice_, regularisation, 30)


def test_the_discrepancy_of_the_true_image_is_1() -> None:
    c = gaussian.case()
    a = c.slice_.operator()
    truth = c.mean
    noise = torch.randn(200, 3, *gaussian.SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    kspace = a.forward(truth) + gaussian.SIGMA0 * c.slice_.mask * noise
    found = [discrepancy(truth, replace(c.slice_, kspace=k)) for k in kspace]
    assert sum(found) / 200 == pytest.approx(1, abs=0.03)  # standard error 0.008
    assert [prediction_error(truth, replace(c.slice_, kspace=k), c.slice_.mask) for k in kspace] == pytest.approx(found)


@pytest.mark.parametrize("start", [0.002, 0.02, 3.0])
def test_discrepancy_brings_the_residual_to_the_noise(start: float) -> None:
    slice_ = scan()
    choice = choose("discrepancy", solve, slice_, start)
    assert choice.chosen_by == "discrepancy"
    assert discrepancy(solve(slice_, choice.regularisation), slice_) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("best", [-3, 0, 5])
def test_held_out_lines_are_predicted_best_by_the_choice(best: int) -> None:
    """Images that are off by more, the further lambda is from 0.01 * 2^best; only the lines given are shown."""
    slice_ = scan()
    truth, seen = solve(slice_, 0.01), set()

    def distorted(given: Slice, regularisation: float) -> Tensor:
        seen.add(int(given.mask.sum()))
        return truth * (1 + 0.3 * abs(math.log2(regularisation / 0.01) - best))

    choice = choose("held-out", distorted, slice_, 0.01)
    assert choice.chosen_by == "held-out lines"
    assert math.log2(choice.regularisation / 0.01) == pytest.approx(best)
    given, withheld = withhold(slice_, SHARE, torch.Generator().manual_seed(0))
    assert seen == {int(given.mask.sum())} != {int(slice_.mask.sum())}
    matrix, wanted = sense(slice_.maps, torch.ones(40)), withheld > 0
    residual = (slice_.kspace - matrix.forward(truth))[..., wanted]
    expected = float(residual.abs().square().mean()) / slice_.sigma0**2
    assert prediction_error(truth, slice_, withheld) == pytest.approx(expected, rel=1e-4)


def test_points_are_withheld_where_points_are_sampled() -> None:
    mask = (torch.rand(48, 40, generator=torch.Generator().manual_seed(3)) < 0.3).float()
    mask[18:30, 14:26] = 1
    slice_ = scan(mask)
    given, withheld = withhold(slice_, 0.25, torch.Generator().manual_seed(0))
    outside = mask.sum() - 144
    assert withheld.sum() == pytest.approx(float(0.25 * outside), abs=0.02 * float(outside))
    assert withheld[18:30, 14:26].sum() == 0
    assert torch.equal(given.mask + withheld, mask)
    assert torch.equal(given.kspace, slice_.kspace * given.mask)
    assert choose("held-out", solve, slice_, 0.01).chosen_by.startswith("held-out lines")


def test_where_no_line_can_be_withheld_the_discrepancy_decides_and_says_so() -> None:
    mask = torch.zeros(40)
    mask[10:30] = 1
    choice = choose("held-out", solve, scan(mask), 0.01)
    assert choice.chosen_by.startswith("discrepancy, as no line")
    assert choice.regularisation == choose("discrepancy", solve, scan(mask), 0.01).regularisation


def test_a_search_that_finds_no_end_says_so() -> None:
    empty = replace(scan(), kspace=0.01 * scan().kspace)  # less than the noise, whatever lambda is
    choice = choose("discrepancy", solve, empty, 0.01)
    assert choice.regularisation == 0.01 * 2**REACH
    assert "at the end of the search" in choice.chosen_by
