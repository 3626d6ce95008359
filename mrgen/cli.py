"""The commands. A mistake of the user's becomes one line on stderr and exit code 1; a bug keeps its traceback."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.physics.masks import achieved_acceleration
from mrgen.prior.data import TrainingSet
from mrgen.prior.files import bundled_prior, load_prior
from mrgen.prior.train import train
from mrgen.review.figure import NOTICE, label
from mrgen.review.output import prepare_output_dir, write_result
from mrgen.review.run import Run, reconstruct_scan
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import default_center_fraction, undersampling_mask
from mrgen.scans.scan import Scan
from mrgen.settings import Protocol, Recipe, Sampling, load

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

PROGRESS_SECONDS = 20.0  # between lines of progress where stderr is no terminal


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"

    def resolve(self) -> str:
        """The torch device. Raises MrgenError for cuda without a usable GPU."""
        if self is Device.cuda and not torch.cuda.is_available():
            raise MrgenError("--device cuda: found no usable NVIDIA GPU; use --device cpu")
        if self is Device.auto:
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.value


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mrgen {__version__}")
        raise typer.Exit


@app.callback(help=f"MRI reconstruction with priors learned from undersampled k-space. {NOTICE}")
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # its callback has done the work


def parse_slices(text: str | None, count: int) -> range:
    """The slices A to B - 1 of "A:B", of which either may be left out. Raises MrgenError."""
    first, colon, last = (text or ":").partition(":")
    numbers = all(part.isdecimal() for part in (first or "0", last or "0"))
    chosen = range(int(first or 0), int(last or count)) if numbers else range(0)
    if not colon or not 0 <= chosen.start < chosen.stop <= count:
        raise MrgenError(f"--slices {text}: expected A:B with 0 <= A < B <= {count}, the slices of this scan")
    return chosen


def choose_mask(scan: Scan, acceleration: float | None, seed: int) -> Tensor | None:
    """The mask (kx,) for retrospective undersampling; None for a scan that was undersampled when measured.

    All slices share it; its lines are equispaced as fastMRI's. Raises MrgenError where R is missing, impossible, or
    asked for a second time.
    """
    if acceleration is not None and not (math.isfinite(acceleration) and acceleration >= 1):
        raise MrgenError(f"--R {acceleration:g}: expected a number of at least 1 (1 keeps every line)")
    if scan.mask is not None:
        if acceleration is None:
            return None
        achieved = achieved_acceleration(scan.mask)
        raise MrgenError(f"the scan is already undersampled, R = {achieved:.2f}: leave out --R to reconstruct it")
    if acceleration is None:
        raise MrgenError("the scan is fully sampled: say with --R by how much to undersample it, for example --R 8")
    fraction = default_center_fraction(acceleration)
    sampling = Sampling(pattern="equispaced", acceleration=(acceleration,), center_fraction=fraction)
    return undersampling_mask(scan, sampling, acceleration, seed, slice_index=0)


def _load_recipe(name: str, samples: int | None, prior: Path | None) -> Recipe:
    recipe = load(Recipe, name)
    if recipe.method != "posterior" and (samples is not None or prior is not None):
        raise MrgenError(f"recipe {name!r} draws no samples from a prior: leave out --samples and --prior")
    return recipe if samples is None else recipe.model_copy(update={"samples": samples})


@contextmanager
def progress_on_stderr() -> Iterator[Callable[[float, str], None]]:
    """progress(fraction, place): a bar with the time left on a terminal; a line now and then where there is none."""
    console, begun = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
            task = bar.add_task("reconstructing", total=1.0)
            yield lambda fraction, place: bar.update(task, completed=fraction, description=place)
        return

    spoken = begun

    def line(fraction: float, place: str) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken >= PROGRESS_SECONDS and 0 < fraction < 1:
            left = (now - begun) * (1 / fraction - 1) / 60
            typer.echo(f"{place}: {fraction:.0%}, about {left:.1f} min left", err=True)
            spoken = now

    yield line


@app.command()
def recon(
    scan_file: Annotated[Path, typer.Argument(metavar="SCAN", help="Raw k-space, .h5 in the fastMRI layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    acceleration: Annotated[
        float | None, typer.Option("--R", "-r", help="Undersample a fully sampled scan by this factor.")
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
    scan = open_fastmri(scan_file)
    undersample = choose_mask(scan, acceleration, seed)
    chosen = parse_slices(slices, scan.slices)
    prior = load_prior(prior_file or bundled_prior(), target) if recipe.method == "posterior" else None
    prepare_output_dir(out)
    run = Run(scan, chosen, undersample, Path(recipe_name).stem, recipe, prior, seed, target)

    _, coils, n_y, n_x = scan.shape
    detail = f": {run.samples} samples, prior {prior.sha256[:12]}" if prior else ""
    typer.echo(f"scan    {scan_file.name}: {len(chosen)} of {scan.slices} slices, {coils} coils, {n_y} x {n_x}")
    typer.echo(f"recipe  {run.recipe_name}{detail}, seed {seed}, on {target}")
    with progress_on_stderr() as progress:
        result = reconstruct_scan(run, typer.echo, progress)
    paths = write_result(out, scan_file.stem, result)

    for name, score in result.volume_scores().items():
        title = label(name, run.samples)
        typer.echo(f"{title:<24}PSNR {score['psnr_fit']:5.2f} dB after a best scalar fit, SSIM {score['ssim']:.4f}")
    for path in paths:
        typer.echo(f"wrote   {path}")
    typer.echo(NOTICE)


@app.command()
def train_prior(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Scans to learn from, .h5 in the fastMRI layout.")],
    protocol_name: Annotated[str, typer.Option("--protocol", help="A protocol's name, or a .toml file of your own.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The prior to write, .safetensors.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; without it, the protocol's.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint beside the prior.")] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared slices; without it, 'cache' beside the prior.")
    ] = None,
) -> None:
    """Learn a prior from undersampled, noisy scans; fully sampled ones are undersampled by the protocol first."""
    protocol, target = load(Protocol, protocol_name), device.resolve()
    if out.suffix != ".safetensors":
        raise MrgenError(f"-o {out.name}: expected a name that ends in .safetensors")
    if not folder.is_dir():
        raise MrgenError(f"{folder} is not a folder, expected one with .h5 scans")
    prepare_output_dir(out.parent)
    stored = cache or out.parent / "cache"
    prepare_output_dir(stored)
    data = TrainingSet.from_folder(folder, protocol, stored)
    written = train(data, protocol, out, device=target, resume=resume, steps=steps)
    typer.echo(f"wrote   {written}")
    typer.echo(NOTICE)


def main() -> None:
    """Entry point of the `mrgen` command."""
    try:
        app(prog_name="mrgen")
    except MrgenError as error:
        typer.echo(f"mrgen: error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
