"""The data doctor: what a file of raw data holds, what mrgen will do with it, and every reason not to.

One slice is examined, the middle one. Its signal and maps are judged on x, the whitened coil images of the ACS
alone, a share f of all samples, whose noise is CN(0, f) in every pixel and coil:

    SNR        median over the object of |S^H x|, the noise of a fully sampled image being 1
    explained  1 - (|x - S S^H x|^2 - (C - 1) f) / (|x|^2 - C f), summed over the object

The object is where (|x|^2 - C f)^(1/2) exceeds a tenth of its 99th percentile, and 3 sqrt(f). Two signals share a pixel
where a second set of ESPIRiT maps has support of its own:
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.espirit import espirit_maps
from mrgen.physics.fourier import ifft2c
from mrgen.physics.noise import whiten, whitening_matrix
from mrgen.scans.checks import REASONS, WARNINGS, Evidence
from mrgen.scans.geometry import Geometry, Vector
from mrgen.scans.header import parse_header
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import CALIBRATION_LINES, calibration_data, noise_covariance, prepare
from mrgen.scans.recognise import SamplingFound, recognise
from mrgen.scans.scan import Scan

SUFFIXES = (".h5", ".mrd", ".npz", ".cfl", ".dat")  # what is looked for in a folder
_OBJECT = 0.1
_PLANES, _AXES = ("sagittal", "coronal", "axial"), (("right", "left"), ("front", "back"), ("feet", "head"))
_STRAIGHT = 1.0  # degrees


@dataclass(frozen=True)
class NoiseFound:
    """Receiver noise and coils."""

    source: str
    sigma0: float | None  # std of the total complex noise in scaled units
    coil_std: tuple[float, ...]  # of each coil, over the median coil's
    correlation: float  # largest off-diagonal element of the normalised covariance
    condition: float | None  # of the covariance; None where it is singular


@dataclass(frozen=True)
class Findings:
    """What `examine` found in one file; None is unknown. `reasons` say why the scan cannot be used."""

    file: str
    format: str | None = None
    slices: int | None = None
    coils: int | None = None
    matrix: tuple[int, int] | None = None  # ky (readout, cropped), kx (phase)
    readout: int | None = None  # samples along the readout before it was cropped, where the header tells them
    spacing: tuple[float, float] | None = None  # mm
    thickness: float | None = None  # mm
    orientation: str | None = None
    examined_slice: int | None = None
    sampling: SamplingFound | None = None
    noise: NoiseFound | None = None
    snr: float | None = None
    maps_explain: float | None = None  # share of the object's energy
    two_signals_area: float | None = None  # share of the object's pixels
    plan: str | None = None
    command: str | None = None
    remarks: tuple[str, ...] = ()  # of the reader
    warnings: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def usable(self) -> bool:
        return not self.reasons

    def record(self) -> dict[str, Any]:
        """The findings as JSON takes them, without the evidence."""
        record = {**asdict(replace(self, evidence=None)), "usable": self.usable}
        del record["evidence"]
        return record


def find_scans(path: Path) -> list[Path]:
    """`path` itself, or the scans in a folder, by their suffix. Raises MrgenError for a folder without any."""
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not found:
        raise MrgenError(f"{path.name}: no file ends with {', '.join(SUFFIXES)}: name a folder of scans, or the scans")
    return found


def _angle(vector: Vector, axis: int) -> float:
    return math.degrees(math.acos(min(1.0, abs(vector[axis]) / math.hypot(*vector))))


def _direction(vector: Vector) -> str:
    axis = max(range(3), key=lambda i: abs(vector[i]))
    low, high = _AXES[axis]
    return f"{low} to {high}" if vector[axis] > 0 else f"{high} to {low}"


def orientation(geometry: Geometry) -> str | None:
    """The plane of the slices in words, with its tilt, and where readout and phase encoding go; None if unknown."""
    readout, phase, normal = geometry.readout, geometry.phase, geometry.normal
    if readout is None or phase is None or normal is None:
        return None
    axis = max(range(3), key=lambda i: abs(normal[i]))
    tilt = _angle(normal, axis)
    plane = _PLANES[axis] if tilt < _STRAIGHT else f"oblique, {tilt:.0f} degrees from {_PLANES[axis]}"
    return f"{plane}; readout {_direction(readout)}, phase {_direction(phase)}"


def _maps_and_snr(scan: Scan, index: int, raw: Tensor, matrix: Tensor, maps: Tensor) -> tuple[float | None, ...]:
    """SNR, the share of energy that the maps explain and the share of the object that they do not, as in the module."""
    coils, n_y, n_x = raw.shape
    sampled = (raw != 0).flatten(0, 1).any(0).float() if scan.mask is None else scan.mask
    calibration = None if scan.read_calibration is None else scan.read_calibration(index)
    centre, acs = calibration_data(raw, sampled, calibration)
    f = float((centre != 0).any(0).float().mean())
    x = ifft2c(whiten(centre, matrix))
    combined = (maps.conj() * x).sum(0)
    magnitude = (x.abs().square().sum(0) - coils * f).clamp_min(0).sqrt()
    object_ = magnitude > max(_OBJECT * float(magnitude.quantile(0.99)), 3 * math.sqrt(f))
    if not object_.any():
        return None, None, None
    snr = float(combined.abs()[object_].median())
    if coils == 1:
        return snr, None, None
    residual, total = ((v.abs().square().sum(0))[object_] for v in (x - maps * combined, x))
    pixels = int(object_.sum())
    signal = float(total.sum()) - coils * f * pixels
    explained = 1 - (float(residual.sum()) - (coils - 1) * f * pixels) / max(signal, 1e-30)
    both, _ = espirit_maps(whiten(acs, matrix)[None], (n_y, n_x), 1.0, sets=2)
    second = both[0, 1].abs().square().sum(0) > 0
    return snr, min(1.0, explained), float(second[object_].float().mean())


@contextmanager
def _noting(reasons: list[str], file: str) -> Iterator[None]:
    """A MrgenError inside becomes one of the reasons, without the file's name in front."""
    try:
        yield
    except MrgenError as error:
        reasons.append(str(error).removeprefix(f"{file}: "))


def gather(scan: Scan, index: int, reasons: list[str]) -> Evidence | None:
    """What can be told from slice `index`; what cannot goes to `reasons`."""
    file = Path(scan.path).name
    with _noting(reasons, file):
        raw = scan.read_slice(index)
        covariance, noise_from = noise_covariance(raw, scan.mask, scan.noise)
        slice_ = matrix = None
        snr = explained = area = None
        with _noting(reasons, file):
            slice_ = prepare(scan, index, keep_reference=True)
        try:
            matrix = whitening_matrix(covariance)
        except ValueError:
            assert slice_ is None  # for this very reason, which is noted
        if matrix is not None and slice_ is not None:
            snr, explained, area = _maps_and_snr(scan, index, raw, matrix, slice_.maps)
        white = None if matrix is None else whiten(raw, matrix)
        return Evidence(scan, index, raw, covariance, noise_from, white, slice_, snr, explained, area)
    return None


def _noise(e: Evidence) -> NoiseFound | None:
    if e.covariance is None or e.noise_from is None:
        return None
    std = e.covariance.diagonal().real.clamp_min(0).sqrt()
    if not float(std.median()) > 0:
        return None
    normalised = (e.covariance / std.clamp_min(1e-30)[:, None] / std.clamp_min(1e-30)).abs().fill_diagonal_(0)
    eigenvalues = torch.linalg.eigvalsh(e.covariance.to(torch.complex128))
    singular = float(eigenvalues[0]) <= 1e-6 * float(eigenvalues[-1])
    return NoiseFound(
        source=e.noise_from,
        sigma0=e.slice.sigma0 if e.slice else None,
        coil_std=tuple(round(float(s / std.median()), 4) for s in std),
        correlation=float(normalised.max()),
        condition=None if singular else float(eigenvalues[-1] / eigenvalues[0]),
    )


def _suggested(scan: Scan) -> int:
    """R to try on a fully sampled scan: 8, less where few coils or lines do not carry it."""
    fits = [r for r, coils, lines in ((8, 8, 100), (4, 2, 50)) if scan.shape[1] >= coils and scan.shape[3] >= lines]
    return fits[0] if fits else 2


def _plan(scan: Scan, found: SamplingFound, readout: int | None, noise_from: str) -> tuple[str, str]:
    """What `mrgen recon` does with the scan, and the command."""
    name, rows = Path(scan.path).name, scan.shape[2]
    steps = []
    if readout not in (None, rows):
        steps.append(f"crop the readout from {readout} to {rows} in image space")
    steps.append(f"whiten the coils by the noise of the {noise_from}")
    if scan.read_calibration is not None:
        steps.append("estimate coil maps by ESPIRiT from the calibration lines measured apart")
    elif found.kind == "points":
        steps.append("estimate coil maps by ESPIRiT from the central {} x {} points".format(*found.acs))
    elif scan.mask is None:
        steps.append("undersample it by --R, estimate coil maps by ESPIRiT from the centre that this keeps")
    else:
        steps.append(f"estimate coil maps by ESPIRiT from the central {min(found.acs[1], CALIBRATION_LINES)} lines")
    if scan.mask is None:
        steps.append("reconstruct, and compare with the fully sampled image")
        return ", ".join(steps), f"mrgen recon {name} --R {_suggested(scan)} -o out/"
    steps.append(f"reconstruct it as it was measured, R = {found.acceleration:.2f}")
    return ", ".join(steps), f"mrgen recon {name} -o out/"


def _other_slices(scan: Scan) -> list[str]:
    """What is wrong with the other slices, each with the way out."""
    found: list[str] = []
    for i in range(scan.slices):
        with _noting(found, Path(scan.path).name):
            scan.read_slice(i)
    return [f"{text} (or use --slices to leave it out)" for text in found]


def examine(path: Path, *, all_slices: bool = False) -> Findings:
    """Findings on the middle slice of the scan at `path`, and with `all_slices` on which slices cannot be read.

    Raises nothing for a scan that cannot be used: why not is among the findings.
    """
    reasons: list[str] = []
    with _noting(reasons, path.name):
        scan = open_scan(path)
    if reasons:
        return Findings(path.name, reasons=tuple(reasons))
    index = scan.slices // 2
    evidence = gather(scan, index, reasons)
    header = parse_header(scan.header) if scan.header else None
    readout = header.encoded[0] if header and header.encoded[0] > scan.shape[2] else None
    sampling = recognise(scan.mask, scan.shape[2:], scan.padding)
    findings = Findings(
        file=path.name,
        format=scan.format,
        slices=scan.slices,
        coils=scan.shape[1],
        matrix=scan.shape[2:],
        readout=readout,
        spacing=scan.geometry.spacing,
        thickness=scan.geometry.thickness,
        orientation=orientation(scan.geometry),
        examined_slice=index,
        sampling=sampling,
        remarks=scan.remarks,
        reasons=tuple(reasons),
    )
    if evidence is None:
        return findings
    reasons = [s for check in REASONS if (s := check(evidence))] + reasons
    warnings = [s for check in WARNINGS if (s := check(evidence))] + (_other_slices(scan) if all_slices else [])
    plan, command = _plan(scan, sampling, readout, evidence.noise_from or "") if not reasons else (None, None)
    return replace(
        findings,
        noise=_noise(evidence),
        snr=evidence.snr,
        maps_explain=evidence.explained,
        two_signals_area=evidence.two_signals_area,
        plan=plan,
        command=command,
        warnings=tuple(warnings),
        reasons=tuple(reasons),
        evidence=evidence,
    )
