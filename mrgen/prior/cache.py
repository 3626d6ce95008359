"""Prepared slices on disk: one HDF5 file a scan, which is complete or absent and never changes.

    samples/<n>    (coil, ky, line) or (coil, point) complex64    kspace[..., mask] of the nth slice
    support/<n>    (y, x) bool                                    where any coil has a map
    maps/<n>       (coil, pixel) complex64                        maps[..., support]
    mask           (slice, kx) or (slice, ky, kx)                 1 where sampled
    index          (slice,)                                       number of the slice in its scan
    acceleration   (slice,)                                       R of the mask; NaN where the scanner undersampled
    sigma0, scale, noise_from   (slice,)                          as in `Slice`
    manifest       attribute, JSON                                what all this was made from

The file's name holds a hash of what the manifest says of input and settings, so another input or setting is another
file. Only what was sampled is stored, and maps where there are any. Nothing is compressed: of noise in floating point,
lzf saves 7 % and takes 13 times as long to read. So the large arrays lie in the file as they lie in memory, and are
read from their places by the system, in parallel: the HDF5 library has one lock for all threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.scan import Slice

FORMAT = "mrgen-slices-4"  # count up when preparation gives other slices than before: stored ones are then left alone
LARGE = ("samples", "support", "maps")


@dataclass(frozen=True)
class Entry:
    """A slice to store."""

    index: int  # its number in the scan
    acceleration: float | None  # R of the mask that was put on a fully sampled scan
    slice: Slice


def made_from(path: Path, undersampling: dict[str, Any] | None, coils: int | None = None) -> dict[str, Any]:
    """What decides on the prepared slices of the scan `path`: the file itself and, if any, how it is undersampled and
    to how many virtual coils it is compressed.
    """
    stat = path.stat()
    scan = {"name": path.name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
    return {"format": FORMAT, "input": scan, "undersampling": undersampling, "coils": coils}


def cache_file(cache: Path, source: dict[str, Any]) -> Path:
    """Where slices made from `source` lie."""
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    return cache / f"{Path(source['input']['name']).stem[:80]}-{digest[:16]}.h5"


def write_scan(file: Path, entries: Iterable[Entry], manifest: dict[str, Any]) -> None:
    """Store slices of equal shape, and `manifest` as it is after the last one was drawn from `entries`.

    The file appears under its name when it is complete and on the disk. Without any entry there is none. Raises
    MrgenError when it cannot be written.
    """
    partial = file.with_name(file.name + ".partial")
    table: list[tuple[Any, ...]] = []
    try:
        with _writing(partial) as h5:
            for n, entry in enumerate(entries):
                slice_ = entry.slice
                mask, support = slice_.mask.bool().cpu(), slice_.support.bool().cpu()
                h5[f"samples/{n}"] = slice_.kspace.cpu()[..., mask].numpy()
                h5[f"support/{n}"] = support.numpy()
                h5[f"maps/{n}"] = slice_.maps.cpu()[..., support].numpy()
                r = math.nan if entry.acceleration is None else entry.acceleration
                table.append((mask.numpy(), entry.index, r, slice_.sigma0, slice_.scale, slice_.noise_from))
            columns = zip(*table, strict=True)
            names = ("mask", "index", "acceleration", "sigma0", "scale", "noise_from")
            for name, column in zip(names, columns, strict=False):
                h5[name] = list(column) if name == "noise_from" else np.array(column)
            h5.attrs["manifest"] = json.dumps(manifest)
        if table:
            os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _writing(file: Path) -> Iterator[h5py.File]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(file, "w") as h5:
            yield h5
        with file.open("rb") as written:
            os.fsync(written.fileno())
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> MrgenError:
    reason = str(error).partition("\n")[0]
    return MrgenError(f"cannot write to the cache {file.parent} ({reason}): make room there, or name another folder")


@contextmanager
def alone(file: Path, patience: float) -> Iterator[bool]:
    """False where another process is in this block for `file`, and still is after `patience` seconds (-1: waits on).

    The system lets go of the lock, <file>.lock, when a process ends, however it ends. It goes away when the block ends
    without an exception: then `file` is there, and so the block begins by looking for it. Raises MrgenError where the
    folder cannot be written.
    """
    lock = FileLock(f"{file}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise _unwritable(file, error) from None
    with held:
        yield True
    with suppress(OSError):
        os.unlink(lock.lock_file)


@dataclass(frozen=True)
class _Place:
    """Where an array lies in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> _Place:
        return cls(dataset.id.get_offset() or 0, dataset.shape, torch.from_numpy(np.empty(0, dataset.dtype)).dtype)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, file: Path, array: Tensor) -> None:
        """Into `array`, which is as long, beside other threads. Raises MrgenError."""
        with _reading(file), file.open("rb") as opened:
            opened.seek(self.offset)
            if opened.readinto(array.numpy().data) < self.nbytes:
                raise ValueError("it ends too early")


@dataclass(frozen=True)
class CachedScan:
    """The slices of one file. It is open only while something is read, so this can be shared by threads and forks."""

    file: Path
    manifest: dict[str, Any]
    shape: tuple[int, int, int]  # coil, y, x
    places: dict[str, list[_Place]]  # of the parts of LARGE
    mask: Tensor  # (slice, kx) or (slice, ky, kx), float
    index: list[int]
    acceleration: list[float | None]
    sigma0: list[float]
    scale: list[float]
    noise_from: list[str]

    @classmethod
    def open(cls, file: Path) -> CachedScan:
        """All of a file but its large arrays. Raises MrgenError for one that is damaged."""
        with _reading(file), h5py.File(file, "r", locking=False) as h5:  # some file systems have no locks
            return cls(
                file,
                json.loads(h5.attrs["manifest"]),
                (len(h5["maps/0"]), *h5["support/0"].shape),
                {part: [_Place.of(h5[part][str(n)]) for n in range(len(h5["index"]))] for part in LARGE},
                torch.from_numpy(h5["mask"][()]).float(),
                h5["index"][()].tolist(),
                [None if math.isnan(r) else r for r in h5["acceleration"][()].tolist()],
                h5["sigma0"][()].tolist(),
                h5["scale"][()].tolist(),
                h5["noise_from"].asstr()[()].tolist(),
            )

    @property
    def left_out(self) -> dict[str, str]:
        """Slices of the scan that could not be prepared, by number, and why."""
        slices: dict[str, str] = self.manifest["left_out"]
        return slices

    def __len__(self) -> int:
        return len(self.index)

    def read(self, n: int) -> Slice:
        """The nth slice that is stored, as it was prepared, without a reference. Raises MrgenError."""
        kspace, maps = torch.empty(2, 1, *self.shape, dtype=torch.complex64)
        read_slices([(self, n)], kspace, maps)
        return Slice(
            kspace[0], self.mask[n], maps[0], self.sigma0[n], self.scale[n], None, noise_from=self.noise_from[n]
        )


def present(coils: Sequence[int], most: int, device: torch.device) -> Tensor:
    """Which of `most` coils slices with so many `coils` have, bool (slice, coil, 1, 1)."""
    return (torch.arange(most, device=device) < torch.tensor(coils, device=device)[:, None])[..., None, None]


def read_slices(
    slices: Sequence[tuple[CachedScan, int]],
    kspace: Tensor,
    maps: Tensor | None,
    readers: Executor | None = None,
    combine: Sequence[Tensor] | None = None,
) -> None:
    """Fill k-space and maps (slice, coil, y, x) with the nth slices of scans, and with 0 the coils that these lack.

    Maps, most of what a slice holds, are not read where there is nothing to fill. With weights (coil,) of each slice in
    `combine`, where k-space is, that is (slice, 1, y, x): the weighted sum of its coils.

    Threads of `readers` read, and do nothing else: Python's lock and the GPU's driver are for the thread that trains. A
    GPU gets the large arrays of all slices at once, without being waited for. Raises MrgenError.
    """
    there = present([1 if combine else scan.shape[0] for scan, _ in slices], kspace.shape[1], kspace.device)
    masks = torch.stack([scan.mask[n] for scan, n in slices]).bool().to(kspace.device)
    sampled = masks.reshape(len(slices), 1, -1, masks.shape[-1])  # lines or points
    given, jobs = dict[str, Tensor](), []
    sizes = {part: [math.prod(scan.places[part][n].shape) for scan, n in slices] for part in LARGE}
    for part in LARGE if maps is not None else LARGE[:1]:
        places = [scan.places[part][n] for scan, n in slices]
        given[part] = torch.empty(sum(sizes[part]), dtype=places[0].dtype, pin_memory=kspace.is_cuda)
        pieces = torch.split(given[part], sizes[part])
        jobs += [(place, scan.file, piece) for place, (scan, _), piece in zip(places, slices, pieces, strict=True)]
    for _ in (readers.map if readers else map)(lambda job: job[0].read(*job[1:]), jobs):
        pass
    given = {part: array.to(kspace.device, non_blocking=True) for part, array in given.items()}
    if combine:
        coils = zip(combine, torch.split(given["samples"], sizes["samples"]), strict=True)
        given["samples"] = torch.cat([torch.mv(own.view(len(w), -1).mT, w) for w, own in coils])
    kspace.zero_().masked_scatter_(sampled & there, given["samples"])
    if maps is not None:
        support = given["support"].reshape(len(slices), 1, *maps.shape[-2:])
        maps.zero_().masked_scatter_(support & there, given["maps"])


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise MrgenError(f"{file} cannot be read ({reason}): delete it, and it is prepared again") from None
