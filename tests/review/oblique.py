"""A result whose voxels have places of their own: oblique, not square, asymmetric, a marker elsewhere in each slice."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from mrgen.review.geometry import write_geometry
from mrgen.scans.geometry import Geometry

SLICES, ROWS, COLUMNS = 5, 24, 17
MARKERS = [(3 + 2 * i, 12 - i) for i in range(SLICES)]  # (row, column) in each slice
WIDE = [(i, 8 + i + k, 3) for i in (0, 2, 3) for k in range(6)] + [
    (i, 8 + i, 3 + k) for i in (0, 2, 3) for k in range(1, 9)
]
SPECK = [(1, 15 + k % 2, 5 + k // 2) for k in range(8)]  # smaller than what is flagged
FLAG = 0.2  # a threshold between the interval there and elsewhere
HEADER = """<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><measurementInformation><patientPosition>HFS</patientPosition>
</measurementInformation><acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor><systemModel>Skyra</systemModel>
<systemFieldStrength_T>2.89</systemFieldStrength_T></acquisitionSystemInformation><encoding><encodedSpace><matrixSize>
<x>24</x><y>17</y><z>1</z></matrixSize></encodedSpace></encoding><sequenceParameters><TR>500</TR><TE>9.8</TE>
</sequenceParameters></ismrmrdHeader>"""


def rotation() -> np.ndarray:
    """Orthonormal columns (readout, phase, slice) that are near no axis; right-handed as (phase, readout, slice)."""
    a, b, c = 0.4, -0.7, 1.1
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def oblique(reverse: bool = False) -> Geometry:
    """Slices 3.3 mm apart, of pixels 1.5 mm along the readout and 0.8 mm across; `reverse`: the last comes first."""
    e = rotation()
    sense = -1 if reverse else 1
    centres = [np.array([12.0, -34.0, 56.0]) + sense * 3.3 * i * e[:, 2] for i in range(SLICES)]
    return Geometry(
        spacing=(1.5, 0.8),
        thickness=3.0,
        positions=tuple(tuple(map(float, r)) for r in centres),
        readout=tuple(map(float, e[:, 0])),
        phase=tuple(map(float, e[:, 1])),
        normal=tuple(map(float, sense * e[:, 2])),
    )


def world(row: float, column: float, i: int, reverse: bool = False) -> np.ndarray:
    """Where a pixel of the geometry above lies, mm and LPS, written out once more for the tests."""
    e = rotation()
    centre = np.array([12.0, -34.0, 56.0]) + (-1 if reverse else 1) * 3.3 * i * e[:, 2]
    return centre + (row - 12) * 1.5 * e[:, 0] + (column - 8) * 0.8 * e[:, 1]


def images(slices: int = SLICES) -> dict[str, np.ndarray]:
    """Mean, std and zero-filled (slice, y, x): smooth, unlike in every direction, the marker the brightest pixel."""
    i, y, x = np.meshgrid(np.arange(slices), np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    mean = 1e-4 * (1 + 0.02 * y + 0.05 * x + 0.1 * i + ((y < 8) & (x < 6)))
    for number in range(slices):
        mean[number][MARKERS[number % SLICES]] = 5e-4 + 1e-5 * number
    std = 0.02 * mean * (1 + 0.3 * np.sin(0.9 * x + 0.4 * y + i))
    return {
        name: v.astype(np.float32) for name, v in (("reconstruction", mean), ("std", std), ("zero_filled", 0.8 * mean))
    }


def report(slices: int) -> dict[str, object]:
    """What report.json says, as far as the HTML report needs it."""
    return {
        "recipe": {"name": "posterior", "steps": 20}, "seed": 3, "identity": "cd" * 32, "zero_filled_lines": 0,
        "lines": {"sampled": COLUMNS, "all": COLUMNS}, "coils": {"scan": 8, "virtual": None},
        "noise": {"from": "image background"},
        "flagged": {"rule": "none", "figures": [{"slice": i} for i in range(slices)], "slices": []},
    }  # fmt: skip


def interval(slices: int = SLICES) -> np.ndarray:
    """Half-width of the interval (slice, y, x): 2 std, and half of the brightest tissue in WIDE and SPECK."""
    half = 2 * images(slices)["std"]
    for i, row, column in WIDE + SPECK:
        if i < slices:
            half[i, row, column] = 0.5 * np.percentile(images(slices)["reconstruction"][i], 99)
    return half


def write_result(
    path: Path, geometry: Geometry, samples: int | None = 4, calibrated: bool = False, **attributes: object
) -> Path:
    """The .h5 file of a result as mrgen recon writes it."""
    volumes = images(len(geometry.positions or range(SLICES)))
    if calibrated:
        volumes["interval"] = interval(len(volumes["std"]))
        attributes = {"interval_coverage": 0.9, "interval_factor": 2.0} | attributes
    with h5py.File(path, "w") as file:
        for name, volume in volumes.items():
            if samples is not None or name != "std":
                file[name] = volume
        if samples is not None:
            file["samples"] = np.stack([volumes["reconstruction"] * (1 + 0.01 * k) for k in range(samples)], axis=1)
        file["mask"] = np.ones(COLUMNS, np.float32)
        file["report"] = json.dumps(report(len(volumes["std"])))
        file["ismrmrd_header"] = HEADER
        write_geometry(file, geometry)
        file.attrs.update({
            "R": 4.0, "zero_filled_lines": 0, "seed": 3, "recipe": "posterior", "first_slice": 0,
            "scan_slices": len(volumes["std"]), "mrgen_version": "0.1.0",
            "prior_sha256": "ab" * 32, "notice": "Research use only. Not for diagnostic use.",
        } | ({} if samples is None else {"n_samples": samples}) | attributes)  # fmt: skip
    return path
