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
from mrgen.scans.scan import Geometry

Volume = NDArray[np.float32]
SERIES = ("reconstruction", "std", "zero_filled", "interval")  # the images that leave mrgen
_NEEDED = ("recipe", "R", "seed", "first_slice", "scan_slices", "mrgen_version")


@dataclass(frozen=True)
class Stored:
    """The images (slice, y, x), float32, and what is known about them."""

    path: Path
    images: dict[str, Volume]  # those of SERIES that the file holds
    attributes: dict[str, Any]
    geometry: Geometry
    header: str | None  # ismrmrd_header, without anything that identifies a person
    has_samples: bool

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
    def created(self) -> datetime:
        """When the file was written, UTC."""
        return datetime.fromtimestamp(int(self.path.stat().st_mtime), UTC)

    def sample(self, number: int) -> Volume:
        """Posterior sample `number` of every slice, (slice, y, x)."""
        with hdf5(self.path) as file:
            volume: Volume = file["samples"][:, number].astype(np.float32)
        return volume

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
        return Stored(path, images, attributes, read_geometry(file), header, "samples" in file)


def _volume(file: h5py.File, name: str) -> Volume:
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.ndim != 3 or data.dtype.kind != "f" or 0 in data.shape:
        raise MrgenError(f"{name} is no volume (slice, y, x) of real numbers: reconstruct the scan again")
    volume: Volume = data[()].astype(np.float32)
    if not np.isfinite(volume).all():
        raise MrgenError(f"{name} holds NaN or infinity: reconstruct the scan again")
    return volume
