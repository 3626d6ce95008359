"""Commands of mrgen under torchrun, on chosen GPUs, with the time at which each line of their output came."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
Line = tuple[float, str]  # seconds after the command was started, text


@dataclass(frozen=True)
class Machine:
    """What commands run on."""

    device: str  # cuda or cpu
    count: int  # GPUs; on a CPU, processes
    report_seconds: float = 1.0

    @property
    def threads(self) -> int:
        """OMP_NUM_THREADS, the same however many processes there are: torchrun would give one process all cores."""
        return max(1, (os.cpu_count() or 1) // self.count)

    def start(self, *arguments: object, gpus: range, each: int = 1) -> Command:
        """`mrgen` with these arguments, `each` processes on each of `gpus`."""
        return self._start(["-m", "--", "scaling.talkative", *map(str, arguments)], gpus, each)

    def start_script(self, script: Path, *arguments: object, gpus: range) -> Command:
        """A script of ours instead."""
        return self._start([str(script), *map(str, arguments)], gpus)

    def _start(self, arguments: list[str], gpus: range, each: int = 1) -> Command:
        ours = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")  # of which `gpus` are numbers
        names = [ours[gpu] if ours != [""] else str(gpu) for gpu in gpus]
        path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "examples"), os.environ.get("PYTHONPATH")]))
        number = f"--nproc-per-node={each * len(gpus)}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", number]
        process = subprocess.Popen(
            [*torchrun, *arguments, "--device", self.device],
            env=os.environ
            | {"CUDA_VISIBLE_DEVICES": ",".join(names) if self.device == "cuda" else ""}
            | {"OMP_NUM_THREADS": str(max(1, self.threads // each)), "PYTHONPATH": path}
            | {"PYTHONUNBUFFERED": "1", "REPORT_SECONDS": str(self.report_seconds)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Command(process, time.perf_counter())


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    lines: list[Line]
    seconds: float
    code: int

    def when(self, pattern: str) -> list[tuple[float, re.Match[str]]]:
        """The lines in which `pattern` is found, and when they came."""
        return [(when, found) for when, text in self.lines if (found := re.search(pattern, text))]


@dataclass(frozen=True)
class Command:
    """A command that runs."""

    process: subprocess.Popen[str]
    begun: float

    def follow(self, heard: Callable[[str], None] | None = None) -> Done:
        """Wait for its end, telling `heard` of each line as it comes."""
        assert self.process.stdout is not None
        lines: list[Line] = []
        with self.process.stdout as said:
            for text in said:
                lines.append((time.perf_counter() - self.begun, text.rstrip()))
                if heard is not None:
                    heard(text)
        return Done(lines, time.perf_counter() - self.begun, self.process.wait())

    def succeed(self) -> Done:
        """Wait for its end, and stop with the end of what it said where it failed."""
        done = self.follow()
        if done.code:
            sys.exit("\n".join([*(text for _, text in done.lines[-40:]), f"the command above failed: {done.code}"]))
        return done

    def kill(self, rank: int) -> None:
        """SIGKILL to one of its processes."""
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended, or is somebody else's
                continue
            if parent == self.process.pid and f"RANK={rank}".encode() in variables:
                os.kill(int(folder.name), signal.SIGKILL)
                return
        sys.exit(f"found no process of rank {rank} to kill")
