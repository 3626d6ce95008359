"""Under torchrun: train on prepared scans, and tell for how long each GPU stood still before it had a batch."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean

from benchmark_preparation import Watched

from mrgen.prior.data import TrainingSet
from mrgen.prior.distributed import join, local_device
from mrgen.prior.train import train
from mrgen.settings import Protocol, load

WARM = 10  # updates left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("protocol")
    parser.add_argument("cache", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    protocol, device = load(Protocol, args.protocol), local_device(args.device)
    data = TrainingSet.from_folder(args.folder, protocol, args.cache, lambda _: None, device)
    watched = Watched(data.items, data.shapes, data.fingerprint)
    join(args.device)  # sets the GPU on which marks are made
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "prior.safetensors"
        train(watched, protocol, out, device=device, steps=WARM, report=lambda _: None)
        begun = time.perf_counter()
        train(watched, protocol, out, device=device, resume=False, steps=args.steps, report=lambda _: None)
        each = (time.perf_counter() - begun) / args.steps
    waits = watched.waits(args.steps)[WARM:] or [0.0]  # without a GPU nothing is marked
    waited = f"waited {1e3 * mean(waits):.3f} ms, at most {1e3 * max(waits):.2f}"
    sys.stdout.write(f"rank {os.environ['RANK']}: {1e3 * each:.2f} ms an update, {waited}\n")  # a line at once


if __name__ == "__main__":
    main()
