"""A result of `mrgen recon` read back from its HDF5 file: what every other format is made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mrgen.errors import MrgenError
from mrgen.review.geometry import read_geometry
from mrgen.scans.files import check_file, hdf5, stored_text
from mrgen.scans.geometry import Geometry

Volume = NDArray[np.float32]
SERIES = ("reconstruction", "std", "zero_filled", "interval")  # the images that leave mrgen
_NEEDED = ("recipe", "R", "seed", "first_slice", "scan_slices", "mrgen_version")
# What the HTML report says of every result, and what of those to which the first word applies.
_REPORTED = [
    *("recipe.name", "coils.scan", "coils.virtual", "noise.from", "zero_filled_lines", "seed", "identity"),
    *("flagged.rule", "flagged.figures.slice", "flagged.slices.slice", "flagged.slices.reasons"),
]
_SOMETIMES = [
    *("lines.sampled", "lines.all", "points.sampled", "points.all", "metrics.slices.reconstruction", "metrics.volume"),
    *("interval.coverage", "interval.factor", "interval.sha256"),
]


@dataclass(frozen=True)
class Stored:
    """The images (slice, y, x), float32, and what is known about them."""

    path: Path
    images: dict[str, Volume]  # those of SERIES that the file holds
    attributes: dict[str, Any]
    geometry: Geometry
    header: str | None  # ismrmrd_header, without anything that identifies a person
    has_samples: bool  # of every slice, exact
    sampled: range  # the slices with samples, exact or in whole steps
    report: dict[str, Any]  # what report.json says

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slice, y, x)."""
        count, n_y, n_x = self.images["reconstruction"].shape
        return count, n_y, n_x

    @property
    def samples(self) -> int | None:
        """How many the mean is taken over; None for a recipe without samples."""
        return self.attributes.get("n_samples")

    @property
    def antithetic(self) -> bool:
        """Whether samples 0 and 1, 2 and 3, ... are pairs with noise of opposite signs."""
        return bool(self.report.get("recipe", {}).get("antithetic"))

    @property
    def created(self) -> datetime:
        """When the file was written, UTC."""
        return datetime.fromtimestamp(int(self.path.stat().st_mtime), UTC)

    def sample(self, number: int) -> Volume:
        """Posterior sample `number` of every slice, (slice, y, x)."""
        with hdf5(self.path) as file:
            volume: Volume = file["samples"][:, number].astype(np.float32)
        return volume

    def slice_samples(self, i: int) -> Volume:
        """The samples of slice i, one of `sampled`, (sample, y, x)."""
        with hdf5(self.path) as file:
            if self.has_samples:
                exact: Volume = file["samples"][i].astype(np.float32)
                return exact
            stepped = file["report_samples"]
            volume: Volume = stepped[i - self.sampled.start].astype(np.float32) * np.float32(stepped.attrs["step"])
            return volume

    def volume(self, name: str) -> Volume | None:
        """Another image of the file, (slice, y, x), None where it has none of this name."""
        with hdf5(self.path) as file:
            return _volume(file, name) if name in file else None

    def mask(self) -> NDArray[np.bool_]:
        """Which lines (kx,) or points (ky, kx) were used."""
        with hdf5(self.path) as file:
            used: NDArray[np.bool_] = file["mask"][()] > 0
        return used

    def digest(self) -> str:
        """SHA-256 of images, geometry and settings."""
        known = json.dumps([self.attributes, vars(self.geometry)], sort_keys=True, default=str)
        found = hashlib.sha256(known.encode())
        for name, image in self.images.items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(image, "<f4").tobytes())
        return found.hexdigest()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def read_stored(path: Path) -> Stored:
    """Read a result. Raises MrgenError, naming the file, for anything that is none."""
    check_file(path, "a result of mrgen recon (.h5)")
    with hdf5(path) as file:
        if "reconstruction" not in file:
            raise MrgenError("no dataset 'reconstruction', expected a result of mrgen recon: name its .h5 file")
        images = {name: _volume(file, name) for name in SERIES if name in file}
        if len({image.shape for image in images.values()}) > 1:
            raise MrgenError("its images differ in shape: reconstruct the scan again")
        attributes = {name: _plain(value) for name, value in file.attrs.items()}
        needed = _NEEDED + ("interval" in images) * ("interval_coverage", "interval_factor")
        missing = [name for name in needed if name not in attributes]
        if missing:
            raise MrgenError(f"it lacks {', '.join(missing)}: an older mrgen wrote it; reconstruct the scan again")
        header = stored_text(file["ismrmrd_header"], "ismrmrd_header") if "ismrmrd_header" in file else None
        geometry, report = read_geometry(file), _report(file)
        return Stored(path, images, attributes, geometry, header, "samples" in file, _sampled(file), report)


def _sampled(file: h5py.File) -> range:
    if "samples" in file:
        return range(len(file["samples"]))
    if "report_samples" not in file:
        return range(0)
    first = int(file["report_samples"].attrs["first"])
    return range(first, first + len(file["report_samples"]))


def _report(file: h5py.File) -> dict[str, Any]:
    if "report" not in file:
        raise MrgenError("it lacks the report: an older mrgen wrote it; reconstruct the scan again")
    try:
        report = json.loads(stored_text(file["report"], "report"))
    except ValueError:
        report = None
    if not isinstance(report, dict):
        raise MrgenError("its report is not what mrgen writes: reconstruct the scan again")
    needed = _REPORTED + [key for key in _SOMETIMES if report.get(key.partition(".")[0])]
    missing = [key for key in needed if not _holds(report, key.split("."))]
    if not (report.get("lines") or report.get("points")):
        missing.append("lines")
    if missing:
        raise MrgenError(f"its report lacks {', '.join(missing)}: reconstruct the scan again")
    return report


def _holds(value: Any, path: list[str]) -> bool:
    """Whether there is something at `path`, in every entry of a list."""
    if isinstance(value, list):
        return all(_holds(entry, path) for entry in value)
    return not path or (isinstance(value, dict) and path[0] in value and _holds(value[path[0]], path[1:]))


def _volume(file: h5py.File, name: str) -> Volume:
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.ndim != 3 or data.dtype.kind != "f" or 0 in data.shape:
        raise MrgenError(f"{name} is no volume (slice, y, x) of real numbers: reconstruct the scan again")
    volume: Volume = data[()].astype(np.float32)
    if not np.isfinite(volume).all():
        raise MrgenError(f"{name} holds NaN or infinity: reconstruct the scan again")
    return volume
