"""Prepare scans into a cache, once, whoever asks for them.

A scan is the unit: it is stored when all its slices are prepared, so an interruption loses one scan at most. Processes
that share a cache share the work: each takes the scans that none is at, and in the end waits for those of the others.

Slices that cannot be prepared, and scans that cannot be read, are left out and named, up to LEFT_OUT of the data.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.physics.masks import achieved_acceleration
from mrgen.prior.cache import CachedScan, Entry, alone, cache_file, made_from, write_scan
from mrgen.prior.weights import gsure_weights, line_probability
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import prepare, undersampling_mask
from mrgen.scans.scan import Scan
from mrgen.settings import Protocol, Sampling

LEFT_OUT = 0.05  # of the scans; one with 2 bad slices of 30 counts as 2/30
REPORT_SECONDS = 10.0


class UnusableScan(MrgenError):
    """The scan is at fault, not the cache."""


def prepare_scans(
    paths: list[Path], protocol: Protocol, cache: Path, device: str, report: Callable[[str], None]
) -> list[CachedScan]:
    """The usable ones of the scans `paths`, in that order, from `cache` or prepared into it on `device`.

    Fully sampled scans are undersampled by the protocol, with one fixed mask and R per slice; undersampled ones are
    taken as they are, so that no setting touches what is stored of them. Raises MrgenError when more than LEFT_OUT is
    unusable, or when the cache cannot be written.
    """
    usable: dict[Path, CachedScan] = {}
    unusable: dict[Path, str] = {}
    lost = 0.0
    progress = _Progress(report, len(paths))
    for patience in (0, -1):  # scans that nobody is at; then, without end of patience, those that others have begun
        waiting = [(n, path) for n, path in enumerate(paths) if path not in usable and path not in unusable]
        if waiting and patience:
            report(f"waiting for another process to prepare {len(waiting)} of {len(paths)} scans")
        for progress.scan, path in waiting:
            try:
                if found := _find_or_prepare(path, protocol, cache, device, patience, progress):
                    _check(path, found.mask[0], found.acceleration, protocol.sampling)
                    usable[path] = found
                    lost += len(found.left_out) / (len(found) + len(found.left_out))
            except UnusableScan as error:
                unusable[path] = str(error)
                lost += 1
            if lost > LEFT_OUT * len(paths):
                lines = _left_out(usable, unusable)
                raise MrgenError(
                    f"more than {LEFT_OUT:.0%} of the data cannot be used, so far in {len(lines)} of {len(paths)} "
                    f"scans: repair them or take them out of the folder; the first is {lines[0]}"
                )
    slices = sum(len(scan) for scan in usable.values())
    achieved = [achieved_acceleration(mask) for scan in usable.values() for mask in scan.mask]
    which = f"R = {min(achieved):.2f} to {max(achieved):.2f} of all lines" if achieved else "none can be used"
    seconds = time.monotonic() - progress.begun
    report(f"prepared {len(usable)} scans: {slices} slices, {progress.slices} of them new, in {seconds:.2f} s; {which}")
    for line in _left_out(usable, unusable):
        report(f"left out {line}")
    return [usable[path] for path in paths if path in usable]


@dataclass
class _Progress:
    """Says now and then how far preparation is, taking the scans to come for as long as the one at hand."""

    report: Callable[[str], None]
    scans: int
    scan: int = 0  # the one at hand
    slices: int = 0  # prepared so far

    def __post_init__(self) -> None:
        self.begun = self.spoken = time.monotonic()

    def step(self, index: int, slices: int) -> None:
        """Slice `index` of the `slices` of the scan at hand is prepared."""
        self.slices, now = self.slices + 1, time.monotonic()
        if now - self.spoken >= REPORT_SECONDS:
            self.spoken, rate = now, self.slices / (now - self.begun)
            left = ((self.scans - self.scan) * slices - index - 1) / rate / 60
            place = f"slice {index + 1} of {slices}, scan {self.scan + 1} of {self.scans}"
            self.report(f"preparing {place}: {rate:.2g} slices/s, about {left:.0f} min left")


def _find_or_prepare(
    path: Path, protocol: Protocol, cache: Path, device: str, patience: float, progress: _Progress
) -> CachedScan | None:
    """None where another process is at this scan, and still is after `patience` seconds."""
    undersampling = {**protocol.sampling.model_dump(mode="json"), "seed": protocol.training.seed}
    try:
        sources = [made_from(path, how, protocol.coils) for how in (None, undersampling)]
    except OSError as error:
        raise UnusableScan(f"{path.name}: cannot be read ({error.strerror})") from None
    files = [cache_file(cache, source) for source in sources]

    def find() -> CachedScan | None:
        return next((CachedScan.open(file) for file in files if file.exists()), None)

    if found := find():
        return found
    with alone(files[0], patience) as nobody_else:  # under whatever protocol: it may be about the same file
        if nobody_else and not (found := find()):
            scan = _open(path, protocol.sampling)
            which = int(scan.mask is None)
            _prepare(scan, protocol, files[which], sources[which], device, progress)
            found = find()
        return found


def _open(path: Path, sampling: Sampling) -> Scan:
    """The scan, if GSURE can learn from it under this protocol. Raises UnusableScan."""
    try:
        scan = open_scan(path)
    except MrgenError as error:
        raise UnusableScan(str(error)) from None
    if scan.mask is None:
        _check(path, torch.ones(scan.shape[-1]), sampling.acceleration, sampling)
    else:
        _check(path, scan.mask, [None], sampling)
    return scan


def _check(path: Path, mask: Tensor, accelerations: Iterable[float | None], sampling: Sampling) -> None:
    """Raises UnusableScan where the protocol has no weights for lines that it should sample at these R."""
    try:
        for r in set(accelerations):
            gsure_weights(line_probability(mask, sampling, r))
    except MrgenError as error:
        raise UnusableScan(f"{path.name}: {error}") from None


def _prepare(
    scan: Scan, protocol: Protocol, file: Path, source: dict[str, Any], device: str, progress: _Progress
) -> None:
    name = Path(scan.path).name
    left_out: dict[int, str] = {}

    def entries() -> Iterator[Entry]:
        for index in range(scan.slices):
            try:
                entry = _entry(scan, index, protocol, device)
            except MrgenError as error:
                left_out[index] = str(error).removeprefix(f"{name}: ").removeprefix(f"slice {index} ")
            else:
                progress.step(index, scan.slices)
                yield entry

    write_scan(file, entries(), {**source, "mrgen": __version__, "left_out": left_out})
    if len(left_out) == scan.slices:
        raise UnusableScan(f"{name}: slice 0: {left_out[0]}")


def _entry(scan: Scan, index: int, protocol: Protocol, device: str) -> Entry:
    coils = protocol.coils if protocol.coils and protocol.coils < scan.shape[1] else None
    if scan.mask is not None:
        return Entry(index, None, prepare(scan, index, coils=coils, device=device))
    sampling, seed = protocol.sampling, protocol.training.seed
    digest = hashlib.sha256(f"{Path(scan.path).name}/{index}/R".encode()).digest()
    pick = torch.Generator().manual_seed(seed + int.from_bytes(digest[:4]))
    acceleration = sampling.acceleration[int(torch.randint(len(sampling.acceleration), (), generator=pick))]
    mask = undersampling_mask(scan, sampling, acceleration, seed, index)
    return Entry(index, acceleration, prepare(scan, index, undersample=mask, coils=coils, device=device))


def _left_out(usable: dict[Path, CachedScan], unusable: dict[Path, str]) -> list[str]:
    """What is left out and why, a line for each scan concerned."""
    lines = list(unusable.values())
    for path, scan in usable.items():
        if bad := scan.left_out:
            first, why = next(iter(bad.items()))
            lines.append(f"{path.name}: {len(bad)} of {len(scan) + len(bad)} slices; slice {first}: {why}")
    return lines
