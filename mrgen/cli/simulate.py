"""`mrgen simulate`."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from mrgen import __version__
from mrgen.cli.common import Slices, progress_on_stderr
from mrgen.cli.recon import parse_slices
from mrgen.errors import MrgenError
from mrgen.physics.masks import PATTERNS, achieved_acceleration, fastmri_rng, sampling_mask
from mrgen.review.figure import NOTICE
from mrgen.review.folder import prepare_output_dir, replacing
from mrgen.scans.acquire import PHANTOM_SLICES, Scanner, Volume, phantom_volume, varied_volume
from mrgen.scans.coils import measured_coils
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import default_center_fraction
from mrgen.scans.volumes import open_volume
from mrgen.scans.write import Layout, write_fastmri
from mrgen.settings import Protocol, load

COILS, CORRELATION, PHANTOM_MATRIX = 8, 0.3, (256, 256)  # where the command line does not say
DEFINITIONS = (
    "k-space is scaled so that the mean of the noise-free root-sum-of-squares image over the tissue (above 10 % of the "
    "brightest) is 1. sigma = 1 / SNR: std of the total complex noise of an average coil, E|n|^2 = sigma^2, in the "
    "stored k-space as in its image. noise_covariance: E[n n^H] across the coils; the mean of its diagonal is sigma^2."
)


class CoilArray(StrEnum):
    """The names in ARRAYS."""

    ring = "ring"
    helmet = "helmet"


@dataclass(frozen=True)
class _Source:
    """What is scanned: a volume that was read, or the phantom."""

    kind: str
    matrix: tuple[int, int]
    volume: Volume | None

    @property
    def slices(self) -> int:
        return len(self.volume.images) if self.volume else PHANTOM_SLICES

    def head(self, chosen: range, vary: bool, generator: torch.Generator) -> Volume:
        """The slices to scan, on request of another head."""
        if self.volume is None:
            return phantom_volume(self.matrix, chosen, generator if vary else None)
        volume = self.volume.select(chosen)
        return varied_volume(volume, self.matrix, generator) if vary else volume


def _open_source(source: str, matrix: tuple[int, int] | None, axis: str | None) -> _Source:
    if matrix and min(matrix) < 16:
        raise MrgenError(f"--matrix {matrix[0]} {matrix[1]}: expected at least 16 16")
    if source == "phantom":
        if axis is not None:
            raise MrgenError("--axis: the phantom has axial slices only; leave it out")
        return _Source("phantom", matrix or PHANTOM_MATRIX, None)
    kind, volume = open_volume(Path(source), axis)
    n_y, n_x = volume.images.shape[1:]
    if matrix and (matrix[0] > n_y or matrix[1] > n_x):
        raise MrgenError(
            f"--matrix {matrix[0]} {matrix[1]}: the images have {n_y} x {n_x} pixels and nothing beyond to "
            "scan: choose at most that"
        )
    return _Source(kind, matrix or (n_y, n_x), volume)


@dataclass(frozen=True)
class _Undersampling:
    pattern: str
    acceleration: float
    fraction: float

    def mask(self, matrix: tuple[int, int], file: str, seed: int) -> Tensor:
        """The mask of a file, (kx,), or (ky, kx) of points; raises ValueError for an R that cannot be."""
        rows, lines = matrix
        return sampling_mask(self.pattern, lines, self.acceleration, self.fraction, fastmri_rng(file, seed), rows)


def _parse_undersampling(text: str, matrix: tuple[int, int], oversampling: int) -> _Undersampling:
    """What "NAME/R" means, NAME a pattern or a protocol. Raises MrgenError."""
    name, _, number = text.rpartition("/")
    try:
        acceleration = float(number)
        if not name:
            raise ValueError("no name")
        if name in PATTERNS:
            found = _Undersampling(name, acceleration, default_center_fraction(acceleration))
        else:
            sampling = load(Protocol, name).sampling
            found = _Undersampling(sampling.pattern, acceleration, sampling.fraction(acceleration))
        mask = found.mask(matrix, "scan.h5", 0)
    except (ValueError, MrgenError) as error:
        raise MrgenError(
            f"--undersample {text}: expected PROTOCOL/R or PATTERN/R, for example equispaced/4, the pattern one of "
            f"{', '.join(PATTERNS)}: {error}"
        ) from None
    if mask.ndim == 2 and oversampling > 1:
        raise MrgenError(f"--undersample {text} samples points along two phase encodes: add --oversampling 1")
    return found


def _generator(seed: int, number: int) -> torch.Generator:
    """The random numbers of scan `number`, other ones for each pair."""
    digest = hashlib.sha256(f"mrgen simulate:{seed}:{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _targets(out: Path, count: int | None, force: bool, bytes_each: int) -> list[Path]:
    """The files to write, in a folder that can be written to and is large enough. Raises MrgenError."""
    digits = max(3, len(str((count or 1) - 1)))
    files = [out / "scan.h5"] if count is None else [out / f"scan_{i:0{digits}}.h5" for i in range(count)]
    present = [p.name for p in (*files, out / "manifest.json") if p.exists()]
    if present and not force:
        raise MrgenError(f"{out} holds {present[0]} already: choose another folder, or --force to write over it")
    prepare_output_dir(out)
    free = shutil.disk_usage(out).free
    if len(files) * bytes_each > free:
        raise MrgenError(
            f"{len(files) * bytes_each / 1e9:.1f} GB to write, but {out} has room for {free / 1e9:.1f} GB: take fewer "
            "--slices, --coils or scans, or --oversampling 1"
        )
    return files


def _check_numbers(snr: float, correlation: float | None, phase: float) -> None:
    if not (math.isfinite(snr) and snr > 0):
        raise MrgenError(f"--snr {snr:g}: expected a number above 0; mrgen reads no scan without noise")
    for name, value in (("--correlation", correlation), ("--phase", phase)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise MrgenError(f"{name} {value:g}: expected a number of at least 0")


def _record(file: Path, mask: Tensor | None, covariance: Tensor) -> dict[str, Any]:
    """What the manifest says of one scan."""
    return {
        "file": file.name,
        "R": 1.0 if mask is None else achieved_acceleration(mask),
        "sampled_lines": None if mask is None or mask.ndim == 2 else mask.nonzero().flatten().tolist(),
        "sigma": float(covariance.diagonal().real.mean().sqrt()),
        "noise_covariance": {"real": covariance.real.tolist(), "imag": covariance.imag.tolist()},
    }


def simulate(
    source_name: Annotated[
        str, typer.Argument(metavar="SOURCE", help="phantom; a .nii, .nii.gz or .npz; or a folder, a DICOM series.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the scans, .h5 in the fastMRI layout.")],
    count: Annotated[
        int | None, typer.Option(min=1, help="So many scans, each of another head: posed, sized and weighted anew.")
    ] = None,
    slices: Slices = None,
    axis: Annotated[
        str | None,
        typer.Option(help="axial (NIfTI's default), coronal or sagittal slices; of an array: 0, 1 or 2."),
    ] = None,
    matrix: Annotated[
        tuple[int, int] | None, typer.Option(metavar="Y X", help="Readout and phase encodes; else the images' pixels.")
    ] = None,
    oversampling: Annotated[int, typer.Option(min=1, max=4, help="Of the readout, as scanners do.")] = 2,
    coils: Annotated[int | None, typer.Option(min=1, max=256, help=f"Receive coils; {COILS} by default.")] = None,
    array: Annotated[CoilArray | None, typer.Option(help=f"Where the coils are; {CoilArray.ring} by default.")] = None,
    maps_from: Annotated[
        Path | None, typer.Option(metavar="SCAN", help="Take coil maps and noise covariance from this scan.")
    ] = None,
    snr: Annotated[float, typer.Option(help="Mean tissue signal over noise std (docs/simulate.md).")] = 30.0,
    correlation: Annotated[
        float | None, typer.Option(help=f"Of the noise between coils, about; {CORRELATION} by default.")
    ] = None,
    phase: Annotated[float, typer.Option(help="Strength of the smooth phase, rad.")] = 1.0,
    undersample: Annotated[
        str | None, typer.Option(metavar="NAME/R", help="By a protocol or mask pattern: head/4, equispaced/8.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over files of an earlier run.")] = False,
) -> None:
    """Simulate multi-coil raw scans from images: coils, phase, noise, oversampling and, on request, undersampling."""
    _check_numbers(snr, correlation, phase)
    if maps_from and (coils, array, correlation) != (None, None, None):
        raise MrgenError("--maps-from brings coils and noise correlation: leave out --coils, --array and --correlation")
    source = _open_source(source_name, matrix, axis)
    chosen = parse_slices(slices, source.slices)
    undersampling = _parse_undersampling(undersample, source.matrix, oversampling) if undersample else None
    measured = measured_coils(open_scan(maps_from)) if maps_from else None
    scanner = Scanner(
        matrix=source.matrix,
        oversampling=oversampling,
        snr=snr,
        phase=phase,
        coils=len(measured[1]) if measured else coils or COILS,
        array=array or CoilArray.ring,
        correlation=CORRELATION if correlation is None else correlation,
        measured=measured,
    )
    files = _targets(out, count, force, 8 * len(chosen) * scanner.coils * oversampling * math.prod(source.matrix))
    (out / "manifest.json").unlink(missing_ok=True)  # the old one says nothing about the new scans
    scans: list[dict[str, Any]] = []
    with progress_on_stderr() as progress:
        for number, file in enumerate(files):
            generator = _generator(seed, number)
            head = source.head(chosen, count is not None, generator)
            kspace, covariance = scanner.acquire(head, generator)
            mask = undersampling.mask(source.matrix, file.name, seed) if undersampling else None
            layout = Layout(len(chosen), scanner.coils, source.matrix, oversampling, head.fov, head.thickness)

            def watched(slices: Iterator[Tensor], number: int = number, name: str = file.name) -> Iterator[Tensor]:
                for i, one in enumerate(slices):
                    progress((number + i / len(chosen)) / len(files), f"{name}, slice {i + 1} of {len(chosen)}")
                    yield one

            try:
                with replacing([file]) as (partial,):
                    write_fastmri(partial, watched(kspace), layout, mask, f"simulated-{seed}-{number}")
            except OSError as error:
                raise MrgenError(f"could not write {file} ({error}): free space or choose another folder") from None
            scans.append(_record(file, mask, covariance))
    manifest = {
        "notice": NOTICE,
        "mrgen_version": __version__,
        "definitions": DEFINITIONS,
        "source": source.kind,
        "varied": count is not None,
        "slices": [chosen.start, chosen.stop],
        "fov_mm": head.fov,
        "thickness_mm": head.thickness,
        "matrix": scanner.matrix,
        "oversampling": oversampling,
        "coils": scanner.coils,
        "array": "measured" if measured else scanner.array,
        "correlation": None if measured else scanner.correlation,
        "snr": snr,
        "phase_rad": phase,
        "undersampling": asdict(undersampling) if undersampling else None,
        "seed": seed,
        "scans": scans,
    }
    with replacing([out / "manifest.json"]) as (partial,):
        partial.write_text(json.dumps(manifest, indent=2) + "\n")

    size = f"{oversampling * source.matrix[0]} x {source.matrix[1]}"
    low, high = (f"{pick(scan['R'] for scan in scans):.2f}" for pick in (min, max))
    typer.echo(
        f"scanned {source.kind}: {len(chosen)} of {source.slices} slices, {scanner.coils} coils, {size}, SNR {snr:g}, "
        f"R = {low}" + (f" to {high}" if high != low else "")
    )
    for path in [*files, out / "manifest.json"]:
        typer.echo(f"wrote   {path}")
    typer.echo(NOTICE)
