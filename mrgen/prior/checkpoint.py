"""What a training needs to go on exactly, in one file that is replaced as a whole: weights, their average, Adam's
moments, the log and the number of updates done. A run killed at any moment finds the last one complete; the table, the
plot and the prior beside it are made from it again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from mrgen.errors import MrgenError
from mrgen.prior.files import read_safetensors, write_safetensors


def save_checkpoint(path: Path, identity: dict[str, Any], step: int, parameters: dict[str, nn.Parameter],
                    average: dict[str, Tensor], optimiser: torch.optim.Adam, log: Tensor) -> None:  # fmt: skip
    """Write the state after `step` updates of the training that `identity` describes."""
    tensors = {"log": log}
    for name, p in parameters.items():
        state = optimiser.state[p]
        tensors |= {f"weight/{name}": p, f"average/{name}": average[name]}
        tensors |= {f"mean/{name}": state["exp_avg"], f"square/{name}": state["exp_avg_sq"]}
    write_safetensors(path, tensors, {**identity, "step": step})


def restore_checkpoint(path: Path, identity: dict[str, Any], parameters: dict[str, nn.Parameter],
                       average: dict[str, Tensor], optimiser: torch.optim.Adam, log: Tensor) -> int:  # fmt: skip
    """Fill in what `save_checkpoint` wrote; gives the updates done. Raises MrgenError for one of another training."""
    tensors, metadata = read_safetensors(path)
    differs = [k for k in identity if metadata.get(k) != identity[k]]
    if differs:
        raise MrgenError(f"{path.name} is of another run (other {', '.join(differs)}): remove it or use --no-resume")
    if "log" not in tensors:
        raise MrgenError(f"{path.name} is of an earlier mrgen: remove it or use --no-resume")
    log.copy_(tensors["log"])
    step = int(metadata["step"])
    for name, p in parameters.items():
        with torch.no_grad():
            p.copy_(tensors[f"weight/{name}"])
            average[name].copy_(tensors[f"average/{name}"])
        optimiser.state[p] = {
            "step": torch.tensor(float(step), device=p.device),
            "exp_avg": torch.empty_like(p).copy_(tensors[f"mean/{name}"]),
            "exp_avg_sq": torch.empty_like(p).copy_(tensors[f"square/{name}"]),
        }
    return step


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """The names of SIGTERM (a cluster's preemption) and SIGINT (Ctrl-C) as they come, to be acted on between updates.

    A second Ctrl-C acts at once, as if this context were not there; not under torchrun, which sends each signal on to
    processes that the terminal has sent it to already. Python hears signals in its main thread only: elsewhere the
    list stays empty.
    """
    heard: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(signal.Signals(number).name)
        if number == signal.SIGINT and "WORLD_SIZE" not in os.environ:
            signal.signal(number, before[number])

    for number in before:
        signal.signal(number, hear)
    try:
        yield heard
    finally:
        restore()
