"""Time `mrgen export` of a 16-slice 320 x 320 result of 8 samples into NIfTI, DICOM and the HTML report.

    python examples/benchmark_export.py [SLICES]

Inside a disc the images are noise, which compresses worst; the time that counts is that of the second of two exports,
after the imports.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from mrgen.review.export import FORMATS, Exports, place_of
from mrgen.review.geometry import write_geometry
from mrgen.review.pack import levels, step_of
from mrgen.scans.scan import Geometry

MATRIX, SAMPLES = 320, 8


def write_result(path: Path, slices: int) -> None:
    """A result of the size asked for, with what mrgen recon writes of a fully sampled scan."""
    rng = np.random.default_rng(0)
    inside = np.hypot(*np.ogrid[-1 : 1 : MATRIX * 1j, -1 : 1 : MATRIX * 1j]) < 0.8  # half of the pixels: a head
    mean = inside * (1 + rng.random((slices, MATRIX, MATRIX), dtype=np.float32))
    samples = mean[:, None] + inside * 0.04 * rng.standard_normal((slices, SAMPLES, MATRIX, MATRIX), dtype=np.float32)
    with h5py.File(path, "w") as file:
        for name in ("reconstruction", "std", "zero_filled", "l1_wavelet", "reference", "null_space"):
            file[name] = mean * (1 + 0.04 * rng.standard_normal(mean.shape, dtype=np.float32))
        file["mask"] = np.ones(MATRIX, np.float32)
        file["report_samples"] = levels(samples, step_of(mean))
        file["report_samples"].attrs.update({"step": step_of(mean), "first": 0})
        file["report"] = json.dumps(
            {
                "recipe": {"name": "posterior"},
                "lines": {"sampled": 40, "all": MATRIX},
                "coils": {"scan": 16, "virtual": None},
                "noise": {"from": "image background"},
                "flagged": {"rule": "", "figures": [{"slice": i} for i in range(slices)], "slices": []},
                **{"seed": 0, "identity": "0" * 64, "zero_filled_lines": 0},
            }
        )
        write_geometry(file, Geometry(spacing=(0.7, 0.7), thickness=4.0))
        file.attrs.update({"recipe": "posterior", "R": 8.0, "seed": 0, "n_samples": SAMPLES, "prior_sha256": "0" * 64})
        file.attrs.update({"first_slice": 0, "scan_slices": slices, "mrgen_version": "benchmark"})


def main() -> None:
    slices = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write_result(out / "scan.h5", slices)
        for what in ("first, with imports", "second"):
            begun = time.perf_counter()
            Exports().write(out, out / "scan.h5", lambda _: None)
            print(f"{slices} x 320 x 320, {what}: {time.perf_counter() - begun:.2f} s")
        for name in FORMATS[1:]:
            place = place_of(out, name)
            files = [place] if place.is_file() else [*place.rglob("*")]
            print(f"{sum(p.stat().st_size for p in files if p.is_file()) / 1e6:.1f} MB of {name}")


if __name__ == "__main__":
    main()
