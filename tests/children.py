"""Python processes of their own which begin with torch imported, as to import it takes longer than what they do.

Each is a fork of one process that has imported it, multiprocessing's server of forks, and nothing else.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pytest",  # the main script of who asks, which every child imports again
        "torch._dynamo",
        "torch.distributed.run",
        "matplotlib.backends.backend_agg",
        "mrgen.cli.recon",
        "mrgen.prior.train",
    ]
)
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Child:
    """`python *arguments`, or so many `processes` of it by torchrun's agent; with what tests use of subprocess.Popen.

    It leads a process group of its own, and `stdout` has its stderr too.
    """

    def __init__(self, arguments: tuple[object, ...], processes: int = 0) -> None:
        with pytest.MonkeyPatch.context() as patch:  # the server's when it is started, and the child's
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            reader, writer = SERVER.Pipe(duplex=False)
            given = [str(argument) for argument in arguments]
            self.process = SERVER.Process(target=_begin, args=(given, dict(os.environ), writer, processes))
            self.process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a child", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float) -> str:
        """All that it says until it ends. After so many seconds it is killed."""
        impatience = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        impatience.start()
        with self.stdout:
            said = self.stdout.read()
        impatience.cancel()
        self.wait(timeout)
        return said


def _begin(arguments: list[str], environment: dict[str, str], stdout: Connection, processes: int) -> None:
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(stdout.fileno(), descriptor)
    stdout.close()
    sys.stdout.reconfigure(line_buffering=True)  # who starts a child reads along
    os.environ.update(environment)
    if not processes:
        _run(arguments)
    else:
        from torch.distributed.launcher import LaunchConfig, elastic_launch

        # what torchrun --standalone makes of its options, but for the processes, which are forks again
        config = LaunchConfig(
            1, 1, processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork"
        )
        elastic_launch(config, _run)(arguments)


def _run(arguments: list[str]) -> None:
    first, *rest = arguments
    try:
        if first == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        elif first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
