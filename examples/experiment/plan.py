"""What is run, in order of priority.

A row of the tables is a way to train, applied to an arm (what is learned from), with a seed (weights, batches, noise of
training and sampling; the scans stay). With N = `Size.updates`, every row has N updates of the same network in all:

    oracle, gsure-*, ambient    N
    em-gsure                    N / 2 of gsure-fourier, then two rounds of N / 4
    em-gsure-4                  N / 2 of gsure-fourier, then four rounds of N / 8; -ahead: the last two extrapolated;
                                -quiet: of the scans with less noise, one half, where wrong beliefs go faster
    em-gaussian                 round 1 from scratch, N / 2, then two rounds of N / 4
    em-gaussian-5               round 1 from scratch, N / 4, then four of 3 N / 16
    em-gaussian-7               round 1 from scratch, N / 4, then six of N / 8
    em-gaussian-11              round 1 from scratch, N / 4, then ten of 3 N / 40
        -quiet                  as above
        -flow                   samples go back by the flow of the prior before they are learned from
        -ahead                  as above, from the third round on
        -relaxed                steps of the M-step 1.5 times as long
    *-coarse                    network trained, and samples drawn, down to sigma = 0.01 and not to SIGMA_MIN, which is
                                below the noise of every scan
    diffem                      conditional networks: round 1 from scratch, 3 N / 8, then N / 4; the prior, 3 N / 8

unless EM ends earlier because a round bettered nothing. `ensemble` is gsure-fourier, sampled through masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiment import data, work
from experiment.data import Arm, Head, Scans
from experiment.schedule import Job
from mrgen.settings import EM, Network, Protocol, Recipe, Training, load

TEST_SEED, TUNING_SEED = 9_000_000, 8_000_000
CLASSICAL = ("zero-filled", "cg-sense", "l1-wavelet")


@dataclass(frozen=True)
class Size:
    """How large the experiment is; `recipe` evaluates, `em_recipe` is the name or file of that of the E-steps."""

    matrix: tuple[int, int] = (208, 176)
    scans: int = 1200
    tests: int | None = None  # all usable slices
    tuning: int = 6
    rs: tuple[float, ...] = (4.0, 6.0, 8.0, 10.0)
    updates: int = 8000
    seeds: int = 3  # of the two headline rows
    protocol: dict[str, Any] = field(default_factory=dict)  # what differs from protocols/head.toml
    em: dict[str, Any] = field(default_factory=lambda: {"held_out_slices": 16})
    em_recipe: str = "em"
    recipe: Recipe = field(default_factory=lambda: load(Recipe, "posterior"))
    l1_iterations: int = 100
    sampling_processes: int = 4  # on a GPU, in up to 14 GB each


# The same with a quarter of the scans, half of the updates and a smaller network, so that all of it can be run.
SHORT = Size(
    scans=300,
    updates=4000,
    protocol={"network": Network(widths=(64, 96, 128), blocks=1)},
    sampling_processes=1,
)

TINY = Size(
    matrix=(64, 64),
    scans=4,
    tests=2,
    tuning=1,
    rs=(4.0, 6.0),
    updates=8,
    seeds=2,
    protocol={
        "network": Network(widths=(16,), blocks=1),
        "training": Training(batch=2, warmup=1, cg_iterations=3),
    },
    em={"held_out_slices": 2, "held_out_samples": 3},
    recipe=Recipe(description="tiny", steps=2, samples=2, cg_iterations=3),
    l1_iterations=5,
    sampling_processes=2,
)


@dataclass(frozen=True)
class Row:
    """A way to train. `start` is that of EM: another row, or the Gaussian where it is None."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0  # of the updates
    em: bool = False
    start: str | None = None
    rounds: int = 0
    round_share: float = 0.25  # of the updates, for each further round
    diffem: bool = False
    gate: float | None = None  # None: the default
    extrapolation: float = 0.0
    relaxation: float = 1.0
    flow: int = 0
    quietest: float = 1.0  # share of the scans, those of lowest noise, that EM learns from
    of: str | None = None  # the row whose prior it is, sampled in another way
    ensemble: int = 0


SIGMA_MIN, COARSE = 0.003, {"sigma_min": 0.01}
FIVE: dict[str, Any] = {"share": 0.25, "rounds": 5, "round_share": 3 / 16}
SEVEN: dict[str, Any] = {"share": 0.25, "rounds": 7, "round_share": 0.125}
ELEVEN: dict[str, Any] = {"share": 0.25, "rounds": 11, "round_share": 0.075}
QUIET_FLOW: dict[str, Any] = {"quietest": 0.5, "flow": 4}
AHEAD: dict[str, Any] = {**QUIET_FLOW, "extrapolation": 1.0}
ROWS = {
    row.name: row
    for row in (
        Row("oracle", {"objective": "supervised"}),
        Row("gsure-fourier", {"objective": "gsure", "basis": "fourier"}),
        Row("gsure-fourier-half", {"objective": "gsure", "basis": "fourier"}, share=0.5),
        Row("gsure-sense", {"objective": "gsure", "basis": "sense"}),
        Row("ambient", {"objective": "ambient", "basis": "fourier"}),
        Row("em-gsure", em=True, start="gsure-fourier-half", rounds=2),
        Row("em-gaussian", em=True, share=0.5, rounds=3),
        Row("diffem", em=True, share=0.375, rounds=2, diffem=True),
        Row("ensemble", of="gsure-fourier", ensemble=4),
        Row("em-gsure-4", em=True, start="gsure-fourier-half", rounds=4, round_share=0.125),
        Row("em-gsure-4-ahead", em=True, start="gsure-fourier-half", rounds=4, round_share=0.125, extrapolation=1.0),
        Row("em-gsure-4-quiet", em=True, start="gsure-fourier-half", rounds=4, round_share=0.125, quietest=0.5),
        Row("em-gaussian-5", em=True, **FIVE),
        Row("em-gaussian-5-quiet", em=True, **FIVE, quietest=0.5),
        Row("em-gaussian-5-flow", em=True, **FIVE, flow=4),
        Row("em-gaussian-5-quiet-flow", em=True, **FIVE, **QUIET_FLOW),
        Row("em-gaussian-7-quiet-flow", em=True, **SEVEN, **QUIET_FLOW),
        Row("em-gaussian-7-quiet-flow-ahead", em=True, **SEVEN, **AHEAD),
        Row("em-gaussian-7-quiet-flow-ahead-relaxed", em=True, **SEVEN, **AHEAD, relaxation=1.5),
        Row("em-gaussian-11-quiet-flow-ahead-relaxed", em=True, **ELEVEN, **AHEAD, relaxation=1.5),
        Row("oracle-coarse", {"objective": "supervised", **COARSE}),
        Row("em-gaussian-5-quiet-coarse", COARSE, em=True, **FIVE, quietest=0.5),
        Row("em-gsure-ungated", em=True, start="gsure-fourier-half", rounds=2, gate=0.0),
    )
}
# What the headline compares comes first, in case the time is short, and in several seeds.
HEADLINE = ("em-gaussian-7-quiet-flow-ahead-relaxed", "oracle", "em-gaussian-7-quiet-flow-ahead")
MAIN = ("gsure-sense", "diffem", "ambient", "em-gaussian", "em-gsure", "gsure-fourier", "ensemble")
ABLATION = (
    *("em-gaussian-7-quiet-flow", "em-gaussian-5-quiet-flow", "em-gaussian-5-quiet", "em-gaussian-5"),
    *("em-gaussian-5-flow", "em-gaussian-11-quiet-flow-ahead-relaxed"),
    *("oracle-coarse", "em-gaussian-5-quiet-coarse", "em-gsure-4-quiet", "em-gsure-4-ahead", "em-gsure-4"),
    "em-gsure-ungated",
)

_NOMINAL = Scans("nominal")
NOMINAL = Arm("nominal", _NOMINAL)
ARMS = (
    Arm("sigma0-x2", _NOMINAL, told=2),
    Arm("sigma0-x0.5", _NOMINAL, told=0.5),
    Arm("unwhitened", Scans("unwhitened", whitened=False)),
    Arm("one-mask", Scans("one-mask", one_mask=True)),
    Arm("noise-x3", Scans("noise-x3", noise=3)),
    Arm("noise-x10", Scans("noise-x10", noise=10)),
    Arm("R6", Scans("R6", acceleration=6)),
    Arm("R8", Scans("R8", acceleration=8)),
    Arm("scans-50", _NOMINAL, step=2),
    Arm("scans-25", _NOMINAL, step=4),
)
ARM_ROWS = (HEADLINE[0], "gsure-fourier")


@dataclass(frozen=True)
class Experiment:
    """Where everything lies and how large it is. Methods named after kinds of jobs give those jobs."""

    images: Path
    volume: Path | None
    folder: Path
    size: Size
    cores: int = 1  # for the jobs on the CPU
    arms: tuple[Arm, ...] = ARMS
    only: tuple[str, ...] = ()  # rows to run, without other seeds; all without it
    only_arms: tuple[str, ...] = ()  # on which those of them that have arms are run as well

    def scans(self, name: str) -> Path:
        return self.folder / "scans" / name

    def prior(self, key: str) -> Path:
        return self.folder / "priors" / f"{key}.safetensors"

    def figures(self, key: str) -> list[Path]:
        return [self.folder / "figures" / key / f"{n:02d}.json" for n in range(self.tests)]

    @property
    def tests(self) -> int:
        return min(len(self.heads(test=True)), self.size.tests or 10**9)

    def heads(self, test: bool) -> tuple[Head, ...]:
        return data.heads(self.images, self.volume, test)

    def protocol(self, row: Row, arm: Arm, seed: int) -> Protocol:
        size, base = self.size, load(Protocol, "head").model_copy(update=self.size.protocol)
        changes = {"steps": round(row.share * size.updates), "seed": seed, "sigma_min": SIGMA_MIN, **row.training}
        updates = round(row.round_share * size.updates)
        rounds = {
            "recipe": size.em_recipe,
            "updates": updates,
            "extrapolation": row.extrapolation,
            "relaxation": row.relaxation,
            "flow": row.flow,
            "quietest": row.quietest,
            **size.em,
        }
        if row.gate is not None:
            rounds["gate"] = row.gate
        return base.model_copy(
            update={
                "description": f"{row.name}, {arm.name}",
                "sampling": arm.sampling,
                "training": base.training.model_copy(update=changes),
                "em": EM(**rounds),
            }
        )

    def simulation(self, scans: Scans) -> Job:
        count, folder = self.size.scans, self.scans(scans.name)

        def run(part: int, parts: int, device: str) -> None:
            heads = self.heads(test=False)
            for number in range(part, count, parts):
                if not (folder / f"{number:05d}.h5").exists():
                    data.simulate_training(scans, folder, number, heads, self.size.matrix)

        outputs = tuple(folder / f"{number:05d}.h5" for number in range(count))
        return Job(f"simulate/{scans.name}", run, outputs, processes=self.cores, gpu=False)

    def test_simulation(self, name: str, seed: int, count: int) -> Job:
        files = [self.scans(name) / f"{n:02d}.h5" for n in range(count)]

        def run(part: int, parts: int, device: str) -> None:
            heads = self.heads(test=name == "test")
            chosen = np.linspace(0, len(heads) - 1, count).round().astype(int).tolist()
            for number in range(part, count, parts):
                if not files[number].exists():
                    head = heads[chosen[number]]
                    data.simulate_test(self.scans(name), number, head, seed, self.size.rs, self.size.matrix)

        return Job(f"simulate/{name}", run, tuple(files), processes=min(count, self.cores), gpu=False)

    def training(self, row: Row, arm: Arm, seed: int) -> Job:
        protocol, scans = self.protocol(row, arm, seed), self.scans(arm.scans.name)
        out, name = self.prior(key(row, arm, seed)), f"train/{key(row, arm, seed)}"
        outputs, needs = (out, out.with_suffix(".json")), [f"simulate/{arm.scans.name}"]
        if not row.em:
            return Job(name, _alone(partial(work.train_prior, protocol, scans, arm, out)), outputs, (*needs,))
        start = None
        if row.start is not None:
            first = key(ROWS[row.start], arm, seed)
            start = self.prior(first)
            needs.append(f"train/{first}")
        run = partial(work.better_prior, protocol, scans, arm, start, row.rounds, row.diffem, out)
        return Job(name, _alone(run), outputs, (*needs,), self.size.sampling_processes)

    def evaluation(self, row: Row, arm: Arm, seed: int) -> Job:
        trained = key(ROWS[row.of or row.name], arm, seed)
        recipe = self.size.recipe
        if row.ensemble:
            recipe = recipe.model_copy(update={"ensemble": row.ensemble, "covariance": "residual"})
        tests = [self.scans("test") / f"{n:02d}.h5" for n in range(self.tests)]
        outs = self.figures(key(row, arm, seed))

        def run(part: int, parts: int, device: str) -> None:
            work.evaluate_prior(self.prior(trained), recipe, seed, tests[part::parts], outs[part::parts], device)

        processes = min(len(tests), self.size.sampling_processes)
        needs = ("simulate/test", f"train/{trained}")
        return Job(f"evaluate/{key(row, arm, seed)}", run, tuple(outs), needs, processes, target=True)

    def classical(self) -> list[Job]:
        tuned = [self.folder / "tuning" / f"{n:02d}.json" for n in range(self.size.tuning)]

        def tune(part: int, parts: int, device: str) -> None:
            for path in tuned[part::parts]:
                if not path.exists():
                    work.tune_classical(self.scans("tuning") / f"{path.stem}.h5", self.size.l1_iterations, path)

        def evaluate(part: int, parts: int, device: str) -> None:
            todo = [(method, out) for method in CLASSICAL for out in self.figures(method)]
            for method, out in todo[part::parts]:
                if not out.exists():
                    file = self.scans("test") / f"{out.stem}.h5"
                    work.evaluate_classical(method, tuned, self.size.l1_iterations, file, out)

        outs = tuple(out for method in CLASSICAL for out in self.figures(method))
        needs = ("simulate/test", "tune/classical")
        return [
            Job("tune/classical", tune, tuple(tuned), ("simulate/tuning",), min(len(tuned), self.cores), gpu=False),
            Job("evaluate/classical", evaluate, outs, needs, min(len(outs), self.cores), gpu=False, target=True),
        ]

    def rows(self) -> list[tuple[Row, Arm, int]]:
        """All that is evaluated, in order of priority."""
        robustness = [(ROWS[name], arm, 0) for name in ARM_ROWS for arm in self.arms]
        if self.only:
            chosen = [(ROWS[name], NOMINAL, 0) for name in self.only]
            return chosen + [r for r in robustness if r[0].name in self.only and r[1].name in self.only_arms]
        headline = [(ROWS[name], NOMINAL, seed) for seed in range(self.size.seeds) for name in HEADLINE]
        main, ablation = ([(ROWS[name], NOMINAL, 0) for name in names] for names in (MAIN, ABLATION))
        return headline + main + robustness + ablation

    def jobs(self) -> list[Job]:
        """Every job of the experiment; see `wanted` of experiment.schedule for what of it is run."""
        rows = self.rows()
        jobs = [self.simulation(NOMINAL.scans), self.test_simulation("test", TEST_SEED, self.tests)]
        jobs += [self.evaluation(*row) for row in rows]
        tuning, evaluation = self.classical()
        jobs += [self.test_simulation("tuning", TUNING_SEED, self.size.tuning), tuning, evaluation]
        for row, arm, seed in rows:
            jobs.append(self.simulation(arm.scans))
            if row.start is not None:
                jobs.append(self.training(ROWS[row.start], arm, seed))
            jobs.append(self.training(ROWS[row.of or row.name], arm, seed))
        first: dict[str, Job] = {}
        for job in jobs:
            first.setdefault(job.name, job)
        return list(first.values())


def key(row: Row, arm: Arm, seed: int) -> str:
    """The name of a prior or of an evaluation in files and jobs."""
    return row.name + ("" if arm is NOMINAL else f"@{arm.name}") + (f"-seed{seed}" if seed else "")


def _alone(run: Callable[[str], None]) -> Callable[[int, int, str], None]:
    """A job whose processes share the work by themselves, or that has one."""
    return lambda part, parts, device: run(device)
