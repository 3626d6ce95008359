"""The log of a training: the estimated risk by noise level, summed over intervals of updates; as a table and a plot.

Bin j of BINS holds the noise levels between two quantiles of the log-normal distribution that they are drawn from, so
that each gets as many items. The intervals are a function of the number of updates alone, and items are added in their
order, so that a resumed run has the log of an uninterrupted one.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.prior.distributed import Processes
from mrgen.prior.objectives import beside
from mrgen.settings import Training

INTERVALS = 200  # rows of the table, at most
BINS = 6


def bin_edges(training: Training) -> Tensor:
    """The noise levels (BINS - 1,) between the bins."""
    quantile = torch.arange(1, BINS) / BINS
    z = math.sqrt(2) * torch.erfinv(2 * quantile - 1)
    return training.sigma_median * torch.exp(training.sigma_spread * z)


@dataclass(frozen=True)
class Log:
    """`sums` (interval, bin, 2) float64: number of items of a noise-level bin in an interval, sum of their risks."""

    sums: Tensor
    steps: int  # of the whole training
    edges: Tensor

    @classmethod
    def empty(cls, training: Training, steps: int) -> Log:
        return cls(torch.zeros(min(steps, INTERVALS), BINS, 2, dtype=torch.float64), steps, bin_edges(training))

    def add(self, step: int, sigma_t: Tensor, risk: Tensor) -> None:
        """Enter the risks of the items (batch,) of update `step`, counted from 0, with their noise levels."""
        interval = self.sums[step * len(self.sums) // self.steps]
        entries = torch.stack([torch.ones_like(risk), risk], dim=1).double()
        interval.index_add_(0, torch.bucketize(sigma_t, self.edges), entries)

    def rows(self) -> list[list[float]]:
        """For each interval that has begun: its last update, items, mean risk, mean risk of each bin (NaN if empty)."""
        rows = []
        for number, bins in enumerate(self.sums):
            items, total = bins.sum(0).tolist()
            if items:
                last = -(-(number + 1) * self.steps // len(self.sums))
                rows.append([last, int(items), total / items, *(bins[:, 1] / bins[:, 0]).tolist()])
        return rows

    def write(self, out: Path) -> None:
        """The table, <out>.csv, and the plot, <out>.png; each appears as a whole."""
        edges = [f"{edge:.2g}" for edge in self.edges.tolist()]
        names = [f"sigma < {edges[0]}", *(f"{a} to {b}" for a, b in pairwise(edges)),
                 f"sigma > {edges[-1]}"]  # fmt: skip
        rows = self.rows()
        with _replacing(out.with_suffix(".csv")) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "items", "risk", *names])
            for step, items, *risks in rows:
                writer.writerow([step, items, *("" if math.isnan(r) else f"{r:.6g}" for r in risks)])
        _plot(out, rows, names)


def _plot(out: Path, rows: list[list[float]], names: list[str]) -> None:
    from matplotlib import colormaps  # here, as it is slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        points = [(row[0], row[3 + number]) for row in rows if not math.isnan(row[3 + number])]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), color=colormaps["viridis"](number / BINS), lw=1,
                  label=name)  # fmt: skip
    axes.plot([row[0] for row in rows], [row[2] for row in rows], color="0.2", label="all")
    scale = "symlog" if any(r <= 0 for row in rows for r in row[2:]) else "log"
    axes.set(xlabel="update", ylabel="estimated risk per pixel", yscale=scale)
    axes.set_title(f"{out.stem}: by noise level", fontsize=9)
    axes.legend(fontsize=7, ncols=2)
    with _replacing(out.with_suffix(".png")) as partial:
        figure.savefig(partial, dpi=120, format="png")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Somewhere to write what takes the place of `path` when it is complete."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    os.replace(partial, path)


@dataclass
class Recent:
    """The risks since the last report; they stay on the GPU, which is not waited for until they are needed."""

    levels: list[Tensor]  # of each step: the noise levels (batch,) of all its items
    risks: list[Tensor]  # of each step: the risks (batch,) of the items of this process, 0 for the others

    def add(self, new: bool, levels: Tensor, places: Tensor, risk: Tensor) -> None:
        """Enter the risks of the items at `places` of a `new` step, or of the one at hand."""
        if new:
            self.levels.append(levels)
            self.risks.append(torch.zeros(len(levels), device=risk.device))
        self.risks[-1].index_add_(0, beside(places, risk), risk)

    def move(self, log: Log, step: int, processes: Processes, name: str) -> float:
        """Enter all into `log`, `step` steps being done; gives their mean. Raises MrgenError if one is not finite."""
        risks = processes.sum(torch.cat(self.risks).cpu())
        parts = torch.split(risks, [len(sigma_t) for sigma_t in self.levels])
        for number, (sigma_t, risk) in enumerate(zip(self.levels, parts, strict=True), start=step - len(parts)):
            if not risk.isfinite().all():
                raise MrgenError(f"the loss of {name} is not finite at step {number + 1}; lower the learning rate")
            log.add(number, sigma_t, risk)
        self.levels.clear()
        self.risks.clear()
        return float(risks.mean())
