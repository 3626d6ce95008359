"""Training data: prepared slices, grouped by matrix size into batches.

`TrainingSet` holds anything that gives items by index, in memory or on disk. Which items make the batch of step
k is a function of (seed, k) alone, so training resumes exactly. Threads load the next batches while one is used.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.prior.cache import CachedScan, read_slices
from mrgen.prior.draws import stream
from mrgen.prior.objectives import CleanBatch, MeasuredBatch, beside, to_device
from mrgen.prior.preparation import prepare_scans
from mrgen.prior.weights import gsure_weights, line_probability
from mrgen.scans.scan import Slice
from mrgen.settings import Protocol, Sampling

SCANS = (".h5", ".mrd", ".dat", ".cfl", ".npz")
AHEAD, READERS = 2, 16  # batches that are loaded before they are asked for; threads that read their items
COILS = -1  # stands for no item in the seed of a step's virtual coils


@dataclass(frozen=True)
class Item:
    """One undersampled slice, as `MeasuredBatch` without the batch axis; mask and weights are (kx,)."""

    kspace: Tensor
    mask: Tensor
    maps: Tensor
    weights: Tensor
    sigma0: float

    @property
    def coils(self) -> int:
        return len(self.maps)

    @property
    def shape(self) -> tuple[int, int]:
        return self.kspace.shape[-2], self.kspace.shape[-1]


def item_of(slice_: Slice, sampling: Sampling, acceleration: float | None = None) -> Item:
    """The training item of a prepared slice whose lines were drawn as `sampling` says, with R = `acceleration`.

    Without R, it is the one that explains the lines best. Raises MrgenError when none does.
    """
    weights = gsure_weights(line_probability(slice_.mask, sampling, acceleration))
    return Item(slice_.kspace, slice_.mask, slice_.maps, weights, slice_.sigma0)


@dataclass(frozen=True)
class StoredItem:
    """An `Item` in the cache."""

    scan: CachedScan
    n: int
    sampling: Sampling

    @property
    def coils(self) -> int:
        return self.scan.shape[0]

    @property
    def mask(self) -> Tensor:
        return self.scan.mask[self.n]

    @cached_property
    def weights(self) -> Tensor:
        return gsure_weights(line_probability(self.mask, self.sampling, self.scan.acceleration[self.n]))

    @property
    def sigma0(self) -> float:
        return self.scan.sigma0[self.n]


@dataclass(frozen=True)
class Share:
    """The part of a batch that a process computes at a time."""

    items: MeasuredBatch | CleanBatch
    positions: range  # of the items in the batch; empty where the batch is too small: then `items` is one to spare
    floors: Tensor  # (batch,) of the whole batch, on the CPU: the lowest noise level that each item serves


@dataclass(frozen=True)
class TrainingSet:
    """Items with their matrix sizes and a fingerprint of what they were made from.

    An item is only trained on at noise levels from its entry of `floors` (item,) on; without them, at all levels.
    """

    items: Sequence[Item | StoredItem] | Sequence[Tensor]  # measured slices, or clean images (y, x) for the oracle
    shapes: list[tuple[int, int]]
    fingerprint: str
    floors: Tensor | None = None

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        protocol: Protocol,
        cache: Path,
        report: Callable[[str], None] = print,
        device: str = "cpu",
        largest: int | None = None,
    ) -> TrainingSet:
        """Every slice of every scan in `folder`, prepared into `cache` on `device` where it is not there yet.

        With `largest`, only of that many of the largest files.
        What cannot be used is left out as `prepare_scans` says. Raises MrgenError when there is nothing to train on.
        """
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SCANS)
        if not paths:
            raise MrgenError(f"no scans in {folder}, expected {', '.join(SCANS)}: name the folder they are in")
        if largest is not None:
            paths = sorted(sorted(paths, key=lambda path: path.stat().st_size)[-largest:])
        scans = prepare_scans(paths, protocol, cache, device, report)
        items = [StoredItem(scan, n, protocol.sampling) for scan in scans for n in range(len(scan))]
        text = "".join(f"{scan.file.stem}{scan.index}" for scan in scans)
        return cls(items, [i.scan.shape[1:] for i in items], hashlib.sha256(text.encode()).hexdigest())

    @property
    def matrix(self) -> tuple[int, int]:
        """The commonest matrix size."""
        return Counter(self.shapes).most_common(1)[0][0]

    @classmethod
    def from_images(cls, images: Sequence[Tensor], fingerprint: str) -> TrainingSet:
        """Clean complex images (y, x), for the supervised objective."""
        return cls(images, [(i.shape[-2], i.shape[-1]) for i in images], fingerprint)

    def epoch(self, number: int, batch: int, seed: int) -> list[list[int]]:
        """The batches of one pass over the data: lists of indices of equal matrix size, shuffled."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        order = torch.randperm(len(self.shapes), generator=generator).tolist()
        groups: dict[tuple[int, int], list[int]] = {}
        for i in order:
            groups.setdefault(self.shapes[i], []).append(i)
        batches = [g[s : s + batch] for g in groups.values() for s in range(0, len(g), batch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _order(self, step: int, batch: int, seed: int) -> Iterator[list[int]]:
        """The indices of the batches from `step` on, without end."""
        per_epoch = len(self.epoch(0, batch, seed))
        number, offset = divmod(step, per_epoch)
        while True:
            yield from self.epoch(number, batch, seed)[offset:]
            number, offset = number + 1, 0

    def shares(
        self,
        step: int,
        batch: int,
        seed: int,
        device: str = "cpu",
        rank: int = 0,
        processes: int = 1,
        parts: int = 1,
        combined: bool = False,
    ) -> Generator[Share]:
        """What process `rank` of `processes` computes from `step` on, without end: each batch in `parts` shares.

        A share takes every (processes * parts)-th item, so that all have like mixtures of the noise levels, which rise
        with the position in the batch. They come on `device`: a GPU gets the next one while it computes. `combined`
        ones have the k-space of one virtual coil, anew in each step, which is all that the Fourier basis looks at.
        """
        order = (
            (number, indices, range(part * processes + rank, len(indices), parts * processes))
            for number, indices in enumerate(self._order(step, batch, seed), step)
            for part in range(parts)
        )
        side = torch.cuda.Stream(device) if device != "cpu" else None  # type: ignore[no-untyped-call]
        pool, readers = ThreadPoolExecutor(AHEAD, "batches"), ThreadPoolExecutor(READERS, "items")

        def load(number: int, indices: list[int], positions: range) -> tuple[Share, torch.cuda.Event | None]:
            coils = stream(seed, number, COILS) if combined else None
            with torch.cuda.stream(side):
                batch = to_device(self.collate(indices, positions or range(1), device, readers, coils), device)
            floors = torch.zeros(len(indices)) if self.floors is None else self.floors[indices]
            return Share(batch, positions, floors), None if side is None else side.record_event()

        try:
            loading = deque(pool.submit(load, *share) for share in islice(order, AHEAD))
            for share in order:
                loading.append(pool.submit(load, *share))
                ready, filled = loading.popleft().result()
                if filled is not None:
                    _hand_over(ready.items, filled)
                yield ready
        finally:
            for threads in (pool, readers):
                threads.shutdown(cancel_futures=True)

    def collate(
        self,
        indices: list[int],
        positions: range | None = None,
        device: str | None = None,
        readers: Executor | None = None,
        combine: torch.Generator | None = None,
    ) -> MeasuredBatch | CleanBatch:
        """One batch, or its items at `positions`; threads of `readers` read its items.

        Its large arrays are filled on `device`, where the items are without one; a GPU may still be at it. Fewer coils
        than the batch has at most are padded with zeros, which changes nothing. With `combine` k-space (batch, 1, y, x)
        is that of one virtual coil, an item's coils with weights that are uniform on the unit sphere, drawn for the
        whole batch, whatever the `positions`; maps are 1 (batch, 1, 1, 1).
        """
        places = range(len(indices)) if positions is None else positions
        whole = [self.items[i] for i in indices]
        chosen = [whole[p] for p in places]
        if isinstance(chosen[0], Tensor):
            return CleanBatch(torch.stack(chosen))  # type: ignore[arg-type]
        items: list[Item | StoredItem] = chosen  # type: ignore[assignment]
        home, coils = items[0].mask.device, max(i.coils for i in whole)  # type: ignore[union-attr]
        shape = len(items), 1 if combine else coils, *self.shapes[indices[0]]
        kspace, weights = torch.empty(shape, dtype=torch.complex64, device=device or home), None
        if combine is not None:
            drawn = torch.randn(len(whole), coils, dtype=torch.complex64, generator=combine)
            mine = [drawn[p, : i.coils] for p, i in zip(places, items, strict=True)]
            like = items[0].kspace if isinstance(items[0], Item) else kspace
            weights = torch.split(beside(torch.cat([w / w.norm() for w in mine]), like), [len(w) for w in mine])
        maps = torch.empty_like(kspace) if weights is None else kspace.new_ones(len(items), 1, 1, 1)

        if isinstance(items[0], StoredItem):
            slices = [(i.scan, i.n) for i in items]  # type: ignore[union-attr]
            read_slices(slices, kspace, maps if weights is None else None, readers, weights)
        elif weights is None:
            for whole_array, name in ((kspace, "kspace"), (maps, "maps")):
                parts = [array[: i.coils] for array, i in zip(whole_array.zero_(), items, strict=True)]
                torch._foreach_copy_(parts, [getattr(i, name) for i in items])
        else:
            made = [torch.mv(i.kspace.flatten(1).mT, w) for i, w in zip(items, weights, strict=True)]  # type: ignore[union-attr]
            torch._foreach_copy_(list(kspace.flatten(1)), made)
        return MeasuredBatch(
            kspace=kspace,
            mask=torch.stack([i.mask for i in items])[:, None, None],
            maps=maps,
            weights=torch.stack([i.weights for i in items])[:, None, None],
            sigma0=torch.tensor([i.sigma0 for i in items]),
        )


def _hand_over(batch: MeasuredBatch | CleanBatch, filled: torch.cuda.Event) -> None:
    """Let the current stream use, after `filled`, what another stream has filled."""
    current = torch.cuda.current_stream(filled.device)
    current.wait_event(filled)
    for field in fields(batch):
        if (array := getattr(batch, field.name)).is_cuda:
            array.record_stream(current)
