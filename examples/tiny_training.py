"""Learn a small prior from simulated scans, in minutes on two CPU cores and without any download.

    python examples/tiny_training.py -o runs/tiny

Simulates multi-coil scans of an analytic phantom in the fastMRI layout (OUT/scans/*.h5), and trains on them as
`mrgen train-prior OUT/scans --protocol tiny -o OUT/prior.safetensors` does: the scans are undersampled by the
protocol, and no clean image is seen. Then try

    mrgen recon OUT/scans/scan0.h5 --R 4 --prior OUT/prior.safetensors -o OUT/recon

Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import h5py
import torch
from torch import Tensor

from mrgen.physics.fourier import grid
from mrgen.prior.data import TrainingSet
from mrgen.prior.train import train
from mrgen.scans.simulate import simulate_kspace, uniform
from mrgen.settings import Protocol, load

SHAPE = (96, 80)  # readout, phase encoding
SLICES, COILS, SIGMA = 3, 6, 0.02  # sigma: noise std per coil, relative to bright tissue


def phantom(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A magnitude image (y, x): a bright scalp, a dark skull, a brain, and a dozen ellipses inside."""
    y, x = grid(shape)

    def ellipse(c_y: float, c_x: float, a: float, b: float, angle: float) -> Tensor:
        v, u = y - c_y, x - c_x
        c, s = math.cos(angle), math.sin(angle)
        radius = (((c * v + s * u) / a).square() + ((c * u - s * v) / b).square()).sqrt()
        return torch.sigmoid((1 - radius) * min(a, b) * shape[0])  # edges one pixel wide

    tilt, size = uniform(-0.3, 0.3, generator), uniform(0.65, 0.8, generator)
    width = size * uniform(0.75, 0.95, generator)
    image = ellipse(0, 0, size, width, tilt)
    for edge, level in ((0.06, -0.9), (0.1, uniform(0.3, 0.6, generator))):
        image = image + level * ellipse(0, 0, size - edge, width - edge, tilt)
    brain = ellipse(0, 0, size - 0.12, width - 0.12, tilt)
    for _ in range(12):
        c_y, c_x = (uniform(-0.4, 0.4, generator) for _ in range(2))
        a, b = (uniform(0.04, 0.2, generator) for _ in range(2))
        part = ellipse(c_y, c_x, a, b, uniform(0, math.pi, generator))
        image = image + uniform(-0.35, 0.4, generator) * brain * part
    return image.clamp_min(0)


def write_scan(path: Path, seed: int) -> None:
    """A fully sampled scan in the fastMRI layout; every slice has a phantom, coils and noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    kspace = [simulate_kspace(phantom(SHAPE, generator), COILS, SIGMA, generator)[0] for _ in range(SLICES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = torch.stack(kspace).numpy()  # (slice, coil, readout, phase)


def risk(curve: Path) -> list[float]:
    """The estimated risk per pixel in the course of the training."""
    with curve.open(newline="") as file:
        return [float(row["risk"]) for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/tiny"), help="folder for scans and prior")
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--steps", type=int, help="updates; without it, the protocol's")
    args = parser.parse_args()

    folder, prior = args.out / "scans", args.out / "prior.safetensors"
    for number in range(args.scans):
        path = folder / f"scan{number}.h5"
        if not path.exists():
            write_scan(path, number)
    print(f"{args.scans} scans of {SLICES} slices, {COILS} coils, {SHAPE[0]} x {SHAPE[1]} in {folder}")

    protocol = load(Protocol, "tiny")
    data = TrainingSet.from_folder(folder, protocol, args.out / "cache")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    written = train(data, protocol, prior, device=device, steps=args.steps)

    values = risk(prior.with_suffix(".csv"))
    tenth = max(1, len(values) // 10)
    start, end = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
    print(f"estimated risk per pixel: {start:.4f} over the first tenth of the updates, {end:.4f} over the last")
    print(f"prior: {written}\ncurve: {prior.with_suffix('.png')}")


if __name__ == "__main__":
    main()
