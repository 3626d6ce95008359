"""Several processes under torchrun, on one machine or many: what they have to agree on.

Each process computes its share of a batch (`TrainingSet.shares`); DistributedDataParallel averages their gradients, so
that all make the same update of the same weights. In training only the first process writes and speaks.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mrgen.errors import MrgenError

Item = TypeVar("Item")
PATIENCE = timedelta(minutes=10)  # how long a process waits for the others before it gives up, in training


def local_device(device: str, in_turn: bool = False) -> str:
    """The device of this process: under torchrun, each on a machine has a GPU of its own. Raises MrgenError.

    With `in_turn` several may share one: process r takes the GPU of number r modulo how many there are.
    """
    if device != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if in_turn and there:
        return f"cuda:{number % there}"
    if number >= there:
        raise MrgenError(
            f"torchrun started process {number + 1} of this machine, which has {there} usable GPU(s), expected one "
            "each: lower --nproc-per-node"
        )
    return f"cuda:{number}"


def is_first() -> bool:
    """Whether this is the process that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def silent(text: str) -> None:
    """The report of a process that is not the first."""
    del text


@dataclass(frozen=True)
class Processes:
    """Those that work together; without torchrun there is one, and every method gives back what it was given."""

    device: str
    rank: int = 0
    count: int = 1
    control: distributed.ProcessGroup | None = None  # over the network, so that no GPU has to be waited for
    store: distributed.distributed_c10d.Store | None = None  # in which they count together
    shared: Iterator[int] = field(default_factory=itertools.count)  # numbers of the lists that were shared

    @property
    def prefix(self) -> str:
        """Of every line, where several processes speak."""
        return f"[{self.rank}] " if self.count > 1 else ""

    def parallel(self, model: nn.Module) -> nn.Module:
        """`model` with the weights of the first process, and gradients averaged over all in the backward pass."""
        if self.count == 1:
            return model
        devices = None if self.device == "cpu" else [self.device]
        with warnings.catch_warnings():  # of the new name that earlier versions do not know
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(  # buffers are constants; gradients are averaged where they lie
                model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    @contextmanager
    def averaging(self, model: nn.Module, wanted: bool) -> Iterator[None]:
        """Around forward and backward pass: gradients are averaged only if `wanted`, else kept to be added up.

        Raises MrgenError where gloo finds that another process has ended; NCCL waits, and `any` finds it.
        """
        apart = model.no_sync() if isinstance(model, DistributedDataParallel) and not wanted else nullcontext()
        with self._together("gloo"), apart:
            yield

    @contextmanager
    def _together(self, sign: str = "") -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if sign not in str(error):  # gloo's errors name its source files, and say nothing to a user
                raise
            raise MrgenError(
                f"process {self.rank} of {self.count} lost the others: one of them ended, and says why"
            ) from None

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes of a tensor on the CPU. Raises MrgenError where another process has ended."""
        return self._reduce(values, distributed.ReduceOp.SUM)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set in any process."""
        return self._reduce(torch.tensor(flags, dtype=torch.uint8), distributed.ReduceOp.MAX).bool().tolist()

    def agree(self, *values: object) -> bool:
        """Whether every process has the same values, as text."""
        mine = torch.tensor(list(hashlib.sha256(repr(values).encode()).digest()))
        both = self._reduce(torch.cat([mine, -mine]), distributed.ReduceOp.MAX)
        return torch.equal(both[: len(mine)], -both[len(mine) :])

    def share(self, items: Sequence[Item]) -> Iterator[Item]:
        """The `items`, of which all processes have the same list: a process takes the next one whenever it asks."""
        if self.store is None:
            yield from items
            return
        name = f"mrgen shared {next(self.shared)}"
        while True:
            with self._together():
                number = self.store.add(name, 1) - 1
            if number >= len(items):
                return
            yield items[number]

    def wait(self) -> None:
        """Until all processes are here. Raises MrgenError where another process has ended."""
        self.any(False)

    def _reduce(self, values: Tensor, operation: distributed.ReduceOp.RedOpType) -> Tensor:
        if self.control is not None:
            with self._together():
                distributed.all_reduce(values, operation, self.control)
        return values


ALONE = Processes("cpu")


def _leave() -> None:
    """Give NCCL's group up, and end the threads of gloo.

    To destroy NCCL's group is a collective call: where one process has failed, it would wait for those that have not,
    and torchrun, which ends them, waits for it. The threads of gloo want Python's lock to free a tensor and abort the
    process if Python has ended. They end with the last reference to their group; DistributedDataParallel holds some, in
    circles.
    """
    gc.collect()
    if distributed.get_backend() == "nccl":
        with suppress(AttributeError, RuntimeError):  # of versions that do it otherwise: then it is destroyed
            distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cuda")).abort()
    distributed.destroy_process_group()


def join(device: str, patience: timedelta = PATIENCE, in_turn: bool = False) -> Processes:
    """The processes that torchrun started (WORLD_SIZE, RANK and LOCAL_RANK are set), or this one alone.

    With `in_turn` more of them than there are GPUs share those, and cannot train. Raises MrgenError.
    """
    device = local_device(device, in_turn)
    if "WORLD_SIZE" not in os.environ:
        return Processes(device)
    if not distributed.is_initialized():
        if device != "cpu":
            torch.cuda.set_device(device)
        distributed.init_process_group("gloo" if device == "cpu" or in_turn else "nccl", timeout=patience)
        atexit.register(_leave)
    control = distributed.new_group(backend="gloo", timeout=patience)
    store = distributed.distributed_c10d._get_default_store()
    return Processes(device, distributed.get_rank(), distributed.get_world_size(), control, store)
