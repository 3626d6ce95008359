"""Time of a training step by objective, over that of a supervised step, in one run.

    python examples/benchmark_training.py --device cuda      # a few minutes on a GPU
    python examples/benchmark_training.py --tiny             # a rehearsal on the CPU

The batches are noise in the shape of a head protocol's: what they hold does not change the time, but for sigma0, which
decides how often the divergence of GSURE is computed. Each objective is trained for a few steps and for many, and the
difference of the two times counts, so that neither start nor end does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mrgen.physics.masks import sampling_probability
from mrgen.prior.data import Item, TrainingSet
from mrgen.prior.train import train
from mrgen.prior.weights import gsure_weights
from mrgen.settings import Network, Protocol, load

OBJECTIVES: dict[str, dict[str, Any]] = {
    "supervised": {"objective": "supervised"},
    "gsure-fourier": {"objective": "gsure", "basis": "fourier"},
    "gsure-sense": {"objective": "gsure", "basis": "sense"},
    "ambient-tweedie-fourier": {"objective": "ambient-tweedie", "basis": "fourier"},
    "ambient-fourier": {"objective": "ambient", "basis": "fourier"},
}
R, CENTRE = 4.0, 0.08
FEW = 100  # steps, in which a GPU has recorded the passes of every shape that a batch often has


def noise_items(count: int, coils: int, shape: tuple[int, int], sigma0: float, device: str) -> list[Item]:
    """Training items whose k-space and maps are white noise; maps are normalised."""
    generator = torch.Generator(device).manual_seed(0)
    probability = sampling_probability("equispaced-any-offset", shape[1], R, CENTRE)
    weights = gsure_weights(probability).to(device)
    items = []
    for _ in range(count):
        mask = (torch.rand(shape[1], generator=generator, device=device) < probability.to(device)).float()
        kspace, maps = torch.randn(2, coils, *shape, dtype=torch.complex64, generator=generator, device=device)
        items.append(Item(0.3 * kspace * mask, mask, maps / maps.norm(dim=0), weights, sigma0))
    return items


def seconds(data: TrainingSet, protocol: Protocol, device: str, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        out = Path(folder) / "prior.safetensors"
        train(data, protocol, out, device=device, resume=False, steps=steps, report=lambda _: None)
        return time.perf_counter() - begun


def compare(base: Protocol, objectives: list[str], measured: list[Item], device: str, steps: int) -> None:
    """Print how many updates a second each objective makes, and its time over that of `supervised`."""
    images, shape = [item.kspace[0] for item in measured], measured[0].shape
    few = FEW if device != "cpu" else 2
    of: dict[str, float] = {}
    for name in objectives:
        protocol = base.model_copy(update={"training": base.training.model_copy(update=OBJECTIVES[name])})
        if name == "supervised":
            data = TrainingSet.from_images(images, name)
        else:
            data = TrainingSet(measured, [shape] * len(measured), name)
        seconds(data, protocol, device, few)  # finds algorithms and fills caches
        short = seconds(data, protocol, device, few)
        of[name] = (seconds(data, protocol, device, few + steps) - short) / steps
        over = f", {of[name] / of['supervised']:.2f} x supervised" if "supervised" in of else ""
        print(f"{name}: {1 / of[name]:.2f} steps/s of {base.training.batch} slices{over}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--sigma0", type=float, default=0.015)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--matrix", type=int, nargs=2, default=(208, 176), metavar=("Y", "X"))
    parser.add_argument("--coils", type=int, default=12)
    parser.add_argument("--batch", type=int, nargs="+", help="slices in an update, the protocol's without it")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    device, shape, coils, change = args.device, tuple(args.matrix), args.coils, {}
    if args.tiny:
        shape, coils, args.steps = (32, 24), 2, 2
        change = {"network": Network(widths=(16,), blocks=1)}
    head = load(Protocol, "head").model_copy(update=change)
    for batch in args.batch or [head.training.batch]:
        base = head.model_copy(update={"training": head.training.model_copy(update={"batch": batch})})
        compare(base, args.objectives, noise_items(2 * batch, coils, shape, args.sigma0, device), device, args.steps)


if __name__ == "__main__":
    main()
