"""Compare a prior's posterior mean with classical reconstructions on one fully sampled scan.

    python examples/compare_methods.py examples/data/brain.h5 --R 4 8 --prior FILE -o docs/results/brain.json

For each R and seed one mask is drawn, and every method reconstructs the same undersampled slice: zero-filled,
CG-SENSE, L1-wavelet and the mean of n posterior samples. Mask and samples are those of `mrgen recon` with that seed.
lambda of CG-SENSE and L1-wavelet is tuned on this very slice against its own reference, which no real reconstruction
can do: those two figures are upper bounds, the posterior's is not.

PSNR (dB) and SSIM are of magnitude images after the best scalar fit to the reference: the coil combination of the fully
sampled scan, and beside it the RSS of its whitened coil images, whose background is the noise of all coils; the peak is
its maximum. The table on stdout is the mean over the seeds; the JSON file
keeps every run. Compare n: the mean of n samples has an excess error of (posterior variance) / n.

Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop
from mrgen.physics.masks import PATTERNS, achieved_acceleration
from mrgen.posterior.baselines import cg_sense, l1_wavelet, zero_filled
from mrgen.posterior.reconstruct import reconstruct
from mrgen.prior.files import Prior, bundled_prior, load_prior
from mrgen.review.metrics import best_scale, psnr_fit, ssim
from mrgen.review.run import slice_generator
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import default_center_fraction, prepare_slice, undersampling_mask
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Recipe, Sampling, load

SENSE_GRID = [0.001 * 2**k for k in range(9)]  # 0.001 to 0.256, scaled image units
L1_GRID = [0.00031 * 2**k for k in range(7)]  # 0.00031 to 0.02
SENSE_ITERATIONS, L1_ITERATIONS = 30, 100
BEYOND = 6  # lambdas tried beyond the ends of a grid

Row = dict[str, Any]
Regularised = Callable[[Slice, float], Tensor]
Score = Callable[[Tensor], dict[str, float]]


def tune(method: Regularised, slice_: Slice, grid: list[float], score: Score) -> tuple[float, Tensor, int]:
    """The lambda whose image has the best PSNR against the slice's reference, that image, and how many were tried.

    Those of the geometric `grid`, and beyond an end of it, by the same factor, as long as that is better; not for more
    than BEYOND. An oracle: it needs the fully sampled scan. For benchmarks only.
    """
    images: dict[float, Tensor] = {}
    psnr: dict[float, float] = {}

    def attempt(regularisation: float) -> float:
        images[regularisation] = method(slice_, regularisation)
        psnr[regularisation] = score(images[regularisation])["psnr"]
        return max(psnr, key=lambda tried: psnr[tried])

    for regularisation in grid:
        best = attempt(regularisation)
    factor = grid[1] / grid[0]
    for _ in range(BEYOND):
        if best not in (min(psnr), max(psnr)):
            break
        best = attempt(best / factor if best == min(psnr) else best * factor)
    if best in (min(psnr), max(psnr)):
        print(f"the best lambda, {best:g}, lies at the end of what was tried", file=sys.stderr)
    return best, images[best], len(images)


def scorer(slice_: Slice, crop: tuple[int, int] | None) -> Score:
    """PSNR (dB) and SSIM of an image (y, x), after the best scalar fit, inside `crop`, and the same against the RSS."""
    if slice_.reference is None or slice_.rss is None:
        raise MrgenError("the scan is undersampled: there is no reference to compare with")
    shape = crop or (slice_.reference.shape[0], slice_.reference.shape[1])
    references = {
        ending: centre_crop(image, shape).numpy(force=True)
        for ending, image in (("", slice_.reference), ("_rss", slice_.rss))
    }

    def score(image: Tensor) -> dict[str, float]:
        magnitude = centre_crop(image.abs(), shape).numpy(force=True)
        found: dict[str, float] = {}
        for ending, reference in references.items():
            fitted = best_scale(magnitude, reference) * magnitude
            found |= {f"psnr{ending}": psnr_fit(magnitude, reference), f"ssim{ending}": ssim(fitted, reference)}
        return found

    return score


def compare(slice_: Slice, score: Score, prior: Prior | None, recipe: Recipe, generator: torch.Generator) -> list[Row]:
    """One row per method; `seconds` is the time of one reconstruction, for tuned methods the mean over all lambdas."""
    rows: list[Row] = []

    def timed(name: str, make: Callable[[], tuple[float | None, Tensor, int]], n: int | None = None) -> None:
        begun = time.perf_counter()
        regularisation, image, runs = make()
        seconds = (time.perf_counter() - begun) / runs
        rows.append({"method": name, **score(image), "lambda": regularisation, "n": n, "seconds": seconds})

    timed("zero-filled", lambda: (None, zero_filled(slice_), 1))
    for name, method, grid in (
        ("CG-SENSE", lambda s, lam: cg_sense(s, lam, SENSE_ITERATIONS), SENSE_GRID),
        ("L1-wavelet", lambda s, lam: l1_wavelet(s, lam, L1_ITERATIONS), L1_GRID),
    ):
        timed(name, lambda method=method, grid=grid: tune(method, slice_, grid, score))  # type: ignore[misc]
    if prior is not None:
        timed(
            "posterior mean",
            lambda: (None, reconstruct(slice_, prior, recipe, generator, None).mean, 1),
            n=recipe.samples,
        )
    return rows


def compare_scan(scan: Scan, index: int, arguments: argparse.Namespace, prior: Prior | None, recipe: Recipe) -> Row:
    """Every method at every R and seed, as one JSON-ready record."""
    if scan.mask is not None:
        raise MrgenError(f"{Path(scan.path).name} is undersampled: a comparison needs a fully sampled scan")
    raw = scan.read_slice(index)
    rows: list[Row] = []
    for acceleration in arguments.R:
        fraction = default_center_fraction(acceleration)
        sampling = Sampling(pattern=arguments.pattern, acceleration=(acceleration,), center_fraction=fraction)
        for seed in arguments.seed:
            mask = undersampling_mask(scan, sampling, acceleration, seed, slice_index=0)  # as `mrgen recon` draws it
            slice_ = prepare_slice(raw, None, undersample=mask, keep_reference=True).to(arguments.device)
            generator = slice_generator(seed, index)
            about = {
                "R": acceleration,
                "achieved_R": achieved_acceleration(slice_.mask, sum(scan.padding)),
                "center_fraction": fraction,
                "seed": seed,
                "sigma0": slice_.sigma0,
            }
            for row in compare(slice_, scorer(slice_, scan.crop), prior, recipe, generator):
                rows.append({**about, **row})
                print("R = {R:g} seed {seed} {method}: {psnr:.2f} dB".format(**rows[-1]), file=sys.stderr, flush=True)
    return {
        "scan": Path(scan.path).name,
        "slice": index,
        "shape": scan.shape,
        "pattern": arguments.pattern,
        "metric": "magnitude after best scalar fit, to the coil combination and (psnr_rss, ssim_rss) to the RSS",
        "lambda": "CG-SENSE and L1-wavelet: tuned per mask on this slice's own reference",
        "recipe": {"name": arguments.recipe, **recipe.model_dump()} if prior else None,
        "prior_sha256": prior.sha256 if prior else None,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "runs": rows,
    }


def table(record: Row) -> str:
    """The record as a Markdown table: per R and method the means over the seeds, lambda as a range."""
    lines = [
        "| R (achieved) | method | PSNR (dB) | SSIM | PSNR of the RSS | SSIM of the RSS | lambda | n | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in record["runs"]:
        groups.setdefault((row["R"], row["method"]), []).append(row)
    for (acceleration, method), rows in groups.items():

        def mean(key: str, rows: list[Row] = rows) -> float:
            return float(sum(row[key] for row in rows) / len(rows))

        used = sorted({row["lambda"] for row in rows if row["lambda"] is not None})
        ends = " to ".join(f"{value:.2g}" for value in dict.fromkeys([used[0], used[-1]])) if used else ""
        lines.append(
            f"| {acceleration:g} ({mean('achieved_R'):.2f}) | {method} | {mean('psnr'):.2f} | {mean('ssim'):.3f} "
            f"| {mean('psnr_rss'):.2f} | {mean('ssim_rss'):.3f} "
            f"| {ends} | {rows[0]['n'] or ''} | {mean('seconds'):.1f} |"
        )
    return "\n".join(lines)


def arguments_of(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="fully sampled scan in the fastMRI layout")
    parser.add_argument("--R", type=float, nargs="+", default=[4, 6, 8, 10], help="accelerations (4 6 8 10)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one mask per seed (0)")
    parser.add_argument("--slice", type=int, help="slice index (the middle one)")
    parser.add_argument("--pattern", choices=PATTERNS, default="equispaced", help="mask pattern (equispaced)")
    parser.add_argument("--prior", type=Path, help="prior file (the bundled one, where it exists)")
    parser.add_argument("--recipe", default="posterior", help="posterior recipe (posterior)")
    parser.add_argument("--samples", type=int, help="posterior samples (the recipe's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    arguments = arguments_of(given)
    try:
        scan = open_fastmri(arguments.scan)
        recipe = load(Recipe, arguments.recipe)
        if arguments.samples is not None:
            recipe = Recipe.model_validate({**recipe.model_dump(), "samples": arguments.samples})
        prior = None
        if arguments.prior is not None or bundled_prior().is_file():
            prior = load_prior(arguments.prior or bundled_prior(), arguments.device)
        else:
            print("no prior given and none bundled: classical methods only", file=sys.stderr)
        index = scan.slices // 2 if arguments.slice is None else arguments.slice
        record = compare_scan(scan, index, arguments, prior, recipe)
    except MrgenError as error:
        raise SystemExit(f"error: {error}") from None
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
