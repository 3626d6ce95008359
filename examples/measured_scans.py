"""Every recipe on every measured head scan of a folder, and pages about it.

    python examples/measured_scans.py ../shared/data/scans -o docs/results/2026-11-30-measured-scans-high-noise

The middle slice of each scan, undersampled as `mrgen recon` does with the same R and seed, one set of coil maps or two
as that chooses by itself. zero-filled, sense, l1-wavelet, tv, gaussian, pnp, red and posterior run; mmps and dps are
slow and run where `--recipe` names them. lambda of sense, l1-wavelet and tv is tuned for each scan and R on the scan's
own reference, which no real reconstruction can do: theirs are upper bounds, the others' are not.

A scan that was undersampled when measured has no reference: its recipes choose lambda as shipped, and the spread is
held against withheld points.

Each reconstruction is kept in the `--work` folder, images and all, as soon as it is finished, the telling ones first:
what is there, by the same recipe, prior and scan, is not run again; remove it after a change of the code. The pages
tell of all that is there and mark what is not. They are rewritten after each R; with `--pages` nothing runs. Pictures
of scans whose licence does not allow it stay in the work folder. Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_methods import L1_GRID, SENSE_GRID, tune
from measured_pages import Cell, write_pages
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.masks import achieved_acceleration
from mrgen.posterior.reconstruct import CLASSICAL, reconstruct
from mrgen.prior.files import Prior, bundled_prior, load_prior
from mrgen.review.metrics import scores, spread_scores
from mrgen.review.run import slice_generator
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import default_center_fraction, prepare, undersampling_mask
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Recipe, Sampling, load

FIRST = ("zero-filled", "sense", "l1-wavelet", "posterior")
THEN = ("tv", "gaussian", "pnp", "red")
GRIDS = {"sense": SENSE_GRID, "l1-wavelet": L1_GRID, "tv": L1_GRID}


@dataclass(frozen=True)
class Case:
    """A scan's middle slice at R, None as measured; prepared when first asked for."""

    scan: Scan
    acceleration: float | None
    seed: int
    device: str = "cpu"

    @property
    def index(self) -> int:
        return self.scan.slices // 2

    @cached_property
    def slice(self) -> Slice:
        undersample = None
        if self.acceleration is not None:
            fraction = default_center_fraction(self.acceleration)
            sampling = Sampling(pattern="equispaced", acceleration=(self.acceleration,), center_fraction=fraction)
            undersample = undersampling_mask(self.scan, sampling, self.acceleration, self.seed, slice_index=0)
        found = prepare(self.scan, self.index, undersample=undersample, map_sets=None, keep_reference=True)
        return found.to(self.device)

    def folder(self, work: Path) -> Path:
        name = "as-measured" if self.acceleration is None else f"R{self.acceleration:g}"
        return work / Path(self.scan.path).stem / name


def tuned(slice_: Slice, recipe: Recipe) -> tuple[float, Tensor]:
    """The lambda of best PSNR against the slice's reference, and the magnitude (y, x) by it."""
    reference = _array(slice_.reference)

    def score(image: Tensor) -> dict[str, float]:
        return {"psnr": scores(_array(image), reference)["psnr_fit"]}

    def solve(s: Slice, regularisation: float) -> Tensor:
        return s.magnitude(CLASSICAL[recipe.method](s, regularisation, recipe.iterations))

    best, image, _ = tune(solve, slice_, GRIDS[recipe.method], score)
    return best, image


def _array(image: Tensor | None) -> Any:
    assert image is not None
    return image.numpy(force=True)


def measure(case: Case, recipe: Recipe, prior: Prior) -> tuple[Cell, dict[str, Any]]:
    """Figures of one reconstruction, ready for JSON, and its images (y, x) by name."""
    slice_ = case.slice
    begun = time.perf_counter()
    images: dict[str, Any] = {"mask": _array(slice_.mask)}
    found: Cell = {
        "coils": len(slice_.kspace),
        "shape": list(slice_.kspace.shape[-2:]),
        "achieved_R": achieved_acceleration(slice_.mask, sum(case.scan.padding)),
        "sigma0": slice_.sigma0,
        "sets": slice_.sets,
        "second_share": slice_.second_share,
    }
    std = None
    if slice_.reference is not None and recipe.method in CLASSICAL:
        regularisation, image = tuned(slice_, recipe)
        found |= {"lambda": regularisation, "lambda_by": "the reference"}
    else:
        generator = slice_generator(case.seed, case.index)
        result = reconstruct(slice_, prior, recipe, generator, check=slice_.reference is None)
        image, std = result.mean, result.std
        if result.facts:
            found |= {"lambda": result.facts["regularisation"], "lambda_by": result.facts["chosen_by"]}
            found["converged"] = result.facts.get("converged")
        if std is not None:
            found |= {"n": recipe.samples, "checks": result.checks}
    found["seconds"] = round(time.perf_counter() - begun, 1)
    images["image"] = _array(image)
    if std is not None:
        images["std"] = _array(std)
    if slice_.reference is not None:
        images["reference"] = _array(slice_.reference)
        all_scores = scores(images["image"], images["reference"])
        found |= {name: all_scores[f"{name}_fit"] for name in ("psnr", "ssim", "nmse")}
        if std is not None:
            found["spread"] = spread_scores(images["image"], images["std"], images["reference"])
    return found, images


def run_cell(case: Case, name: str, recipe: Recipe, prior: Prior, work: Path) -> bool:
    """Measure one recipe unless that is done; whether it had to be."""
    path = case.folder(work) / f"{name}-seed{case.seed}.json"
    identity = {
        "scan": Path(case.scan.path).name,
        "bytes": Path(case.scan.path).stat().st_size,
        "R": case.acceleration,
        "seed": case.seed,
        "recipe": recipe.model_dump(mode="json", exclude={"description"}),
        "prior": prior.sha256 if recipe.learned else None,
    }
    if path.is_file() and json.loads(path.read_text())["identity"] == identity:
        return False
    found, images = measure(case, recipe, prior)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path.with_suffix(".npz"), **images)
    finished = path.with_suffix(".part")
    versions = {"torch": torch.__version__, "device": case.device}
    finished.write_text(json.dumps({"identity": identity, **versions, **found}, indent=1) + "\n")
    finished.replace(path)  # last, so that a cell that is there is whole
    return True


def passes(
    scans: list[Scan], accelerations: list[float], recipes: Iterable[str], seed: int, device: str
) -> Iterator[list[tuple[Case, str]]]:
    """What to run, the telling first: the main recipes on all scans at each R, as measured, then the others."""
    for tier in (FIRST, THEN, tuple(name for name in recipes if name not in (*FIRST, *THEN))):
        for acceleration in (*accelerations, None):
            fitting = (scan for scan in scans if (scan.mask is None) == (acceleration is not None))
            cases = [Case(scan, acceleration, seed, device) for scan in fitting]
            yield [(case, name) for case in cases for name in tier if name in recipes]


def main(given: list[str] | None = None, say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of scans of any format that mrgen reads")
    parser.add_argument("--glob", default="brain*", help="which of its files are head scans (brain*)")
    parser.add_argument("--R", type=float, nargs="+", default=[8, 4, 6, 10], help="accelerations, the first one first")
    parser.add_argument("--recipe", nargs="+", default=[*FIRST, *THEN], help="recipes (all but mmps, dps and em)")
    parser.add_argument("--samples", type=int, default=8, help="of recipes that draw (8)")
    parser.add_argument("--seed", type=int, default=0, help="of masks and samples (0)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prior", type=Path, default=bundled_prior(), help="prior file (the bundled one)")
    parser.add_argument("--work", type=Path, default=Path("out/measured-scans"), help="folder of what is finished")
    parser.add_argument("--pages", action="store_true", help="run nothing: write the pages of what is finished")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the pages")
    arguments = parser.parse_args(given)
    try:
        paths = sorted(arguments.scans.glob(arguments.glob))
        if not paths:
            raise MrgenError(f"no file {arguments.glob} in {arguments.scans}: expected measured scans")
        scans = [open_scan(path) for path in paths]
        recipes = {name: load(Recipe, name) for name in arguments.recipe}
        for name, recipe in recipes.items():
            if recipe.draws:
                recipes[name] = recipe.model_copy(update={"samples": arguments.samples})
        pages = partial(
            write_pages,
            arguments.work,
            arguments.output,
            arguments.seed,
            {Path(scan.path).stem: scan.mask is None for scan in scans},
            arguments.R,
            arguments.recipe,
        )
        if not arguments.pages:
            prior = load_prior(arguments.prior, arguments.device)
            for group in passes(scans, arguments.R, recipes, arguments.seed, arguments.device):
                for case, name in group:
                    if run_cell(case, name, recipes[name], prior, arguments.work):
                        say(f"{time.strftime('%H:%M:%S')} {case.folder(arguments.work)} {name}")
                pages()
        pages()
    except MrgenError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
