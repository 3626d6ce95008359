"""Two ratios behind docs/method.md, measured side by side in one run on the bundled scan.

    python examples/benchmark_operators.py

A^H A of 8 images by one matrix per readout position against the Fourier transforms of every coil, and ESPIRiT maps from
24 x 24 calibration samples against sigpy's. Each is the median of five runs after one that warms up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from sigpy.mri.app import EspiritCalib

from mrgen.physics.espirit import espirit_maps
from mrgen.physics.operators import sense, sense_normal
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import prepare_slice

SCAN = Path(__file__).parent / "data" / "brain.h5"


def seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return median(times[1:])


def main() -> None:
    slice_ = prepare_slice(open_fastmri(SCAN).read_slice(0), None, keep_reference=False)
    mask = torch.zeros_like(slice_.mask)
    mask[::8] = 1
    maps, shape = slice_.maps, (slice_.maps.shape[-2], slice_.maps.shape[-1])
    images = torch.randn(8, *shape, dtype=torch.complex64)
    transforms, matrices = sense(maps, mask).normal, sense_normal(maps, mask)
    slow, fast = seconds(lambda: transforms(images)), seconds(lambda: matrices(images))
    print(f"A^H A, 8 images: transforms {slow:.4f} s, matrices {fast:.4f} s, ratio {slow / fast:.1f}")

    y, x = shape[0] // 2, shape[1] // 2
    acs = slice_.kspace[None, :, y - 12 : y + 12, x - 12 : x + 12]
    ours = seconds(lambda: espirit_maps(acs, shape, slice_.sigma0))
    theirs = seconds(lambda: EspiritCalib(slice_.kspace.numpy(), calib_width=24, show_pbar=False).run())
    print(f"ESPIRiT maps: sigpy {theirs:.2f} s, mrgen {ours:.2f} s, ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
