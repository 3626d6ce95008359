"""Peak memory of reading and reconstructing a scan of fastMRI's size: 30 slices, 16 coils, 640 x 368 (0.9 GB).

    python examples/benchmark_reading.py

The scan is made in a temporary folder, without a header, so that all 640 rows are kept. Each figure is the peak
resident memory of a process of its own, less that of one that only imports mrgen.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

SLICES, COILS, SHAPE = 30, 16, (640, 368)
PEAK = "import resource; print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
IMPORT = "import mrgen.cli.recon"
READ = "from mrgen.scans.open import open_scan; import sys; open_scan(sys.argv[1]).read_slice(0)"
RECON = """
import sys
from mrgen.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
"""


def write_scan(path: Path) -> None:
    """A disc seen by smooth coils, with noise; slice by slice, as a process starts with the peak of its parent."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE], indexing="ij")
    angles = 2 * np.pi * np.arange(COILS) / COILS
    with h5py.File(path, "w") as file:
        kspace = file.create_dataset("kspace", (SLICES, COILS, *SHAPE), np.complex64, chunks=(1, COILS, *SHAPE))
        for i in range(SLICES):
            disc = (y / 0.4) ** 2 + (x / 0.8) ** 2 < 1 - (i / SLICES - 0.5) ** 2
            for coil, angle in enumerate(angles):
                sensitivity = np.exp(-((y - np.sin(angle)) ** 2) - (x - np.cos(angle)) ** 2 + 1j * angle * x)
                image = disc * sensitivity + 0.05 * (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE))
                kspace[i, coil] = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))


def peak(code: str, *arguments: str) -> float:
    """Peak resident memory (GB) of a process that runs `code`."""
    command = [sys.executable, "-c", f"{code}\n{PEAK}", *arguments]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    unit = 1 if sys.platform == "darwin" else 1024
    return int(text.split()[-1]) * unit / 1e9


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.h5"
        write_scan(scan)
        base = peak(IMPORT)
        print(f"import mrgen: {base:.2f} GB")
        print(f"read one slice: {peak(READ, str(scan)) - base:+.2f} GB")
        whole = peak(
            RECON, "recon", str(scan), "--R", "4", "--recipe", "sense", "--device", "cpu", "--out", f"{folder}/out"
        )
        print(f"mrgen recon --R 4 --recipe sense, {SLICES} slices: {whole - base:+.2f} GB")


if __name__ == "__main__":
    main()
