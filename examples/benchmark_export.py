"""Time `mrgen export` of a 16-slice 320 x 320 result with samples' mean and std, into NIfTI and DICOM.

    python examples/benchmark_export.py [SLICES]

The images are noise, which compresses worst; the time is that of the second of two exports, after the imports.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from mrgen.review.export import Exports
from mrgen.review.geometry import write_geometry
from mrgen.scans.scan import Geometry


def write_result(path: Path, slices: int) -> None:
    """A result of the size asked for, with the attributes that mrgen recon writes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name in ("reconstruction", "std", "zero_filled"):
            file[name] = rng.random((slices, 320, 320), dtype=np.float32)
        write_geometry(file, Geometry(spacing=(0.7, 0.7), thickness=4.0))
        file.attrs.update({"recipe": "posterior", "R": 8.0, "seed": 0, "n_samples": 8, "prior_sha256": "0" * 64})
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
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file() and p.suffix != ".h5")
        print(f"{size / 2**20:.1f} MiB written")


if __name__ == "__main__":
    main()
