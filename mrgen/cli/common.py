"""What the commands share: the device, progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mrgen.errors import MrgenError

PROGRESS_SECONDS = 20.0  # between lines of progress where stderr is no terminal


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"

    def resolve(self) -> str:
        """The torch device. Raises MrgenError for cuda without a usable GPU."""
        if self is Device.cuda and not torch.cuda.is_available():
            raise MrgenError("--device cuda: found no usable NVIDIA GPU; use --device cpu")
        if self is Device.auto:
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.value


@contextmanager
def progress_on_stderr() -> Iterator[Callable[[float, str], None]]:
    """progress(fraction, place): a bar with the time left on a terminal; a line now and then where there is none."""
    console, begun = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda fraction, place: bar.update(task, completed=fraction, description=place)
        return

    spoken = begun

    def line(fraction: float, place: str) -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken >= PROGRESS_SECONDS and 0 < fraction < 1:
            left = (now - begun) * (1 / fraction - 1) / 60
            typer.echo(f"{place}: {fraction:.0%}, about {left:.1f} min left", err=True)
            spoken = now

    yield line
