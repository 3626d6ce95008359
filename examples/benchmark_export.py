"""Time `mrgen export` of a 16-slice 320 x 320 result of posterior samples, and tell the size of what it writes.

    python examples/benchmark_export.py [SLICES]

The formats are those of every result, first with the imports that they need, then without; the last export adds the
interval, `--flag` and `--overlay`. Processor time tells what the wall clock would on an idle machine. The images are
noise, which compresses worst.
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


def write_result(path: Path, slices: int, calibrated: bool) -> Path:
    """A result of the size asked for, with the attributes that mrgen recon writes."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name in ("reconstruction", "std", "zero_filled") + calibrated * ("interval",):
            file[name] = rng.random((slices, 320, 320), dtype=np.float32)
        write_geometry(file, Geometry(spacing=(0.7, 0.7), thickness=4.0))
        file.attrs.update({"recipe": "posterior", "R": 8.0, "seed": 0, "n_samples": 8, "prior_sha256": "0" * 64})
        file.attrs.update({"first_slice": 0, "scan_slices": slices, "mrgen_version": "benchmark"})
        file.attrs.update({"interval_coverage": 0.9, "interval_factor": 2.0})
    return path


def main() -> None:
    slices = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        plain, calibrated = (write_result(out / f"{kind}.h5", slices, kind) for kind in (False, True))
        every = Exports(flag=0.5, overlay=True)
        for what, exports, result in (
            ("first, with imports", Exports(), plain),
            ("second", Exports(), plain),
            ("with interval, flag and overlay", every, calibrated),
        ):
            begun, used = time.perf_counter(), time.process_time()
            exports.write(out, result, lambda _: None)
            wall, cpu = time.perf_counter() - begun, time.process_time() - used
            print(f"{slices} x 320 x 320, {what}: {wall:.2f} s, {cpu:.2f} s of processor time")
        for part in sorted([*(out / "nifti").iterdir(), *(out / "dicom").iterdir()]):
            files = [part] if part.is_file() else [*part.iterdir()]
            size = sum(file.stat().st_size for file in files) / 1e6
            print(f"{part.relative_to(out)}: {len(files)} file{'s' * (len(files) > 1)}, {size:.1f} MB")


if __name__ == "__main__":
    main()
