"""ESPIRiT maps of mrgen beside BART's, from simulated scans whose coil maps are known: error and time.

    python examples/benchmark_espirit.py

A numerical head of 320 x 320, seen by a ring of 15 loops, with white noise of three stds (99th percentile of the image:
1). Both get the central 24 x 24 samples; mrgen is told the std, BART's `ecalib` is not. The error at a pixel is
1 - |<s, s_true>| of unit vectors over the coils, 0 where they agree up to a phase and 1 where a map is missing; its
mean is over the head. The time is the median of five runs, taken in turns, after one to warm up. BART's holds reading
and writing files, which mrgen need not: `bart copy` of the k-space, which moves as much, is timed too and taken off.

BART (mrirecon.github.io/bart, the Debian package bart) has to be installed; OMP_NUM_THREADS holds for both.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from mrgen.physics.espirit import espirit_maps
from mrgen.physics.fourier import centre_crop, fft2c, ifft2c
from mrgen.scans.heads import head_mask
from mrgen.scans.phantom import head_phantom, phantom_kspace
from mrgen.scans.simulate import receive_maps, smooth_phase

COILS, SHAPE, ACS, REPETITIONS, SEED = 15, (320, 320), 24, 5, 0
STDS = (0.02, 0.05, 0.1)
ECALIB = ("ecalib", "-m", "1", "-c", "0", "-r", str(ACS))


def scan(sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """k-space (coil, ky, kx) with noise std `sigma`, the maps (coil, y, x) of unit norm and the head (y, x)."""
    generator = torch.Generator().manual_seed(SEED)
    image = ifft2c(phantom_kspace(head_phantom(), 0.0, SHAPE)).abs().float()
    image = image / image.quantile(0.99)
    maps = receive_maps(SHAPE, COILS, generator)
    maps = maps / maps.norm(dim=0)
    clean = fft2c(maps * image * torch.exp(1j * smooth_phase(SHAPE, generator)))
    noise = torch.randn(clean.shape, dtype=torch.complex64, generator=generator)
    return clean + sigma * noise, maps, head_mask(image) > 0


def bart(*command: str, folder: Path) -> None:
    subprocess.run(["bart", *command, "kspace", "result"], cwd=folder, check=True, capture_output=True)


def write_kspace(folder: Path, kspace: Tensor) -> None:
    """k-space (coil, ky, kx) as BART's `kspace`, dimensions READ, PHS1, PHS2, COIL, the first one fastest."""
    coils, n_y, n_x = kspace.shape
    (folder / "kspace.hdr").write_text(f"# Dimensions\n{n_y} {n_x} 1 {coils}\n")
    kspace.mT.contiguous().numpy().astype("<c8").tofile(folder / "kspace.cfl")


def read_maps(folder: Path, shape: torch.Size) -> Tensor:
    """BART's `result`, (coil, y, x), of that shape."""
    coils, n_y, n_x = shape
    return torch.from_numpy(np.fromfile(folder / "result.cfl", "<c8")).reshape(coils, n_x, n_y).mT


def bart_maps(kspace: Tensor, command: tuple[str, ...] = ECALIB) -> Tensor:
    """Maps (coil, y, x) by a BART command for k-space of that shape."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_kspace(folder, kspace)
        bart(*command, folder=folder)
        return read_maps(folder, kspace.shape)


def seconds(*works: Callable[[], object]) -> list[float]:
    """Median time of each; they take turns, so that what slows the machine down slows all."""
    times = [[_seconds(work) for work in works] for _ in range(REPETITIONS + 1)]
    return [median(column) for column in zip(*times[1:], strict=True)]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def mean_error(maps: Tensor, truth: Tensor, head: Tensor) -> float:
    inner = (maps.conj() * truth).sum(0).abs() / maps.norm(dim=0).clamp_min(1e-6)
    return float((1 - inner)[head].mean())


def main() -> None:
    if shutil.which("bart") is None:
        sys.exit("error: BART is not installed: expected the command `bart` (Debian: apt-get install bart)")
    version = subprocess.run(["bart", "version"], check=True, capture_output=True, text=True).stdout.strip()
    print(f"BART {version}, torch {torch.__version__}, {torch.get_num_threads()} thread(s); seed {SEED}\n")
    print("| noise std | maps | mean error | time, s | time / mrgen's |")
    print("|---|---|---|---|---|")
    for sigma in STDS:
        kspace, truth, head = scan(sigma)
        acs = centre_crop(kspace, (ACS, ACS))[None]
        ours = partial(espirit_maps, acs, SHAPE, sigma)
        soft = (*ECALIB, "-W")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_kspace(folder, kspace)
            run = partial(bart, folder=folder)
            base, files, *others = seconds(ours, partial(run, "copy"), partial(run, *ECALIB), partial(run, *soft))
        found = {"mrgen": (ours()[0][0], base)}
        for command, took in zip((ECALIB, soft), others, strict=True):
            found[f"`bart {' '.join(command)}`"] = bart_maps(kspace, command), took - files
        for name, (maps, took) in found.items():
            print(f"| {sigma:g} | {name} | {mean_error(maps, truth, head):.1e} | {took:.2f} | {took / base:.2f} |")


if __name__ == "__main__":
    main()
