"""The log: bins of equal probability, means against a direct sum, the table, and the same whenever it is added to."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.prior.distributed import Processes
from mrgen.prior.progress import BINS, INTERVALS, Log, Recent, bin_edges
from mrgen.prior.train import draw_sigma
from mrgen.settings import Training

TRAINING = Training(sigma_min=1e-6, sigma_max=1e6, sigma_median=0.3, sigma_spread=1.2)


def test_every_bin_gets_as_many_items() -> None:
    sigma_t = draw_sigma(torch.zeros(6000), TRAINING, torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.bucketize(sigma_t, bin_edges(TRAINING)), minlength=BINS)
    assert ((counts - 1000).abs() <= 2).all()  # the levels are stratified
    assert float(bin_edges(TRAINING)[BINS // 2 - 1]) == pytest.approx(TRAINING.sigma_median)


def items(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    return draw_sigma(torch.zeros(4), TRAINING, g), torch.randn(4, generator=g)


def test_the_table_holds_the_means_of_its_intervals(tmp_path: Path) -> None:
    steps = 3 * INTERVALS + 50  # so that intervals differ in length
    log = Log.empty(TRAINING, steps)
    for step in range(steps):
        log.add(step, *items(step))
    log.write(tmp_path / "prior.safetensors")
    with (tmp_path / "prior.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:4] == ["step", "items", "risk", "sigma < 0.094"]
    assert rows[0][6] == "0.3 to 0.5"
    assert len(rows) == 1 + INTERVALS
    first = 0
    for row in rows[1:]:
        last = int(row[0])
        assert last - first in (3, 4)
        sigma_t, risk = (torch.cat(parts) for parts in zip(*(items(s) for s in range(first, last)), strict=True))
        assert int(row[1]) == len(risk)
        assert float(row[2]) == pytest.approx(float(risk.mean()), abs=1e-5)
        edges = [0, *bin_edges(TRAINING).tolist(), math.inf]
        for (low, high), mean in zip(pairwise(edges), row[3:], strict=True):
            inside = risk[(sigma_t > low) & (sigma_t <= high)]
            assert (mean == "") == (len(inside) == 0)
            if mean:
                assert float(mean) == pytest.approx(float(inside.mean()), abs=1e-5)
        first = last
    assert first == steps
    assert (tmp_path / "prior.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("steps", [1, 7, 200, 201, 399, 20_000])
def test_rows_end_where_the_next_begin(steps: int) -> None:
    log = Log.empty(TRAINING, steps)
    for step in range(steps):
        log.sums[step * len(log.sums) // steps, 0, 0] += 1
    assert [row[0] for row in log.rows()] == log.sums[:, 0, 0].cumsum(0).tolist()
    assert len(log.rows()) == min(steps, INTERVALS)


def filled(reports: list[int]) -> Log:
    """The log of 24 updates, each in two parts, entered whenever `reports` says."""
    log, recent = Log.empty(TRAINING, 24), Recent([], [])
    for step in range(24):
        sigma_t, risk = items(step)
        for part in range(2):
            recent.add(part == 0, sigma_t, torch.arange(part, 4, 2), risk[part::2])
        if step + 1 in reports:
            recent.move(log, step + 1, Processes("cpu"), "p")
    return log


def test_the_log_does_not_depend_on_when_it_is_added_to() -> None:
    whole = Log.empty(TRAINING, 24)
    for step in range(24):
        whole.add(step, *items(step))
    for reports in ([24], [1, 5, 6, 24], list(range(25))):
        assert torch.equal(filled(reports).sums, whole.sums)


def test_a_risk_that_is_not_finite_is_named() -> None:
    recent = Recent([], [])
    for value in (1.0, 2.0, math.inf):
        recent.add(True, torch.ones(1), torch.tensor([0]), torch.tensor([value]))
    with pytest.raises(MrgenError, match=r"loss of prior is not finite at step 13;"):
        recent.move(Log.empty(TRAINING, 20), 13, Processes("cpu"), "prior")
