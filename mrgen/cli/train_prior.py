"""`mrgen train-prior`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from mrgen.cli.common import Device, NewPrior, OnDevice, ProcessCount, ProtocolName, ScanFolder, become
from mrgen.errors import MrgenError
from mrgen.posterior.samplers import noise_levels
from mrgen.posterior.unconditional import LEVELS, unconditional_samples
from mrgen.prior.data import TrainingSet
from mrgen.prior.denoiser import Denoise
from mrgen.prior.distributed import is_first, local_device, silent
from mrgen.prior.rehearsal import rehearse
from mrgen.prior.train import train
from mrgen.review.figure import NOTICE
from mrgen.review.folder import prepare_output_dir
from mrgen.review.sheet import save_sheet
from mrgen.settings import Protocol, load

DRY_SCANS = 2
SAMPLES = 4  # on a sheet


def train_prior(
    folder: ScanFolder,
    protocol_name: ProtocolName,
    out: NewPrior,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates; without it, the protocol's.")] = None,
    device: OnDevice = Device.auto,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint beside the prior.")] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared slices, to share; without it, 'cache' beside the prior.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help=f"Try a few updates on the {DRY_SCANS} largest scans: print memory, speed and time, write nothing.",
        ),
    ] = False,
    process_count: ProcessCount = 1,
) -> None:
    """Learn a prior from undersampled, noisy scans; fully sampled ones are undersampled by the protocol first.

    Several processes share the preparation and the training, each on a GPU of its own.
    """
    protocol, target = load(Protocol, protocol_name), local_device(device.resolve())
    if out.suffix != ".safetensors":
        raise MrgenError(f"-o {out.name}: expected a name that ends in .safetensors")
    if not folder.is_dir():
        raise MrgenError(f"{folder} is not a folder, expected one with scans")
    become(process_count)
    report = typer.echo if is_first() else silent
    if dry_run:
        with TemporaryDirectory() as temporary:
            data = TrainingSet.from_folder(folder, protocol, Path(temporary), report, target, largest=DRY_SCANS)
            rehearse(data, protocol, target, steps, report)
        report(NOTICE)
        return
    prepare_output_dir(out.parent)
    data = TrainingSet.from_folder(folder, protocol, cache or out.parent / "cache", report, target)

    def sheet(denoise: Denoise, path: Path) -> None:
        """Samples from the same noise each time, so that sheets can be compared."""
        levels = noise_levels(protocol.training.sigma_max, protocol.training.sigma_min, LEVELS)
        samples = unconditional_samples(denoise, (SAMPLES, *data.matrix), levels, protocol.training.seed, target)
        save_sheet(path, samples.abs().numpy(force=True), f"{out.stem}: {SAMPLES} samples of the prior")

    written = train(data, protocol, out, device=target, resume=resume, steps=steps, report=report, sheet=sheet)
    report(f"wrote   {written}")
    report(NOTICE)
