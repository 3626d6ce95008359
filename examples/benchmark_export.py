"""Time `mrgen export` of a 16-slice 320 x 320 result of 8 posterior samples, and tell the size of what it writes.

    python examples/benchmark_export.py [SLICES]

The formats are those of every result, first with the imports that they need, then without; the last export adds the
interval, `--flag` and `--overlay`. Processor time tells what the wall clock would on an idle machine. Inside a disc,
half of the pixels, the images are noise, which compresses worst.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from mrgen.review.export import REPORT, Exports
from mrgen.review.geometry import write_geometry
from mrgen.review.pack import levels, step_of
from mrgen.scans.geometry import Geometry

MATRIX, SAMPLES = 320, 8


def write_result(path: Path, slices: int, calibrated: bool) -> Path:
    """A result of the size asked for, with what mrgen recon writes of a fully sampled scan."""
    rng = np.random.default_rng(0)
    inside = np.hypot(*np.ogrid[-1 : 1 : MATRIX * 1j, -1 : 1 : MATRIX * 1j]) < 0.8  # half of the pixels: a head
    mean = inside * (1 + rng.random((slices, MATRIX, MATRIX), dtype=np.float32))
    samples = mean[:, None] + inside * 0.04 * rng.standard_normal((slices, SAMPLES, MATRIX, MATRIX), dtype=np.float32)
    with h5py.File(path, "w") as file:
        names = ("reconstruction", "std", "zero_filled", "l1_wavelet", "reference", "null_space")
        for name in names + calibrated * ("interval",):
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
        for part in sorted([*(out / "nifti").iterdir(), *(out / "dicom").iterdir(), out / REPORT]):
            files = [part] if part.is_file() else [*part.iterdir()]
            size = sum(file.stat().st_size for file in files) / 1e6
            print(f"{part.relative_to(out)}: {len(files)} file{'s' * (len(files) > 1)}, {size:.1f} MB")


if __name__ == "__main__":
    main()
