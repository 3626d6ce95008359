"""A rehearsal of a training: what memory and time it needs, measured on the data it is for."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mrgen.prior.data import TrainingSet
from mrgen.prior.distributed import join, silent
from mrgen.prior.train import train
from mrgen.settings import Protocol

WARM = 2  # updates that are not timed
ENOUGH, ENOUGH_GPU = 3.0, 20.0  # seconds; on a GPU so many that to record the network's passes counts for little


def rehearse(
    data: TrainingSet, protocol: Protocol, device: str, steps: int | None, report: Callable[[str], None]
) -> None:
    """Report the peak memory of this process, updates per second and the time of `steps` (the protocol's if None).

    The time of a run of WARM updates is taken from that of a longer one, so that start and end do not count; all
    batches are full. Nothing is left on the disk.
    """
    many = protocol.training.batch  # of each item, so that there are full batches of every matrix size
    items = [item for item in data.items for _ in range(many)]
    data = TrainingSet(items, [shape for shape in data.shapes for _ in range(many)], data.fingerprint)  # type: ignore[arg-type]
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)

    def seconds(updates: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            out = Path(folder) / "rehearsal.safetensors"
            train(data, protocol, out, device=device, resume=False, steps=updates, report=silent)
            return time.perf_counter() - begun

    seconds(WARM)  # finds algorithms and fills caches
    short, timed, taken = seconds(WARM), 5, 0.0
    processes, enough = join(device), ENOUGH if device == "cpu" else ENOUGH_GPU
    while processes.any(taken < enough)[0]:
        timed *= 2
        taken = seconds(WARM + timed) - short
    rate, count = timed / taken, steps or protocol.training.steps
    total = count / rate
    report(f"memory  {_peak(device) / 2**30:.1f} GiB at its peak, on {device.partition(':')[0]}")
    report(f"speed   {rate:.3g} updates of {protocol.training.batch} slices per second")
    span = f"{total / 3600:.1f} h" if total > 5400 else f"{total / 60:.1f} min"
    report(f"time    {span} for {count} updates, once the scans are prepared")


def _peak(device: str) -> int:
    """Bytes: allocated on a GPU, resident on a CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    import resource  # here, as Windows has none

    kilobytes = sys.platform != "darwin"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if kilobytes else 1)
