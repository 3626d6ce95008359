"""`mrgen em`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mrgen.cli.common import Device, NewPrior, OnDevice, ProcessCount, ProtocolName, ScanFolder, become
from mrgen.errors import MrgenError
from mrgen.posterior.em import network_steps
from mrgen.prior.cache import alone
from mrgen.prior.data import StoredItem, TrainingSet
from mrgen.prior.em import Case, Run, expectation_maximisation, quietest
from mrgen.prior.files import load_prior, save_gaussian
from mrgen.prior.gaussian import fit_gaussian
from mrgen.review.figure import NOTICE
from mrgen.review.folder import prepare_output_dir
from mrgen.settings import Protocol, load


def _gaussian(items: list[StoredItem], matrix: tuple[int, int], protocol: Protocol, path: Path) -> None:
    """Fit the Gaussian that EM starts from, once."""
    with alone(path, -1):
        if not path.exists():
            typer.echo(f"fitting a Gaussian to {len(items)} slices")
            training = protocol.training
            metadata = {key: getattr(training, key) for key in ("sigma_min", "sigma_max", "sigma_data")}
            metadata["matrix"] = list(matrix)
            save_gaussian(path, fit_gaussian((item.scan.read(item.n), item.weights) for item in items), metadata)


def em(
    folder: ScanFolder,
    start: Annotated[
        str, typer.Option(metavar="PRIOR|gaussian", help="The prior to begin with, or a Gaussian fitted to the scans.")
    ],
    protocol_name: ProtocolName,
    out: NewPrior,
    work: Annotated[Path, typer.Option(help="Folder for samples and the prior of each round, to be resumed from.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds at most; it ends when one betters nothing.")] = 4,
    diffem: Annotated[
        bool, typer.Option("--diffem", help="Learn to reconstruct in each round, and a prior in the end (DiffEM).")
    ] = False,
    device: OnDevice = Device.auto,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared slices, to share; without it, 'cache' in the work folder.")
    ] = None,
    process_count: ProcessCount = 1,
) -> None:
    """Better a prior by EM: draw posterior samples of the scans, learn from them, and again."""
    protocol, target = load(Protocol, protocol_name), device.resolve()
    steps, settings = network_steps(protocol, target, typer.echo, diffem)
    if out.suffix != ".safetensors":
        raise MrgenError(f"-o {out.name}: expected a name that ends in .safetensors")
    if not folder.is_dir():
        raise MrgenError(f"{folder} is not a folder, expected one with scans")
    become(process_count)
    prepare_output_dir(out.parent)
    prepare_output_dir(work)
    data = TrainingSet.from_folder(folder, protocol, cache or work / "cache", device=target)
    items = [item for item in data.items if isinstance(item, StoredItem)]
    noise = [(item.mask.numel() / float(item.mask.sum())) ** 0.5 * item.sigma0 for item in items]
    items = [items[n] for n in quietest(noise, protocol.em.quietest)]
    if len(items) < len(noise):
        typer.echo(f"learning from the {len(items)} quietest of {len(noise)} slices")
    items.sort(key=lambda item: item.scan.shape[1:])  # those of one matrix are sampled together

    first = work / "gaussian.safetensors" if start == "gaussian" else Path(start)
    if start == "gaussian":
        _gaussian(items, data.matrix, protocol, first)
    load_prior(first)  # refuses what is none
    cases = [Case(f"{i.scan.file.stem}-{i.scan.index[i.n]:03d}", i.mask, partial(i.scan.read, i.n)) for i in items]
    origin = {"data": data.fingerprint, **settings}
    run = Run(cases, first, work, protocol.em, origin, protocol.training.seed, target, "WORLD_SIZE" in os.environ)
    expectation_maximisation(run, steps, rounds, out, typer.echo)
    typer.echo(f"wrote   {out}")
    typer.echo(NOTICE)
