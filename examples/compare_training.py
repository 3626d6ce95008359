"""Which settings learn most from as many updates: the same training with different ones, on simulated heads.

    python examples/compare_training.py --images brain_t1_slices.npz --volume head_t1_volume.npz --work runs/settings \
        --set training.objective=supervised training.steps=800 network.blocks=1 \
        --variant slow training.learning_rate=5e-4 --variant fast training.learning_rate=2e-3 -o result.json

A setting is PART.NAME=VALUE of a protocol: those of --set are common to all variants. Training scans are simulated as
those of examples/prior_experiment.py are (R = 4, `--matrix` pixels) and kept in the work folder, which other such
commands can use once they are there. A prior that is there, of the same settings, is not trained again.

The figure is the risk |D(x + sigma n, sigma) - x|^2 a pixel for clean images of people who were not trained on, with
the weight that training has (EDM's: 1 is what the noisy image, scaled, would have if its statistics were as assumed),
at six noise levels; the noise is the same for all variants. It judges priors of whole images: those of the Fourier
basis see nothing else when they are used than images with holes in their k-space, so compare these among themselves.
Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiment.data import Head, clean_set, heads, measured_set, simulate_training
from experiment.plan import NOMINAL
from torch import Tensor
from train_bundled_prior import protocol_with, say

from mrgen.errors import MrgenError
from mrgen.prior.denoiser import Denoise, risk_weight
from mrgen.prior.files import load_prior
from mrgen.prior.train import train

LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # sigma, units of the scaled image
HELD_OUT = 100_000  # the number of the first scan of people not trained on


def simulate(people: tuple[Head, ...], folder: Path, matrix: tuple[int, int], first: int, count: int) -> None:
    """`count` scans of `people`, numbered from `first` on; those that are there stay."""
    for number in range(first, first + count):
        if not (folder / f"{number:05d}.h5").exists():
            simulate_training(NOMINAL.scans, folder, number, people, matrix)


def risks(denoise: Denoise, images: Tensor, sigma_data: float, batch: int = 16) -> list[float]:
    """Mean weighted risk of clean images (n, y, x) at each of LEVELS, with two draws of noise for each image."""
    found = []
    for seed, level in enumerate(LEVELS):
        generator, error = torch.Generator().manual_seed(seed), 0.0
        for x in torch.split(images.repeat(2, 1, 1), batch):
            noise = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
            sigma = torch.full((len(x),), level, device=x.device)
            with torch.no_grad():
                error += float((denoise(x + level * noise, sigma) - x).abs().square().mean((-2, -1)).sum())
        found.append(error / (2 * len(images)) * float(risk_weight(torch.tensor(level), sigma_data)))
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="brain_t1_slices.npz")
    parser.add_argument("--volume", type=Path, help="head_t1_volume.npz, for one more person to train on")
    parser.add_argument("--work", type=Path, required=True, help="folder for scans and priors")
    parser.add_argument("--scans", type=int, default=1200, help="to train on")
    parser.add_argument("--tests", type=int, default=96, help="images to judge by")
    parser.add_argument("--matrix", type=int, nargs=2, default=(64, 56), metavar=("Y", "X"))
    parser.add_argument("--protocol", default="head")
    parser.add_argument("--set", nargs="+", default=[], metavar="PART.NAME=VALUE", help="what differs from it")
    parser.add_argument(
        "--variant", nargs="+", action="append", required=True, metavar=("NAME", "PART.NAME=VALUE"), help="and besides"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path, required=True, help=".json; a table is printed")
    args = parser.parse_args(arguments)

    matrix = args.matrix[0], args.matrix[1]
    protocols = {name: protocol_with(args.protocol, [*args.set, *changes]) for name, *changes in args.variant}
    folders = args.work / "scans", args.work / "held-out"
    simulate(heads(args.images, args.volume, False), folders[0], matrix, 0, args.scans)
    simulate(heads(args.images, args.volume, True), folders[1], matrix, HELD_OUT, args.tests)
    images = torch.stack([*clean_set(folders[1], NOMINAL, args.device).items])
    say(f"{args.scans} scans, {len(images)} images to judge by; risk at sigma = " + ", ".join(f"{s:g}" for s in LEVELS))
    rows: list[dict[str, Any]] = []
    for name, protocol in protocols.items():
        data = clean_set if protocol.training.objective == "supervised" else measured_set
        prior, begun = args.work / f"{name}.safetensors", time.monotonic()
        try:
            train(data(folders[0], NOMINAL, args.device), protocol, prior, device=args.device, report=lambda _: None)
        except MrgenError as error:
            raise SystemExit(f"error: {name}: {error}") from None
        seconds = time.monotonic() - begun
        found = risks(load_prior(prior, args.device), images, protocol.training.sigma_data)
        say(f"{name:24s} {' '.join(f'{r:.4f}' for r in found)}  mean {np.mean(found):.4f}  ({seconds:.0f} s)")
        rows.append({"variant": name, "settings": protocol.model_dump(mode="json"), "risk": found})
        record = {"matrix": matrix, "scans": args.scans, "tests": args.tests, "levels": LEVELS, "rows": rows}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
