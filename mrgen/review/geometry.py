"""Where the pixels of a result lie: one policy for every format.

    p(x, y) = o_i + x dx e_x + y dy e_y        centre of pixel (row y, column x) of slice i, in mm

in the patient's LPS axes (left, posterior, superior are positive), as DICOM has them; NIfTI's are RAS. `orientation.py`
of mrgen.scans gives the centre r_i of the field of view, which is at pixel (n_y // 2, n_x // 2), so

    o_i = r_i - (n_x // 2) dx e_x - (n_y // 2) dy e_y

Half of n - 1 instead would be off by half a pixel. The geometry is, in this order, that of a DICOM series of the same
scan, that of the raw data, or nominal: slices one after the other through the origin, e_x = L, e_y = P, which no left
or right may be read from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mrgen.errors import MrgenError
from mrgen.scans.files import stored_text
from mrgen.scans.geometry import Geometry, Vector

Points = NDArray[np.float64]
NOMINAL_NOTICE = "NOMINAL GEOMETRY, L/R NOT VERIFIED"
_SAME = 1e-3  # mm: positions closer than this are one
_EQUAL = 0.01  # of the distance between slices
_SLANT = 0.26  # sine of 15 degrees, which are worth a letter


@dataclass(frozen=True)
class Placement:
    """Where every slice of a result lies, in mm and LPS."""

    origins: Points  # (slice, 3), centre of pixel (0, 0)
    along_x: Points  # (3,) unit vector of increasing column
    along_y: Points  # (3,) unit vector of increasing row
    spacing: tuple[float, float]  # between rows (y) and between columns (x)
    thickness: float
    source: str  # "DICOM series", "raw data" or "nominal"

    @property
    def nominal(self) -> bool:
        return self.source == "nominal"

    def key(self) -> tuple[object, ...]:
        """All of it, in numbers as exact as DICOM keeps them: equal for equal placements."""
        return tuple(v if isinstance(v, str) else np.round(np.asarray(v), 6).tolist() for v in vars(self).values())

    def volumes(self) -> list[range]:
        """Slices that follow each other at places of their own; repetitions and contrasts begin a new volume."""
        starts = [0]
        for i, origin in enumerate(self.origins):
            earlier = self.origins[starts[-1] : i]
            if len(earlier) and np.abs(earlier - origin).max(axis=1).min() < _SAME:
                starts.append(i)
        return [range(a, b) for a, b in zip(starts, [*starts[1:], len(self.origins)], strict=True)]

    def step(self) -> Points:
        """From a slice to the next, (3,), the same in all volumes; a single slice's thickness along its normal.

        Raises MrgenError where the slices are not equally spaced.
        """
        gaps = [np.diff(self.origins[volume.start : volume.stop], axis=0) for volume in self.volumes()]
        every = np.concatenate(gaps)
        if not len(every):
            return self.thickness * np.cross(self.along_x, self.along_y)
        mean: Points = every.mean(axis=0)
        if np.abs(every - mean).max() > _EQUAL * np.linalg.norm(mean):
            sizes = np.linalg.norm(every, axis=1)
            raise MrgenError(
                f"the slices are {sizes.min():.2f} to {sizes.max():.2f} mm apart, expected equal steps, as NIfTI has "
                "no others: choose --formats hdf5,dicom"
            )
        return mean

    def affine(self) -> Points:
        """(4, 4), from (column, row, slice, 1) to mm in LPS, of the first volume. Raises MrgenError as `step` does."""
        matrix = np.eye(4)
        matrix[:3, 0] = self.along_x * self.spacing[1]
        matrix[:3, 1] = self.along_y * self.spacing[0]
        matrix[:3, 2] = self.step()
        matrix[:3, 3] = self.origins[0]
        return matrix


def towards(direction: Points) -> str:
    """The letters of PatientOrientation for a unit vector (3,) in LPS: LP is to the left, and less so, posterior."""
    order = sorted(range(3), key=lambda axis: -abs(direction[axis]))
    return "".join(
        ("RL", "AP", "FH")[axis][int(direction[axis] > 0)] for axis in order if abs(direction[axis]) > _SLANT
    )


def place(geometry: Geometry, count: int, matrix: tuple[int, int]) -> Placement:
    """The placement of `count` slices of `matrix` (y, x) by the raw data, nominal where their geometry is incomplete.

    What is known of pixel size and thickness is kept, the rest is 1 mm.
    """
    dy, dx = geometry.spacing or (1.0, 1.0)
    thickness = geometry.thickness or 1.0
    real = geometry.complete
    if real:
        e_x, e_y = _orthonormal(geometry.phase, geometry.readout)
        centres = np.asarray(geometry.positions, np.float64)
    else:
        e_x, e_y = np.eye(3)[:2]
        centres = np.multiply.outer(np.arange(count) - count // 2, [0.0, 0.0, thickness])
    if len(centres) != count:
        raise MrgenError(f"{count} slices with {len(centres)} positions, expected one each: reconstruct the scan again")
    corner = (matrix[1] // 2) * dx * e_x + (matrix[0] // 2) * dy * e_y
    return Placement(centres - corner, e_x, e_y, (dy, dx), thickness, "raw data" if real else "nominal")


def _orthonormal(e_x: Vector | None, e_y: Vector | None) -> tuple[Points, Points]:
    """The nearest orthonormal pair: files hold single precision, some viewers compare to 1e-4."""
    u, _, v = np.linalg.svd(np.array([e_x, e_y], np.float64), full_matrices=False)
    nearest: Points = u @ v
    return nearest[0], nearest[1]


def write_geometry(file: h5py.File, geometry: Geometry) -> None:
    """Store what is known as the JSON text `geometry` of a result."""
    file["geometry"] = json.dumps({name: value for name, value in vars(geometry).items() if value is not None})


def read_geometry(file: h5py.File) -> Geometry:
    """What `write_geometry` stored. Raises MrgenError where there is none, or something else."""
    if "geometry" not in file:
        raise MrgenError("it holds no geometry: an older mrgen wrote it; reconstruct the scan again")
    try:
        known = json.loads(stored_text(file["geometry"], "geometry"))
        arrays = {name: np.asarray(value, np.float64) for name, value in known.items()}
        geometry = Geometry(**{name: _tuples(value) for name, value in known.items()})
    except (ValueError, TypeError, AttributeError):
        arrays, geometry = {"": np.array(np.nan)}, Geometry()
    shapes = {"spacing": (2,), "thickness": (), "positions": (arrays.get("positions", np.empty(0)).size // 3, 3)}
    if any(a.shape != shapes.get(name, (3,)) or not np.isfinite(a).all() for name, a in arrays.items()):
        raise MrgenError("its geometry is not what mrgen writes: reconstruct the scan again")
    return geometry


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
