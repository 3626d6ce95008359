"""A few tiny simulated slices and a protocol for them, which train in seconds."""

from __future__ import annotations

from pathlib import Path

import h5py
import torch
from torch import Tensor

from mrgen.physics.operators import sense
from mrgen.prior.data import Item, TrainingSet
from mrgen.scans.simulate import receive_maps, simulate_kspace, smooth_phase
from mrgen.settings import Network, Protocol, Sampling, Training

SHAPE = (32, 32)
SIGMA0 = 0.05


def image(seed: int) -> Tensor:
    """A complex ellipse of random size with a smooth phase."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*[(torch.arange(n) - n // 2) / (n / 2) for n in SHAPE], indexing="ij")
    a, b, level = (0.4 + 0.4 * torch.rand(3, generator=g)).tolist()
    return level * ((y / a) ** 2 + (x / b) ** 2 < 1) * torch.exp(1j * smooth_phase(SHAPE, g, 0.3))


def slices(count: int = 5, coils: int = 3) -> TrainingSet:
    """Undersampled noisy slices in memory, every second line or so."""
    items = []
    for number in range(count):
        g = torch.Generator().manual_seed(100 + number)
        maps = receive_maps(SHAPE, coils, g)
        maps = maps / maps.abs().square().sum(0).sqrt()
        mask = (torch.rand(SHAPE[1], generator=g) < 0.5).float()
        noise = SIGMA0 * torch.randn(coils, *SHAPE, dtype=torch.complex64, generator=g)
        y = sense(maps, mask).forward(image(number)) + mask * noise
        items.append(Item(y, mask, maps, torch.full((SHAPE[1],), 2.0), SIGMA0))
    return TrainingSet(items, [SHAPE] * count, f"tiny-{count}")


def protocol(**training: object) -> Protocol:
    settings = {"steps": 12, "batch": 2, "warmup": 3, "cg_iterations": 4, "basis": "fourier"} | training
    return Protocol(
        description="tiny",
        anatomy="ellipse",
        sampling=Sampling(acceleration=(2.0,)),
        network=Network(widths=(32, 32), blocks=1),
        training=Training(**settings),  # type: ignore[arg-type]
    )


def scan_file(path: Path, seed: int) -> None:
    """A fully sampled scan of two slices in the fastMRI layout, raw."""
    generator = torch.Generator().manual_seed(seed)
    with h5py.File(path, "w") as file:
        file["kspace"] = torch.stack(
            [simulate_kspace(image(2 * seed + n).abs(), 4, 0.02, generator)[0] for n in range(2)]
        ).numpy()
