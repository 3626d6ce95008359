"""`mrgen recon`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from mrgen.cli.common import Device, progress_on_stderr
from mrgen.errors import MrgenError
from mrgen.physics.masks import PATTERNS, achieved_acceleration
from mrgen.prior.files import bundled_prior, load_prior
from mrgen.review.figure import NOTICE, label
from mrgen.review.output import prepare_output_dir, write_result
from mrgen.review.run import Run, reconstruct_scan
from mrgen.scans.maskfile import read_mask
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import default_center_fraction, undersampling_mask
from mrgen.scans.scan import Scan
from mrgen.settings import Recipe, Sampling, load


def parse_slices(text: str | None, count: int) -> range:
    """The slices A to B - 1 of "A:B", of which either may be left out. Raises MrgenError."""
    first, colon, last = (text or ":").partition(":")
    numbers = all(part.isdecimal() for part in (first or "0", last or "0"))
    chosen = range(int(first or 0), int(last or count)) if numbers else range(0)
    if not colon or not 0 <= chosen.start < chosen.stop <= count:
        raise MrgenError(f"--slices {text}: expected A:B with 0 <= A < B <= {count}, the slices of this scan")
    return chosen


def choose_mask(
    scan: Scan, acceleration: float | None, seed: int, pattern: str = "equispaced", center_fraction: float | None = None
) -> Tensor | None:
    """The mask for retrospective undersampling; None for a scan that was undersampled when measured.

    `pattern` is one of mrgen.physics.masks.PATTERNS or a file with a mask. All slices share the mask; without a seed it
    is that of fastMRI's evaluation. Raises MrgenError where R is missing, impossible, or asked for a second time.
    """
    from_file = pattern not in PATTERNS
    if acceleration is not None and not (math.isfinite(acceleration) and acceleration >= 1):
        raise MrgenError(f"--R {acceleration:g}: expected a number of at least 1 (1 keeps every line)")
    if scan.mask is not None:
        if acceleration is None and not from_file:
            return None
        achieved = achieved_acceleration(scan.mask, sum(scan.padding))
        raise MrgenError(
            f"the scan is already undersampled, R = {achieved:.2f}: leave out --R and --mask to reconstruct it"
        )
    _, _, rows, lines = scan.shape
    if from_file:
        if acceleration is not None or center_fraction is not None:
            raise MrgenError("the file of --mask says which lines are kept: leave out --R and --center-fraction")
        return read_mask(Path(pattern), lines, rows)
    if acceleration is None:
        raise MrgenError("the scan is fully sampled: say with --R by how much to undersample it, for example --R 8")
    if center_fraction is not None and not 0 < center_fraction < 1:
        raise MrgenError(f"--center-fraction {center_fraction:g}: expected a number between 0 and 1")
    fraction = center_fraction or default_center_fraction(acceleration)
    sampling = Sampling.model_validate(
        {"pattern": pattern, "acceleration": (acceleration,), "center_fraction": fraction}
    )
    return undersampling_mask(scan, sampling, acceleration, seed, slice_index=0)


def _load_recipe(name: str, samples: int | None, prior: Path | None) -> Recipe:
    recipe = load(Recipe, name)
    if recipe.method != "posterior" and (samples is not None or prior is not None):
        raise MrgenError(f"recipe {name!r} draws no samples from a prior: leave out --samples and --prior")
    return recipe if samples is None else recipe.model_copy(update={"samples": samples})


def recon(
    scan_file: Annotated[
        Path, typer.Argument(metavar="SCAN", help="Raw data: fastMRI .h5, ISMRMRD, Siemens .dat, BART .cfl or .npz.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    acceleration: Annotated[
        float | None, typer.Option("--R", "-r", help="Undersample a fully sampled scan by this factor.")
    ] = None,
    mask: Annotated[
        str, typer.Option(metavar="PATTERN|FILE", help=f"{', '.join(PATTERNS)}, or a file with the mask to apply.")
    ] = "equispaced",
    center_fraction: Annotated[
        float | None, typer.Option(help="Fully sampled share of the lines; without it, fastMRI's for this R.")
    ] = None,
    calibration_file: Annotated[
        Path | None,
        typer.Option("--calibration-scan", help="Take coil maps from the centre of this scan of the same coils."),
    ] = None,
    coils: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Compress to N virtual coils; the loss is told."),
    ] = None,
    recipe_name: Annotated[
        str, typer.Option("--recipe", help="A recipe's name, or a .toml file of your own.")
    ] = "posterior",
    prior_file: Annotated[
        Path | None, typer.Option("--prior", help="A prior (.safetensors); without it, the bundled one.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Posterior samples; without it, the recipe's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the mask's offset and the samples.")] = 0,
    slices: Annotated[str | None, typer.Option(metavar="A:B", help="Only the slices A to B - 1.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
) -> None:
    """Reconstruct a scan: posterior mean and spread, beside zero-filled and L1-wavelet images."""
    recipe, target = _load_recipe(recipe_name, samples, prior_file), device.resolve()
    scan = open_scan(scan_file)
    for remark in scan.remarks:
        typer.echo(f"note    {remark}")
    undersample = choose_mask(scan, acceleration, seed, mask, center_fraction)
    calibration = None if calibration_file is None else open_scan(calibration_file)
    chosen = parse_slices(slices, scan.slices)
    prior = load_prior(prior_file or bundled_prior(), target) if recipe.method == "posterior" else None
    prepare_output_dir(out)
    run = Run(scan, chosen, undersample, Path(recipe_name).stem, recipe, prior, seed, target, calibration, coils)

    _, measured, n_y, n_x = scan.shape
    array = f"{measured} coil" + "s" * (measured > 1)
    detail = f": {run.samples} samples, prior {prior.sha256[:12]}" if prior else ""
    typer.echo(f"scan    {scan_file.name}: {len(chosen)} of {scan.slices} slices, {array}, {n_y} x {n_x}")
    typer.echo(f"recipe  {run.recipe_name}{detail}, seed {seed}, on {target}")
    with progress_on_stderr() as progress:
        result = reconstruct_scan(run, typer.echo, progress)
    paths = write_result(out, scan_file.stem, result)

    of_rss = result.volume_scores(result.rss)
    if of_rss:
        typer.echo(f"{'after a best scalar fit':<24}{'against the coil combination':<30}against the RSS")
    for name, score in result.volume_scores(result.reference).items():
        figures = [f"PSNR {s['psnr_fit']:5.2f} dB, SSIM {s['ssim_fit']:.4f}" for s in (score, of_rss[name])]
        typer.echo(f"{label(name, run.samples):<24}{'    '.join(figures)}")
    for path in paths:
        typer.echo(f"wrote   {path}")
    typer.echo(NOTICE)
