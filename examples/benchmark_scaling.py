"""What several GPUs gain: preparation, training and reconstruction on one GPU and on all there are, by one command.

    python examples/benchmark_scaling.py --work /tmp/scaling -o scaling.json          # minutes on two GPUs
    python examples/benchmark_scaling.py --work /tmp/scaling -o scaling.json --tiny   # a rehearsal: two CPU processes

Everything measured is a command of mrgen under torchrun, as a user gives it (only that trainings report more often),
with the time at which each line of its output came; one GPU is started like many. The parts, in this order:

    data     raw scans of 640 x 368 (readout oversampled twice) with 15 coils, simulated; 56 MB a scan of two slices
    train    `mrgen train-prior` on 1 and on all GPUs, each with an empty cache, so that it prepares the scans first;
             the same seed and global batch, so that loss curves and weights should agree
    kill     SIGKILL to one process of that training; then the same command, which resumes
    recon    `mrgen recon` of one slice of every scan with the bundled prior on 1 and on all GPUs, each of which one
             process has to itself, or several share
    floor    a training with one GPU's share of the batch: alone, and one on every GPU at once; the first says what
             a small batch costs, the second what the shared host costs, and the rest is exchange of gradients
    waits    for how long a GPU stands still before it has a batch; in a script of ours, by events on the GPU
    loading  how fast one process loads batches from the cache while nothing else is done, in this process
    stages   where preparing a slice spends its time, in this process

The record (.json) is written after each part and goes on with --parts; tables go to .md beside it. plan_training.py
makes a plan for a larger training from it. Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from scaling.commands import Machine
from scaling.parts import Bench, Record, Size
from scaling.report import figures, markdown
from scaling.stages import stages

PARTS = ("data", "train", "kill", "recon", "floor", "waits", "loading", "stages")
TINY = Size(
    scans=4,
    slices=1,
    batches=(4,),
    steps=12,
    acceleration=4,
    coils=4,
    matrix=(64, 64),
    protocol={"warmup": "2", "widths": "[16]", "blocks": "1"},
)
TINY_RECIPE = 'description = "tiny"\nmethod = "posterior"\nsteps = 4\nsamples = 2\n'


def measure(bench: Bench, parts: list[str], seconds: float, record: Record, write: Path) -> None:
    """Run `parts` into `record`, as many as begin within `seconds`, writing it after each."""
    begun = time.perf_counter()
    work: dict[str, Callable[[], Any]] = {
        "data": bench.data,
        "train": lambda: [bench.train(batch) for batch in bench.size.batches],
        "kill": bench.kill,
        "recon": bench.recon,
        "floor": bench.floor,
        "waits": bench.waits,
        "loading": bench.loading,
        "stages": lambda: stages(bench.files[0], bench.work, bench.machine.device),
    }
    for part in parts:
        if time.perf_counter() - begun > seconds:
            print(f"{part}: left out, as {seconds:.0f} s are over", flush=True)
            continue
        since = time.perf_counter()
        record[part] = work[part]()
        record["figures"] = figures(record)
        write.write_text(json.dumps(record, indent=1) + "\n")
        write.with_suffix(".md").write_text(markdown(record))
        now = time.perf_counter()
        print(f"{part}: {now - since:.1f} s, {now - begun:.1f} s in all\n{json.dumps(record[part])}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, caches and results, about 10 GB")
    parser.add_argument("-o", "--out", type=Path, required=True, help=".json; tables go to .md beside it")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no part after this time")
    parser.add_argument("--gpus", type=int, help="how many; all without it")
    parser.add_argument("--scans", type=int, help=f"{Size.scans} without it")
    parser.add_argument("--jobs-per-gpu", type=int, help="processes of recon on each GPU; 1 without it")
    parser.add_argument("--turns", type=int, help="of recon, as a host may be slower now and then; 1 without it")
    parser.add_argument("--protocol", help=f"whose network is trained; {Size.network} without it")
    parser.add_argument("--steps", type=int, help=f"updates of a training; {Size.steps} without it")
    parser.add_argument("--batches", type=int, nargs="+", help=f"global batch sizes; {Size.batches[0]} without it")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU, with figures that mean nothing")
    args = parser.parse_args(arguments)
    size = TINY if args.tiny else Size()
    batches = tuple(args.batches or size.batches)
    given = {
        "scans": args.scans,
        "jobs_per_gpu": args.jobs_per_gpu,
        "turns": args.turns,
        "network": args.protocol,
        "steps": args.steps,
        "batches": batches,
    }
    size = replace(size, **{key: value for key, value in given.items() if value is not None})
    args.work.mkdir(parents=True, exist_ok=True)
    if args.tiny:
        quick = args.work / "tiny.toml"
        quick.write_text(TINY_RECIPE)
        size = replace(size, recipe=str(quick))
        machine = Machine("cpu", args.gpus or 2, -1.0)
    else:
        machine = Machine("cuda", args.gpus or torch.cuda.device_count())
    if machine.count < 1:
        parser.error("found no GPU: --tiny rehearses on a CPU")
    record: Record = json.loads(args.out.read_text()) if args.out.exists() else {}
    record["machine"] = {
        "name": torch.cuda.get_device_name(0) if machine.device == "cuda" else "CPU",
        "count": machine.count,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "threads": machine.threads,
    }
    record["size"] = {**asdict(size), "recipe": Path(size.recipe).stem}
    parts = [part for part in PARTS if part in args.parts]
    measure(Bench(machine, size, args.work.resolve()), parts, args.seconds, record, args.out)
    print(markdown(record))


if __name__ == "__main__":
    main()
