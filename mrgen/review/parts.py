"""The finished slices of a scan under way, so that an interrupted run goes on where it was.

    .<stem>.partial/run.json                   what the slices are made from
    .<stem>.partial/slice-00007.safetensors    images of slice 7, and facts about it

Every file appears under its name when it is complete, so that any end, `kill -9` included, leaves the slices that were
finished. (An HDF5 file that is open for writing when its process is killed may be unreadable as a whole.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.prior.distributed import ALONE, Processes
from mrgen.prior.files import read_safetensors, write_safetensors


@dataclass(frozen=True)
class Part:
    """A finished slice: images by name, in their order, and facts for JSON."""

    images: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The finished slices in `folder`, by their index in the scan."""

    folder: Path

    def _file(self, index: int) -> Path:
        return self.folder / f"slice-{index:05d}.safetensors"

    def write(self, index: int, part: Part) -> None:
        """Keep a slice. Raises MrgenError when the disk refuses."""
        facts = {**part.facts, "images": list(part.images)}
        try:
            write_safetensors(self._file(index), part.images, facts)
        except (OSError, SafetensorError) as error:
            raise MrgenError(
                f"could not keep slice {index} in {self.folder} ({error}): free space, and the same command goes on"
            ) from None

    def read(self, index: int) -> Part:
        """A slice that was kept. Raises MrgenError where there is none."""
        images, facts = read_safetensors(self._file(index))
        return Part({name: images[name] for name in facts.pop("images")}, facts)

    def __contains__(self, index: int) -> bool:
        """Whether a slice was kept; one that a crash of the machine damaged was not."""
        try:
            self.read(index)
        except MrgenError:
            return False
        return True

    def __bool__(self) -> bool:
        return any(self.folder.glob("slice-*.safetensors"))

    def remove(self) -> None:
        """The slices are in the final files, or were kept for nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def partial_slices(
    out_dir: Path, stem: str, identity: dict[str, Any], resume: bool, processes: Processes = ALONE
) -> Iterator[Parts]:
    """The slices that an earlier run with this `identity` has left in `out_dir`, none without `resume`.

    No process but these gets them meanwhile. Raises MrgenError where one has, and for slices of another identity.
    """
    parts = Parts(out_dir / f".{stem}.partial")
    with ExitStack() as stack:
        if processes.rank == 0:
            keep = processes.count > 1  # as others may finish a slice after this one has failed
            stack.enter_context(_claimed(parts, f"{stem} in {out_dir}", identity, resume, keep))
        processes.wait()
        yield parts


@contextmanager
def _claimed(parts: Parts, what: str, identity: dict[str, Any], resume: bool, keep: bool) -> Iterator[None]:
    parts.folder.mkdir(exist_ok=True)
    lock = FileLock(parts.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise MrgenError(f"another process is at {what}: wait for it, or name another folder") from None
    try:
        _claim(parts, identity, resume)
        yield
    finally:
        if not parts and not keep:
            parts.remove()
        lock.release()


def _claim(parts: Parts, identity: dict[str, Any], resume: bool) -> None:
    made_from = parts.folder / "run.json"
    identity = json.loads(json.dumps(identity))
    if parts and resume:
        try:
            found = json.loads(made_from.read_text())
        except (OSError, ValueError):
            found = {}
        differs = [key for key in identity if found.get(key) != identity[key]]
        if not differs:
            return
        raise MrgenError(
            f"{parts.folder} holds slices of an interrupted run with another {', '.join(differs)}: repeat that command "
            "to finish it, name another output folder, or give them up with --no-resume"
        )
    for file in parts.folder.glob("slice-*"):
        file.unlink()
    made_from.write_text(json.dumps(identity, indent=1) + "\n")
