"""`mrgen sample`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import typer
from torch import Tensor

from mrgen import __version__
from mrgen.cli.common import Device, OnDevice, PriorFile, progress_on_stderr
from mrgen.errors import MrgenError
from mrgen.posterior.batch import Batch
from mrgen.posterior.reconstruct import refuse_conditional
from mrgen.posterior.samplers import noise_levels
from mrgen.posterior.unconditional import LEVELS, unconditional_samples
from mrgen.prior.files import bundled_prior, load_prior
from mrgen.review.figure import NOTICE
from mrgen.review.folder import prepare_output_dir, replacing
from mrgen.review.sheet import save_sheet

MATRIX = (208, 176)  # where the prior does not say: one of those that the bundled one was trained on
SHOWN = 64  # images on the sheet, at most


def _parse_shape(text: str) -> tuple[int, int]:
    """The matrix of "YxX". Raises MrgenError."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    shape = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(shape) < 16:
        raise MrgenError(f"--shape {text}: expected YxX, two numbers of at least 16, for example 208x176")
    return shape


def _write(out: Path, samples: Tensor, title: str, attributes: dict[str, Any]) -> list[Path]:
    """samples.h5 and the sheet, samples.png. Raises MrgenError when the disk refuses."""
    paths = [out / "samples.h5", out / "samples.png"]
    try:
        with replacing(paths) as (volume, sheet):
            with h5py.File(volume, "w") as file:
                file["samples"] = samples.numpy(force=True)
                file.attrs.update(attributes)
            shown = samples[:SHOWN].abs().numpy(force=True)
            save_sheet(sheet, shown, title if len(shown) == len(samples) else f"{title}: the first {SHOWN}")
    except OSError as error:
        raise MrgenError(f"could not write to {out} ({error}): free space or choose another folder") from None
    return paths


def sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for samples.h5 and samples.png.")],
    prior_file: PriorFile = None,
    count: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 16,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="YxX",
            help=f"Matrix; else the commonest in training, or {MATRIX[0]}x{MATRIX[1]} for a prior that does not say.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Noise levels; more take longer and look better.")] = LEVELS,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same samples.")] = 0,
    device: OnDevice = Device.auto,
) -> None:
    """Draw samples of a prior by itself, without a scan: what it believes images look like."""
    target, file = device.resolve(), prior_file or bundled_prior()
    matrix = _parse_shape(shape) if shape else None
    prior = load_prior(file, target)
    refuse_conditional(prior)
    y, x = matrix or prior.metadata.get("matrix", MATRIX)
    prepare_output_dir(out)
    typer.echo(f"prior   {file.name} {prior.sha256[:12]}: {count} samples, {y} x {x}, seed {seed}, on {target}")
    with progress_on_stderr() as progress:
        samples = unconditional_samples(
            prior,
            (count, int(y), int(x)),
            noise_levels(prior.sigma_max, prior.sigma_min, steps),
            seed,
            target,
            lambda done, total: progress(done / total, f"{count} samples"),
            Batch.on(target, typer.echo),
        )
    attributes = {
        "prior_sha256": prior.sha256,
        "seed": seed,
        "steps": steps,
        "mrgen_version": __version__,
        "notice": NOTICE,
    }
    title = f"{file.stem}: {count} sample{'s' * (count > 1)} of the prior, magnitude"
    for path in _write(out, samples, title, attributes):
        typer.echo(f"wrote   {path}")
    bright = np.percentile(samples.abs().numpy(force=True), 99)
    typer.echo(f"units   scaled images, whose 99th percentile is near 1; these have {bright:.2f}")
    typer.echo(NOTICE)
