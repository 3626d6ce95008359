"""Training data: prepared slices, grouped by matrix size into batches.

`TrainingSet` holds anything that gives items by index, in memory or on disk. Which items make the batch of step
k is a function of (seed, k) alone, so training resumes exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from mrgen.errors import MrgenError
from mrgen.physics.masks import sampling_probability
from mrgen.prior.files import read_safetensors, write_safetensors
from mrgen.prior.objectives import CleanBatch, MeasuredBatch
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import prepare_slice, undersampling_mask
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Protocol, Sampling

FORMAT = "mrgen-slice-1"
FAR = 0.25  # relative difference between a scan's number of lines and the protocol's that is taken for another R
EDGE = 0.05  # fraction of lines on either side that may be never sampled (partial Fourier edge, rounding)


@dataclass(frozen=True)
class Item:
    """One undersampled slice, as `MeasuredBatch` without the batch axis; mask and weights are (kx,)."""

    kspace: Tensor
    mask: Tensor
    maps: Tensor
    weights: Tensor
    sigma0: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.kspace.shape[-2], self.kspace.shape[-1]


def gsure_weights(probability: Tensor) -> Tensor:
    """w_k = 1 / Pr(line k is sampled), (kx,); 0 for lines never sampled.

    Raises MrgenError when a line further in than the outer 5 % on either side is never sampled: no scan says anything
    about it, so the risk cannot be estimated there.
    """
    n = len(probability)
    edge = round(EDGE * n)
    never = (probability == 0).nonzero().flatten().tolist()
    inner = [k for k in never if edge <= k < n - edge]
    if inner:
        raise MrgenError(
            f"{len(inner)} of {n} phase-encode lines (the first is {inner[0]}) are never sampled by this protocol, "
            "so GSURE cannot learn them: vary the mask offset or pattern, or lower R"
        )
    return torch.where(probability > 0, 1 / probability.clamp_min(1e-12), 0.0)


def item_of(slice_: Slice, sampling: Sampling, acceleration: float | None = None) -> Item:
    """The training item of a prepared, undersampled slice; the protocol says how its lines were drawn.

    R, where it is not given, is the protocol's whose expected number of lines comes closest, counted between the
    first and the last line sampled: outside, the scanner may have measured none. Raises MrgenError when none is close.
    """
    n, lines = len(slice_.mask), slice_.mask.nonzero().flatten()
    span = slice(int(lines[0]), int(lines[-1]) + 1)

    def drawn(r: float) -> Tensor:
        return sampling_probability(sampling.pattern, n, r, sampling.center_fraction)

    def surplus(r: float) -> float:
        return float(drawn(r)[span].sum()) / len(lines) - 1

    r = acceleration or min(sampling.acceleration, key=lambda r: abs(surplus(r)))
    if acceleration is None and abs(surplus(r)) > FAR:
        raise MrgenError(
            f"the scan was undersampled to {len(lines)} of {n} lines, which no R of the protocol "
            f"({', '.join(f'{a:g}' for a in sampling.acceleration)}) explains: name its R and centre in a protocol"
        )
    weights = gsure_weights(drawn(r)).to(slice_.mask)
    return Item(slice_.kspace, slice_.mask, slice_.maps, weights, slice_.sigma0)


def write_item(file: Path, item: Item) -> None:
    """Store an item for `CachedSlices`: only its sampled lines are kept."""
    tensors = {
        "lines": item.kspace[..., item.mask.bool()],
        "mask": item.mask,
        "maps": item.maps,
        "weights": item.weights,
    }
    write_safetensors(file, tensors, {"format": FORMAT, "sigma0": item.sigma0})


class CachedSlices(Sequence[Item]):
    """Items prepared once and kept as one file each; a changed input or setting prepares anew."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        tensors, metadata = read_safetensors(self.files[index])
        lines = tensors["mask"].bool()
        kspace = tensors["maps"].new_zeros(tensors["maps"].shape)
        kspace[..., lines] = tensors["lines"]
        return Item(kspace, tensors["mask"], tensors["maps"], tensors["weights"], metadata["sigma0"])


def _prepare(scan: Scan, index: int, protocol: Protocol, file: Path) -> None:
    sampling, undersample, acceleration = protocol.sampling, None, None
    if scan.mask is None:
        pick = torch.Generator().manual_seed(protocol.training.seed + _number(f"{Path(scan.path).name}/{index}/R"))
        acceleration = sampling.acceleration[int(torch.randint(len(sampling.acceleration), (), generator=pick))]
        undersample = undersampling_mask(scan, sampling, acceleration, protocol.training.seed, index)
    raw = scan.read_slice(index)
    try:
        slice_ = prepare_slice(raw, scan.mask, undersample=undersample, keep_reference=False)
        write_item(file, item_of(slice_, sampling, acceleration))
    except MrgenError as error:
        raise MrgenError(f"{Path(scan.path).name}: slice {index}: {error}") from None


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


@dataclass(frozen=True)
class TrainingSet:
    """Items with their matrix sizes and a fingerprint of what they were made from."""

    items: Sequence[Item] | Sequence[Tensor]  # measured slices, or clean images (y, x) for the oracle
    shapes: list[tuple[int, int]]
    fingerprint: str

    @classmethod
    def from_folder(
        cls, folder: Path, protocol: Protocol, cache: Path, report: Callable[[str], None] = print
    ) -> TrainingSet:
        """Every slice of every .h5 scan in `folder`, prepared into `cache` where it is not there yet.

        Fully sampled scans are undersampled by the protocol, with one fixed mask per slice; undersampled ones
        are taken as they are. Raises MrgenError when there is nothing to train on.
        """
        paths = sorted(folder.glob("*.h5"))
        if not paths:
            raise MrgenError(f"no .h5 scans in {folder}; expected files in the fastMRI layout")
        files, shapes, made = [], [], 0
        settings = json.dumps([protocol.sampling.model_dump(), protocol.training.seed, FORMAT])
        for number, path in enumerate(paths):
            scan = open_fastmri(path)
            stat = path.stat()
            for index in range(scan.slices):
                key = hashlib.sha256(f"{path.name}/{stat.st_size}/{stat.st_mtime_ns}/{index}/{settings}".encode())
                file = cache / f"{key.hexdigest()[:32]}.safetensors"
                if not file.exists():
                    _prepare(scan, index, protocol, file)
                    made += 1
                files.append(file)
                shapes.append((scan.shape[2], scan.shape[3]))
            report(f"prepared scan {number + 1} of {len(paths)}: {len(files)} slices, {made} of them new")
        fingerprint = hashlib.sha256("".join(f.stem for f in files).encode()).hexdigest()
        return cls(CachedSlices(files), shapes, fingerprint)

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

    def batches(self, step: int, batch: int, seed: int) -> Iterator[MeasuredBatch | CleanBatch]:
        """Batches from `step` on, without end."""
        per_epoch = len(self.epoch(0, batch, seed))
        while True:
            number, offset = divmod(step, per_epoch)
            for indices in self.epoch(number, batch, seed)[offset:]:
                yield self.collate(indices)
                step += 1

    def collate(self, indices: list[int]) -> MeasuredBatch | CleanBatch:
        """One batch. Fewer coils are padded with zero maps and zero data, which changes nothing."""
        chosen = [self.items[i] for i in indices]
        if isinstance(chosen[0], Tensor):
            return CleanBatch(torch.stack(chosen))  # type: ignore[arg-type]
        items: list[Item] = chosen  # type: ignore[assignment]
        coils = max(len(i.kspace) for i in items)

        def stack(arrays: list[Tensor]) -> Tensor:
            return torch.stack([functional.pad(a, (0, 0, 0, 0, 0, coils - len(a))) for a in arrays])

        return MeasuredBatch(
            kspace=stack([i.kspace for i in items]),
            mask=torch.stack([i.mask for i in items])[:, None, None],
            maps=stack([i.maps for i in items]),
            weights=torch.stack([i.weights for i in items])[:, None, None],
            sigma0=torch.tensor([i.sigma0 for i in items], device=items[0].kspace.device),
        )
