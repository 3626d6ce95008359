"""`mrgen calibrate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from mrgen.cli.common import (
    Device,
    OnDevice,
    PriorFile,
    ProcessCount,
    RecipeName,
    Samples,
    become,
    interruptible,
    join_for_scans,
    progress_on_stderr,
)
from mrgen.cli.recon import choose_mask, load_recipe, parse_slices, refuse_namesakes
from mrgen.errors import MrgenError
from mrgen.posterior.batch import Batch
from mrgen.prior.distributed import silent
from mrgen.prior.files import bundled_prior, load_prior
from mrgen.review.calibration import Level, Scored, fit_level, score_result, write_calibration
from mrgen.review.figure import NOTICE
from mrgen.review.folder import prepare_output_dir
from mrgen.review.parts import Parts, partial_slices
from mrgen.review.run import Run, gather, reconstruct_slices
from mrgen.scans.open import open_scan

MASK = "equispaced, fully sampled centre as in fastMRI for this R, offset by the seed and the name of the file"


def _score(run: Run, parts: Parts, share: float) -> Scored:
    """Reconstruct and score one scan. Raises MrgenError."""
    with progress_on_stderr() as progress:
        result = gather(run, parts, reconstruct_slices(run, parts, silent, progress), silent)
    if result.reference is None:
        raise MrgenError("it is undersampled, so nothing tells the error: calibrate on fully sampled scans")
    try:
        return score_result(result, share)
    except ValueError as error:
        raise MrgenError(str(error)) from None


@contextmanager
def _naming(acceleration: float, file: Path) -> Iterator[None]:
    """An error of a scan as one that names it."""
    try:
        yield
    except MrgenError as error:
        raise MrgenError(f"{file.name}, R = {acceleration:g}: {error}") from None


def _table(levels: Sequence[Level], share: float) -> list[str]:
    lines = [
        f"share of the body covered, aim {share:.0%}; each scan counts alike",
        f"{'R':>5}{'scans':>7}{'slices':>8}{'± 1.645 std':>13}{'factor':>8}{'others':>8}{'at least':>10}"
        f"{'rank corr.':>12}{'AUSE':>7}",
    ]
    for level in levels:
        after = "-" if level.after is None else f"{level.after:.1%}"
        lines.append(
            f"{level.R:5g}{level.scans:7}{level.slices:8}{level.before:13.1%}{level.factor:8.2f}{after:>8}"
            f"{level.guaranteed:10.1%}{level.rank_correlation:12.2f}{level.ause:7.2f}"
        )
    return [
        *lines,
        "others: of each scan, by the factor of the other scans; at least: of a new scan that comes like these, on "
        "average",
    ]


def calibrate(
    scan_files: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="Fully sampled raw data.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The calibration to write, .json.")],
    accelerations: Annotated[
        list[float] | None, typer.Option("--R", "-r", help="Undersample by this factor; several times for several.")
    ] = None,
    recipe_name: RecipeName = "posterior",
    prior_file: PriorFile = None,
    samples: Samples = None,
    share: Annotated[float, typer.Option("--coverage", help="Share of the pixels to cover.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the masks' offsets and the samples.")] = 0,
    slices: Annotated[str | None, typer.Option(metavar="A:B", help="Only the slices A to B - 1 of each scan.")] = None,
    device: OnDevice = Device.auto,
    process_count: ProcessCount = 1,
) -> None:
    """Fit the interval for `mrgen recon --calibration`: by which factor of the std the fully sampled image is covered.

    Without --R: for 4, 6, 8 and 10. An interrupted run goes on with the slice it was at. Several processes share the
    scans, and the GPUs if those are fewer.
    """
    recipe = load_recipe(recipe_name, samples, prior_file)
    if not recipe.draws:
        raise MrgenError(f"recipe {recipe_name!r} draws no samples: there is no spread to calibrate")
    if not 0 < share < 1:
        raise MrgenError(f"--coverage {share:g}: expected a number between 0 and 1")
    refuse_namesakes(scan_files)
    prepare_output_dir(out.parent)
    become(process_count, scan_files)
    processes = join_for_scans(device)
    target, prefix = processes.device, processes.prefix
    prior = load_prior(prior_file or bundled_prior(), target) if recipe.learned else None
    batch, kept, levels = Batch.on(target, lambda text: typer.echo(prefix + text)), list[Parts](), []
    every = sorted(set(accelerations or (4.0, 6.0, 8.0, 10.0)))

    def begin(stack: ExitStack, acceleration: float, file: Path) -> tuple[Run, Parts]:
        """A scan at one R and its slices, which belong to this process until the stack is left."""
        scan = open_scan(file)
        run = Run(
            scan,
            parse_slices(slices, scan.slices),
            choose_mask(scan, acceleration, seed),
            Path(recipe_name).stem,
            recipe,
            prior,
            seed,
            target,
            shown=0,
            batch=batch,
        )
        name = f"{out.stem}-{file.stem}-R{acceleration:g}"
        return run, stack.enter_context(partial_slices(out.parent, name, run.identity(), resume=True))

    with ExitStack() as stack:
        stack.enter_context(interruptible(f"{prefix}the calibration"))
        if processes.count > 1:  # the first one finds all slices finished, below
            for acceleration, file in processes.share([*product(every, scan_files)]):
                with _naming(acceleration, file), ExitStack() as own, progress_on_stderr(prefix) as progress:
                    reconstruct_slices(*begin(own, acceleration, file), silent, progress)
                typer.echo(f"{prefix}R = {acceleration:g}, {file.name}: reconstructed")
            processes.wait()
        if processes.rank > 0:
            return
        for acceleration in every:
            scored = []
            for file in scan_files:
                with _naming(acceleration, file):
                    run, parts = begin(stack, acceleration, file)
                    kept.append(parts)
                    scored.append(_score(run, parts, share))
                typer.echo(f"R = {acceleration:g}, {file.name}: ± 1.645 std covers {scored[-1].before:.1%}")
            try:
                levels.append(fit_level(acceleration, scored, share))
            except ValueError as error:
                raise MrgenError(f"R = {acceleration:g}: {error}") from None
        prior_sha256 = prior.sha256 if prior else None
        name = Path(recipe_name).stem
        write_calibration(
            out, levels, share=share, recipe=recipe, recipe_name=name, prior=prior_sha256, mask=MASK, seed=seed
        )
        for parts in kept:
            parts.remove()
    for line in _table(levels, share):
        typer.echo(line)
    typer.echo(f"wrote   {out}")
    typer.echo(NOTICE)
