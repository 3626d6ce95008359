"""What the commands share: options, the device, progress on stderr."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mrgen.errors import MrgenError
from mrgen.prior.distributed import Processes, join
from mrgen.scans.files import check_file

HOST_THREADS = 4  # beside a GPU, of a process: more of them wait more than they work
OTHERS_MAY_TAKE = timedelta(days=30)  # with their scans, while a process of torchrun that has done its own waits
PROGRESS_SECONDS = 20.0  # between lines of progress where stderr is no terminal

RecipeName = Annotated[str, typer.Option("--recipe", help="A recipe's name, or a .toml file of your own.")]
PriorFile = Annotated[Path | None, typer.Option("--prior", help="A prior (.safetensors); without it, the bundled one.")]
Samples = Annotated[int | None, typer.Option(min=2, help="Posterior samples; without it, the recipe's.")]
Slices = Annotated[str | None, typer.Option(metavar="A:B", help="Only the slices A to B - 1.")]
ScanFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Scans to learn from.")]
ProtocolName = Annotated[str, typer.Option("--protocol", help="A protocol's name, or a .toml file of your own.")]
ProcessCount = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Share the work among N processes, as torchrun does.")
]
NewPrior = Annotated[Path, typer.Option("--out", "-o", help="The prior to write, .safetensors.")]


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


def become(count: int, files: Iterable[Path] = ()) -> None:
    """So many processes by torchrun, which run this very command, or nothing where one is enough.

    Each has its share of the CPU's threads, if OMP_NUM_THREADS says nothing else. Raises MrgenError for `files` that
    cannot be read, which otherwise each would tell, and in a process of torchrun.
    """
    if count == 1:
        return
    if "WORLD_SIZE" in os.environ:
        raise MrgenError(f"--processes {count}: torchrun (WORLD_SIZE is set) says how many there are; leave it out")
    for file in files:
        check_file(file, "a scan")
    given, command = iter(sys.argv[1:]), []
    for argument in given:
        if argument == "--processes":
            next(given)
        elif not argument.startswith("--processes="):
            command.append(argument)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    sys.stdout.flush()
    os.execv(sys.executable, [*torchrun, "-m", "--", "mrgen.cli", *command])


def join_for_scans(device: Device) -> Processes:
    """The processes of torchrun that share scans, and the GPUs where those are fewer, or this one alone."""
    processes = join(device.resolve(), OTHERS_MAY_TAKE, in_turn=True)
    if processes.device != "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), HOST_THREADS))
    return processes


OnDevice = Annotated[Device, typer.Option(help="Where to compute.")]


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """SIGTERM, which a cluster sends before it takes a machine away, and Ctrl-C become a MrgenError that begins `what`.

    Under torchrun a second one is ignored: it sends each on to processes that the terminal has sent it to already.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if "WORLD_SIZE" in os.environ:
            for each in before:
                signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise MrgenError(f"{what} was stopped by {stopped}; the same command goes on from there") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress_on_stderr(prefix: str = "") -> Iterator[Callable[[float, str], None]]:
    """progress(fraction, place): a bar with the time left on a terminal; a line now and then where there is none.

    The first fraction is what was done before. With a `prefix`, that of one of several processes, there are lines only.
    """
    console = Console(stderr=True)
    if console.is_terminal and not prefix:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
            task = bar.add_task("starting", total=1.0)  # which leaves the first step out of its speed
            yield lambda fraction, place: bar.update(task, completed=fraction, description=place)
        return

    spoken = time.monotonic()
    first: tuple[float, float] | None = None  # when, and how much was done by then

    def line(fraction: float, place: str) -> None:
        nonlocal spoken, first
        now = time.monotonic()
        begun, before = first = first or (now, fraction)
        if now - spoken >= PROGRESS_SECONDS and before < fraction < 1:
            left = (now - begun) * (1 - fraction) / (fraction - before) / 60
            typer.echo(f"{prefix}{place}: {fraction:.0%}, about {left:.1f} min left", err=True)
            spoken = now

    yield line
