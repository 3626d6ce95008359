"""The factor that turns a posterior spread into an interval, fitted on fully sampled scans, one for each R.

Each scan is undersampled and reconstructed as `mrgen recon` does it, and e / s of mrgen.review.uncertainty is taken in
the body (mrgen.review.metrics) against the coil combination of the fully sampled scan. That reference holds noise, so
the interval is one for what the fully sampled scan would have shown, noise included; for the image without noise it is
a little wide. Nothing is assumed of the noise or of the samples: the guarantee rests on the scans alone.

Between two R the logarithm of the factor is linear in log R; R beyond the ones calibrated, by more than `REACH`, are
refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.review.figure import NOTICE
from mrgen.review.folder import replacing
from mrgen.review.metrics import body, spread_scores
from mrgen.review.output import Result, finite
from mrgen.review.uncertainty import (
    Values,
    calibrated_factor,
    exact_factor,
    guaranteed_coverage,
    relative_error,
    without_one,
)
from mrgen.settings import Recipe

FORMAT = "mrgen-calibration-1"
REACH = 0.1  # relative: achieved R differ from nominal ones by a few percent
MEANING = (
    "factor: mean +- factor std covers `coverage` of the body's pixels of the fully sampled scan's coil combination, "
    "noise included, averaged over the calibration scans, which count alike. guaranteed: the least that it covers of a "
    "new scan that is exchangeable with them, on average (conformal risk control). before: the coverage of +- 1.645 "
    "std; exact: with the factor that n exact Gaussian samples would need; after: of each scan with the factor of the "
    "others. rank_correlation (Spearman) and ause: of error and std in the body. All are means over scans."
)


@dataclass(frozen=True)
class Level:
    """What was found at one R; coverages, rank correlation and AUSE are means over scans."""

    R: float  # as asked for
    achieved: float  # mean over scans of the R that the masks have
    factor: float
    scans: int
    slices: int
    guaranteed: float
    before: float
    exact: float
    after: float | None  # None for a single scan
    rank_correlation: float
    ause: float
    map_sets: list[int]  # numbers of sets of coil maps that its slices had


@dataclass(frozen=True)
class Calibration:
    """Factors by R for one prior, recipe and number of samples."""

    coverage: float
    samples: int
    recipe: str  # SHA-256 of its settings
    recipe_name: str
    prior: str | None  # SHA-256
    levels: tuple[Level, ...]  # by rising R
    sha256: str  # of the file

    @property
    def map_sets(self) -> set[int]:
        """Numbers of sets of coil maps that the calibration's slices had."""
        return {sets for level in self.levels for sets in level.map_sets}

    def refuse_other(self, recipe: Recipe, prior: str | None) -> None:
        """Raises MrgenError for another recipe, number of samples or prior than those of the calibration."""
        if recipe.samples != self.samples:
            raise MrgenError(
                f"--calibration is for n = {self.samples} samples, this run has {recipe.samples}: calibrate with that "
                "--samples, or leave it out"
            )
        if recipe_digest(recipe) != self.recipe:
            raise MrgenError(
                f"--calibration is for recipe {self.recipe_name!r} as it was then, and this recipe has other settings: "
                "calibrate with it"
            )
        if prior != self.prior:
            raise MrgenError(
                f"--calibration is for the prior {(self.prior or 'none')[:12]}, this run has {(prior or 'none')[:12]}: "
                "calibrate with it"
            )

    def factor(self, acceleration: float) -> float:
        """The factor for an achieved R. Raises MrgenError for one beyond those calibrated."""
        known = np.array([level.achieved for level in self.levels])
        if not known[0] * (1 - REACH) <= acceleration <= known[-1] * (1 + REACH):
            raise MrgenError(
                f"--calibration is for R = {known[0]:.2f} to {known[-1]:.2f}, this scan has {acceleration:.2f}: "
                "calibrate at it with mrgen calibrate --R"
            )
        factors = np.log([level.factor for level in self.levels])
        return float(np.exp(np.interp(np.log(acceleration), np.log(known), factors)))


@dataclass(frozen=True)
class Scored:
    """One scan: e / s of its pixels in the body, and what its spread covers and tells before calibration."""

    relative: Values
    slices: int
    achieved: float
    before: float
    exact: float
    rank_correlation: float
    ause: float
    map_sets: list[int]  # of each slice


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of all settings that decide on the images."""
    return hashlib.sha256(recipe.model_dump_json(exclude={"description"}).encode()).hexdigest()


def score_result(result: Result, share: float) -> Scored:
    """Hold the std of a result against the error to its reference; it has to have both.

    Raises ValueError for a reference without a body.
    """
    assert result.std is not None
    assert result.reference is not None
    assert result.samples is not None
    image = result.images["reconstruction"]
    figures = spread_scores(image, result.std, result.reference)
    inside = body(result.reference)
    relative = relative_error(np.abs(image - result.reference)[inside], result.std[inside])
    return Scored(
        relative,
        len(image),
        result.acceleration,
        float((relative <= ndtri((1 + share) / 2)).mean()),
        float((relative <= exact_factor(result.samples, share, result.antithetic)).mean()),
        figures["rank_correlation"],
        figures["ause"],
        result.map_sets,
    )


def fit_level(acceleration: float, scans: Sequence[Scored], share: float) -> Level:
    """The factor of one R. Raises ValueError as `calibrated_factor` does."""
    relative = [scan.relative for scan in scans]

    def mean(name: str) -> float:
        return float(np.mean([getattr(scan, name) for scan in scans]))

    return Level(
        R=acceleration,
        achieved=mean("achieved"),
        factor=calibrated_factor(relative, share),
        scans=len(scans),
        slices=sum(scan.slices for scan in scans),
        guaranteed=guaranteed_coverage(share, len(scans)),
        before=mean("before"),
        exact=mean("exact"),
        after=float(np.mean(without_one(relative, share))) if len(scans) > 1 else None,
        rank_correlation=mean("rank_correlation"),
        ause=mean("ause"),
        map_sets=sorted({sets for scan in scans for sets in scan.map_sets}),
    )


def write_calibration(
    path: Path,
    levels: Sequence[Level],
    *,
    share: float,
    recipe: Recipe,
    recipe_name: str,
    prior: str | None,
    mask: str,
    seed: int,
) -> None:
    """Write what `read_calibration` reads; `mask` says in words how the scans were undersampled. Raises MrgenError."""
    record = {
        "format": FORMAT,
        "notice": NOTICE,
        "mrgen_version": __version__,
        "meaning": MEANING,
        "coverage": share,
        "n_samples": recipe.samples,
        "recipe": {"name": recipe_name, "sha256": recipe_digest(recipe), **recipe.model_dump(mode="json")},
        "prior_sha256": prior,
        "mask": mask,
        "seed": seed,
        "levels": [asdict(level) for level in levels],
    }
    try:
        with replacing([path]) as (partial,):
            partial.write_text(json.dumps(finite(record), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise MrgenError(f"cannot write {path} ({error.strerror}): choose another place") from None


def read_calibration(path: Path) -> Calibration:
    """A file that `mrgen calibrate` wrote. Raises MrgenError."""
    try:
        text = path.read_bytes()
        record: dict[str, Any] = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, not {FORMAT!r}")
        levels = tuple(sorted((Level(**level) for level in record["levels"]), key=lambda level: level.achieved))
        if not levels or not all(level.factor > 0 and level.achieved >= 1 for level in levels):
            raise ValueError("expected a positive factor for one R at least")
        return Calibration(
            float(record["coverage"]),
            int(record["n_samples"]),
            record["recipe"]["sha256"],
            record["recipe"]["name"],
            record["prior_sha256"],
            levels,
            hashlib.sha256(text).hexdigest(),
        )
    except OSError as error:
        raise MrgenError(f"--calibration {path}: cannot read it ({error.strerror}): check the path") from None
    except (ValueError, KeyError, TypeError) as error:
        raise MrgenError(
            f"--calibration {path.name}: not a calibration ({error}): expected a file of mrgen calibrate"
        ) from None
