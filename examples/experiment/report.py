"""The record of the experiment, one JSON file, and the tables made from it.

Figures of a row with several seeds are averaged over them for each scan first. Intervals are those of the mean over
scans under resampling of the people (95 %, percentile bootstrap), as slices of one person are alike; the gap to the
oracle is taken scan by scan.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Container
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiment.data import COILS, SIGMA
from experiment.plan import ARM_ROWS, CLASSICAL, NOMINAL, ROWS, Experiment, Size, key
from experiment.work import best_lambdas, write_json
from mrgen import __version__

RESAMPLES = 4000
LAMBDAS = "lambdas.json"  # in the work folder, of a record that was restored

Record = dict[str, Any]
Values = dict[tuple[int, float], float]  # by scan and R


def record(experiment: Experiment) -> Record:
    """Everything that is complete: settings, how each prior came about, and the figures of each scan."""
    size, figures, priors = experiment.size, {}, {}
    keys = list(CLASSICAL) + [key(*row) for row in experiment.rows()]
    for name in keys:
        files = experiment.figures(name)
        if all(file.exists() for file in files):
            figures[name] = [{"scan": n, **row} for n, file in enumerate(files) for row in json.loads(file.read_text())]
        if (story := experiment.prior(name).with_suffix(".json")).exists():
            priors[name] = json.loads(story.read_text())
    tuned, earlier = sorted((experiment.folder / "tuning").glob("*.json")), experiment.folder / LAMBDAS
    lambdas = {f"{method} R={r:g}": value for (method, r), value in best_lambdas(tuned).items()}
    if not tuned and earlier.exists():
        lambdas = json.loads(earlier.read_text())
    return {
        "mrgen": __version__,
        "size": _plain(size),
        "people": len({head.person for head in experiment.heads(test=False)}),
        "test_scans": experiment.tests,
        "sigma": SIGMA,
        "coils": COILS,
        "arms": [dataclasses.asdict(arm) for arm in experiment.arms],
        "protocol_of_gsure_fourier": _settings(experiment),
        "em_of_em_gsure": experiment.protocol(ROWS["em-gsure"], NOMINAL, 0).em.model_dump(mode="json"),
        "recipe": size.recipe.model_dump(mode="json"),
        "lambdas": lambdas,
        "priors": priors,
        "figures": figures,
    }


def restore(experiment: Experiment, earlier: Record) -> None:
    """Put what a record holds into a new work folder; one with figures is left as it is.

    Raises ValueError for a record of another size, or of other settings of the training.
    """
    own = _plain(experiment.size)
    alike = all(earlier["size"][name] == own[name] for name in ("matrix", "scans", "rs", "updates"))
    if not alike or earlier["test_scans"] != experiment.tests:
        raise ValueError("the record is of an experiment of another size")
    before, now = earlier["protocol_of_gsure_fourier"], _settings(experiment)
    if any(now[part].get(name) != value for part in ("network", "training") for name, value in before[part].items()):
        raise ValueError("its priors were trained with other settings: start anew, without --record")
    if (experiment.folder / "figures").exists():
        return
    found: dict[Path, object] = {experiment.folder / LAMBDAS: earlier["lambdas"]}
    for name, story in earlier["priors"].items():
        found[experiment.prior(name).with_suffix(".json")] = story
    for name, rows in earlier["figures"].items():
        for n, file in enumerate(experiment.figures(name)):
            found[file] = [{k: v for k, v in row.items() if k != "scan"} for row in rows if row["scan"] == n]
    for file, content in found.items():
        write_json(file, content)


def _settings(experiment: Experiment) -> Record:
    """What all rows train with, but for what the plan says of each."""
    return experiment.protocol(ROWS["gsure-fourier"], NOMINAL, 0).model_dump(mode="json", exclude={"description"})


def _plain(size: Size) -> Record:
    """What is told of it, as it comes back from JSON."""
    told = {k: v for k, v in dataclasses.asdict(size).items() if k not in ("recipe", "protocol")}
    plain: Record = json.loads(json.dumps(told))
    return plain


def values(record: Record, name: str, figure: str) -> Values:
    """By scan and R, averaged over the seeds that there are."""
    found: dict[tuple[int, float], list[float]] = {}
    for seed in range(record["size"]["seeds"]):
        for row in record["figures"].get(name + (f"-seed{seed}" if seed else ""), []):
            found.setdefault((row["scan"], row["R"]), []).append(row[figure])
    return {place: float(np.mean(each)) for place, each in found.items()}


def people(record: Record) -> dict[int, int]:
    """The person of each test scan."""
    return {row["scan"]: row["person"] for rows in record["figures"].values() for row in rows}


def interval(by_scan: dict[int, float], person: dict[int, int]) -> tuple[float, float, float]:
    """Mean over the scans, and its 95 % interval under resampling of the people."""
    who = sorted({person[scan] for scan in by_scan})
    total, count = (np.zeros(len(who)) for _ in range(2))
    for scan, value in by_scan.items():
        total[who.index(person[scan])] += value
        count[who.index(person[scan])] += 1
    drawn = np.random.default_rng(0).multinomial(len(who), np.full(len(who), 1 / len(who)), RESAMPLES)
    means: NDArray[np.float64] = drawn @ total / (drawn @ count)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(total.sum() / count.sum()), float(low), float(high)


def _table(record: Record, names: list[str], cell: Callable[[str, float], str]) -> list[str]:
    rs = record["size"]["rs"]
    lines = ["| | " + " | ".join(f"R = {r:g}" for r in rs) + " |", "|---" * (len(rs) + 1) + "|"]
    shown = [name for name in names if name in record["figures"]]
    return lines + [f"| {name} | " + " | ".join(cell(name, r) for r in rs) + " |" for name in shown]


def markdown(record: Record) -> str:
    """The tables of a record; rows that are not complete are left out."""
    person, oracle = people(record), values(record, "oracle", "psnr")

    def quality(name: str, r: float) -> str:
        psnr, ssim = (values(record, name, figure) for figure in ("psnr", "ssim"))
        mean, low, high = interval({scan: v for (scan, at), v in psnr.items() if at == r}, person)
        return f"{mean:.2f} [{low:.2f}, {high:.2f}] ({np.mean([v for (_, at), v in ssim.items() if at == r]):.3f})"

    def gap(name: str, r: float, among: Container[int] = person) -> str:
        psnr = values(record, name, "psnr")
        if not oracle:
            return ""
        each = {scan: oracle[scan, at] - v for (scan, at), v in psnr.items() if at == r and scan in among}
        mean, low, high = interval(each, person)
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"

    seeds = range(1, record["size"]["seeds"])
    learned = [name for name in ROWS if name != "oracle"]
    several = [name for name in ROWS if any(f"{name}-seed{seed}" in record["figures"] for seed in seeds)]
    arms = [f"{name}{suffix}" for name in ARM_ROWS for suffix in ["", *(f"@{arm['name']}" for arm in record["arms"])]]
    lines = [
        f"{record['test_scans']} test scans of {len(set(person.values()))} people; {record['size']['scans']} training "
        f"scans of {record['people']} people; {record['size']['updates']} updates; mean of "
        f"{record['recipe']['samples']} samples. Several seeds: {', '.join(several) or 'none'}.",
        "",
        "PSNR in dB [95 % interval over people] (SSIM)",
        "",
        *_table(record, [*CLASSICAL, *ROWS], quality),
        "",
        "dB below the oracle [95 % interval over people]",
        "",
        *_table(record, learned, gap),
    ]
    if oracle:
        noise = {row["scan"]: row["sigma0"] for row in record["figures"]["oracle"]}
        middle = float(np.median(list(noise.values())))
        for which, scans in (
            ("quieter", {scan for scan, sigma0 in noise.items() if sigma0 <= middle}),
            ("noisier", {scan for scan, sigma0 in noise.items() if sigma0 > middle}),
        ):
            if scans:  # not where all are alike
                lines += ["", f"dB below the oracle, the {len(scans)} {which} test scans", ""]
                lines += _table(record, learned, partial(gap, among=scans))
    if any("@" in name for name in record["figures"]):
        lines += ["", "Learned from other scans, or told what is not so: dB below the oracle", ""]
        lines += _table(record, arms, gap)
    return "\n".join(lines) + "\n"
