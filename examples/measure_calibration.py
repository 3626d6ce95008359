"""How well the spread of posterior samples tells the error, before and after calibration, on people never seen.

    python examples/measure_calibration.py mrgen/prior/head.safetensors oracle.safetensors \\
        --images brain_t1_slices.npz -o calibration

writes calibration.json and calibration.md. Scans are simulated as for training (examples/train_bundled_prior.py) from
the people it keeps for validation, `--scans` of each, and undersampled with fastMRI's equispaced masks at each R. All
priors see the same scans, masks and seeds. Every person is held against a factor fitted without any scan of that
person: on all scans of the others, by mrgen.review.uncertainty. Figures are means over people, who count alike,
+- the 95 % interval of Student's t over people.

Errors are those of the mean of n magnitudes, in the body (reference above 10 % of its 99th percentile), against two
references: the noise-free image |S^H F^H k|, and the same with the noise of the full scan, which is all that a measured
scan has. Columns:

    before      coverage by mean +- 1.645 std; exact: with the factor that n exact Gaussian samples need
    after       coverage with the factor fitted on the other people
    noisy       after, where both the fit and the test are against the noisy reference
    rank        Spearman's correlation of error and std; own: the same with a sample in place of the truth and the
                others in place of all, which is what the spread itself expects, however right or wrong it is
    region      Spearman's correlation of local rms values of error and std, in a Gaussian window of std 2 pixels
    AUSE        area under the sparsification error; own: as for rank
    rms         rms error over what std and the error of the mean predict: 1 if the spread is right
    withheld    the same from withheld lines, without ground truth (mrgen.posterior.check)

`--acs 24` takes coil maps from as many lines at the centre of the full scan in place of those that the mask keeps.

Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor
from train_bundled_prior import FIRST_VALIDATION_SUBJECT, TEMPLATE, Head, coil_images, simulate_scan

from mrgen.physics.masks import sampling_mask
from mrgen.posterior.antithetic import moments
from mrgen.posterior.check import check_withheld
from mrgen.posterior.reconstruct import draw
from mrgen.prior.files import Prior, load_prior
from mrgen.review.metrics import body
from mrgen.review.output import finite
from mrgen.review.uncertainty import (
    ause,
    calibrated_factor,
    coverage,
    exact_factor,
    guaranteed_coverage,
    local_rms,
    rank_correlation,
    relative_error,
)
from mrgen.scans.prepare import default_center_fraction, prepare_slice
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe, load

SHARE, GAUSSIAN, WINDOW = 0.9, 1.645, 2.0
COLUMNS = ("before", "exact", "after", "noisy", "rank", "rank_own", "region", "ause", "ause_own", "rms", "withheld")
PERCENT = ("before", "exact", "after", "noisy")
Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Case:
    """A simulated scan, and whose it is."""

    person: int
    number: int
    noisy: Tensor  # raw k-space (coil, ky, kx)
    clean: Tensor  # its noise-free part


def simulated(images: Path, each: int, matrix: Sequence[int] | None, seed: int, device: str) -> list[Case]:
    """`each` scans of every person kept for validation, of slices spread over the slab without its edges."""
    with np.load(images) as data:
        pixels, subjects = data["slices"], data["subject"]
    position = np.arange(len(pixels)) % 10  # ten slices a person
    canvas, matrices = TEMPLATE
    cases = []
    for person in np.unique(subjects[subjects >= FIRST_VALIDATION_SUBJECT]).tolist():
        inner = np.flatnonzero((subjects == person) & (position > 0) & (position < 9))
        for number, index in enumerate(inner[np.linspace(0, len(inner) - 1, each + 2).round().astype(int)[1:-1]]):
            head: Head = (pixels[index], (canvas, ((matrix[0], matrix[1]),) if matrix else matrices))
            generator = torch.Generator().manual_seed(seed * 1_000_000 + 1_000 * person + number)
            cases.append(Case(person, number, *simulate_scan(head, generator, device)))
    return cases


def prepared(case: Case, acceleration: float, acs: int | None, seed: int) -> tuple[Slice, Array]:
    """The undersampled slice, and its noise-free magnitude (y, x)."""
    *_, n_y, n_x = case.noisy.shape
    rng = np.random.RandomState([seed, case.person, case.number])
    mask = sampling_mask("equispaced", n_x, acceleration, default_center_fraction(acceleration), rng)
    centre = None
    if acs is not None:
        centre = case.noisy[:, n_y // 2 - 24 : n_y // 2 + 24, n_x // 2 - acs // 2 : n_x // 2 + acs // 2]
    slice_ = prepare_slice(
        case.noisy, None, undersample=mask.to(case.noisy.device), calibration=centre, keep_reference=True
    )
    combined = (slice_.maps.conj() * coil_images(case.noisy, case.clean)).sum(0)
    return slice_, (combined.abs() * slice_.sigma0).numpy(force=True)


def measure(slice_: Slice, truth: Array, prior: Prior, recipe: Recipe, generator: torch.Generator) -> dict[str, Any]:
    """The figures of one scan; `relative` and `relative_noisy` are e / s of the pixels in the body."""
    samples = draw(slice_, prior, recipe, generator)

    def again(given: Slice, n: int) -> Tensor:
        return draw(given, prior, recipe.model_copy(update={"samples": n}), generator)

    check = check_withheld(slice_, again, generator, recipe.antithetic)
    assert slice_.reference is not None
    inside, n = body(truth), recipe.samples
    images = samples.abs().numpy(force=True).astype(np.float64)
    magnitudes = images[:, inside]
    whole, variance, of_mean = (m.numpy() for m in moments(torch.from_numpy(images), recipe.antithetic))
    local = [local_rms(v, inside, WINDOW) for v in (whole - truth, np.sqrt(variance))]
    mean, std = whole[inside], np.sqrt(variance[inside])
    error, noisy = abs(mean - truth[inside]), abs(mean - slice_.reference.numpy(force=True)[inside])
    own = []
    for i, one in enumerate(magnitudes):
        others = np.delete(magnitudes, [i, i ^ 1] if recipe.antithetic else i, axis=0)
        centre, square, _ = moments(torch.from_numpy(others), recipe.antithetic)
        own.append((abs(one - centre.numpy()), square.sqrt().numpy()))
    return {
        "sigma0": slice_.sigma0,
        "lines": int(slice_.mask.sum()),
        "rmse": math.sqrt((error**2).mean()),
        "before": coverage(error, std, GAUSSIAN),
        "exact": coverage(error, std, exact_factor(n, SHARE, recipe.antithetic)),
        "rank": rank_correlation(error, std),
        "rank_own": float(np.mean([rank_correlation(e, s) for e, s in own])),
        "region": rank_correlation(*local),
        "ause": ause(error, std),
        "ause_own": float(np.mean([ause(e, s) for e, s in own])),
        "rms": math.sqrt((error**2).mean() / (variance + of_mean)[inside].mean()),
        "withheld": None if check is None else check["ratio"],
        "relative": relative_error(error, std),
        "relative_noisy": relative_error(noisy, std),
    }


def cross_fit(rows: list[dict[str, Any]]) -> None:
    """Add to each row its coverage `after` by a factor of the other people, and `noisy`."""
    for row in rows:
        others = [other for other in rows if other["person"] != row["person"]]
        for name, key in (("after", "relative"), ("noisy", "relative_noisy")):
            factor = calibrated_factor([other[key] for other in others], SHARE)
            row[name] = float((row[key] <= factor).mean())


def over_people(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> tuple[float, float]:
    """Mean over people of the mean over their scans, and half the 95 % interval; NaN for fewer than two people."""
    people: dict[int, list[float]] = {}
    for row in rows:
        found = value(row)
        if found is not None:
            people.setdefault(row["person"], []).append(found)
    means = [float(np.mean(values)) for values in people.values()]
    if len(means) < 2:
        return float(np.mean(means)) if means else float("nan"), float("nan")
    return float(np.mean(means)), float(student.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5)


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one prior at one R, over people."""
    scans = len(rows)
    figures: dict[str, Any] = {name: over_people(rows, lambda row, name=name: row[name]) for name in COLUMNS}  # type: ignore[misc]
    figures["rmse"] = over_people(rows, lambda row: row["rmse"])
    figures["factor"] = calibrated_factor([row["relative"] for row in rows], SHARE)
    figures["factor_noisy"] = calibrated_factor([row["relative_noisy"] for row in rows], SHARE)
    people = len({row["person"] for row in rows})
    return {
        "people": people,
        "scans": scans,
        "guaranteed": guaranteed_coverage(SHARE, scans - scans // people),
        **figures,
    }


def table(summaries: dict[tuple[str, float], dict[str, Any]]) -> str:
    """In Markdown."""
    lines = ["| prior | R | factor | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 3) + "|"]
    for (name, r), figures in summaries.items():
        cells = []
        for column in COLUMNS:
            mean, half = figures[column]
            scale, form = (100, ".1f") if column in PERCENT else (1, ".2f")
            cells.append(f"{scale * mean:{form}} ± {scale * half:{form}}")
        lines.append(f"| {name} | {r:g} | {figures['factor']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True, help="brain_t1_slices.npz")
    parser.add_argument("--R", type=float, nargs="+", default=[4.0, 6.0, 8.0, 10.0], help="accelerations (4 6 8 10)")
    parser.add_argument("--scans", type=int, default=4, help="of each person (4)")
    parser.add_argument("--matrix", type=int, nargs=2, help="ky and kx of all scans (those of training, at random)")
    parser.add_argument("--acs", type=int, help="lines for the coil maps (those that the mask keeps)")
    parser.add_argument("--recipe", default="posterior")
    parser.add_argument("--samples", type=int, help="n (the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path, required=True, help="written with .json and with .md")
    args = parser.parse_args(given)

    recipe = load(Recipe, args.recipe)
    recipe = recipe.model_copy(update={"samples": args.samples or recipe.samples})
    priors = {path.stem: load_prior(path, args.device, amp=args.device != "cpu") for path in args.priors}
    cases = simulated(args.images, args.scans, args.matrix, args.seed, args.device)
    rows: dict[tuple[str, float], list[dict[str, Any]]] = {(name, r): [] for name in priors for r in args.R}
    for case in cases:
        for r in args.R:
            slice_, truth = prepared(case, r, args.acs, args.seed)
            for name, prior in priors.items():
                generator = torch.Generator().manual_seed(args.seed)
                row = {"person": case.person, "scan": case.number, **measure(slice_, truth, prior, recipe, generator)}
                rows[name, r].append(row)
                print(f"person {case.person}, R = {r:g}, {name}: before {row['before']:.1%}", flush=True)
    for group in rows.values():
        cross_fit(group)
    summaries = {key: summarise(group) for key, group in rows.items()}
    text = table(summaries)
    print(text)
    args.out.with_suffix(".md").write_text(text + "\n")
    record = {
        "notice": "Research use only. Not for diagnostic use.",
        "recipe": recipe.model_dump(),
        "priors": {name: prior.sha256 for name, prior in priors.items()},
        "seed": args.seed,
        "acs": args.acs,
        "matrix": args.matrix,
        "mean_and_half_interval": [{"prior": name, "R": r, **figures} for (name, r), figures in summaries.items()],
        "each": [
            {"prior": name, "R": r, **{key: value for key, value in row.items() if not key.startswith("relative")}}
            for (name, r), group in rows.items()
            for row in group
        ],
    }
    args.out.with_suffix(".json").write_text(json.dumps(finite(record), indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
