"""Where the time of preparing a slice goes, step by step in one process; a GPU is waited for after each step."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mrgen.physics.espirit import espirit_maps
from mrgen.prior.cache import Entry, write_scan
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import calibration_data, noise_covariance, prepare_slice, undersampling_mask
from mrgen.settings import Sampling

REPEATS = 4


def stages(scan_file: Path, work: Path, device: str) -> dict[str, Any]:
    """Seconds of each step for a slice: medians of REPEATS after one that is not counted."""
    where = f"{device}:0" if device == "cuda" else device
    scan = open_fastmri(scan_file)
    mask = undersampling_mask(scan, Sampling(), 4.0, 0, 0)

    def seconds(step: Callable[[], object]) -> float:
        times = []
        for _ in range(1 + REPEATS):
            begun = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize(where)
            times.append(time.perf_counter() - begun)
        return median(times[1:])

    raw = scan.read_slice(0)
    there = raw.to(where)
    centre = calibration_data(there, mask.to(there.device))[1]
    prepared = prepare_slice(there, None, undersample=mask, keep_reference=False)
    manifest = {"left_out": {}, "made by": hashlib.sha256(str(scan_file).encode()).hexdigest()}
    found = {
        "open": seconds(lambda: open_fastmri(scan_file)) / scan.slices,
        "read, check and crop": seconds(lambda: scan.read_slice(0)),
        "to the device": seconds(lambda: raw.to(where)),
        "noise covariance": seconds(lambda: noise_covariance(there, None)),
        "coil maps": seconds(lambda: espirit_maps(centre[None], scan.shape[-2:], 1.0)),
        "all of the preparation": seconds(lambda: prepare_slice(there, None, undersample=mask, keep_reference=False)),
        "write": seconds(lambda: write_scan(work / "stages.h5", [Entry(0, 4.0, prepared)], manifest)),
    }
    (work / "stages.h5").unlink()
    return {"seconds_per_slice": found, "threads": torch.get_num_threads()}
