"""Slices prepared per second, and whether loading keeps up with training, for raw data of 640 x 368 with 15 coils.

    python examples/benchmark_preparation.py -o runs/benchmark --sigpy            # on the CPU, minutes
    python examples/benchmark_preparation.py -o runs/benchmark --device cuda      # on a GPU, below a minute

One run measures everything side by side. To prepare a slice is to crop its oversampled readout to 320 rows in image
space, find its noise covariance, whiten it, undersample it (R = 4) and estimate coil maps. With --sigpy a slice is
prepared on the CPU by mrgen and by sigpy, which is given the covariance, whitens and estimates maps. Then batches of 16
prepared slices are loaded from the cache, with its file in memory and dropped from memory before (which some file
systems ignore). On a GPU, a prior is trained with batches from the cache and with batches that lie on the GPU already,
and events on the GPU tell for how long it stood still before it had a batch.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sigpy.mri import whiten
from sigpy.mri.app import EspiritCalib

from mrgen.physics.fourier import centre_pad, fft2c, grid
from mrgen.prior.data import Item, Share, StoredItem, TrainingSet, item_of
from mrgen.prior.objectives import CleanBatch, MeasuredBatch
from mrgen.prior.train import train
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import noise_covariance, prepare_slice, undersampling_mask
from mrgen.scans.write import Layout, write_fastmri
from mrgen.settings import Network, Protocol, Sampling, Training

COILS, MATRIX, OVERSAMPLING, SIGMA, BATCH, STEPS = 15, (320, 368), 2, 0.01, 16, 60
PROTOCOL = Protocol(
    description="benchmark",
    anatomy="ellipse",
    sampling=Sampling(acceleration=(4.0,), center_fraction=0.08),
    network=Network(widths=(64, 96, 128, 192)),
    training=Training(basis="sense", batch=BATCH),
)


def write_raw(path: Path, slices: int, seed: int = 0, coils: int = COILS, matrix: tuple[int, int] = MATRIX) -> None:
    """An ellipse seen by smooth coils; every slice has its own noise, and every seed its own ellipse."""
    generator = torch.Generator().manual_seed(seed)
    r_y, r_x = 0.5 + 0.2 * torch.rand(2, generator=generator)
    y, x = grid(matrix)
    angles = (2 * torch.pi * torch.arange(coils) / coils)[:, None, None]
    near = torch.exp(-((y - angles.sin()) ** 2) - (x - angles.cos()) ** 2 + 1j * (y + x * angles.cos()))
    image = near * ((y / r_y) ** 2 + (x / r_x) ** 2 < 1)
    clean = fft2c(centre_pad(image, (OVERSAMPLING * matrix[0], matrix[1])))
    noisy = (clean + SIGMA * torch.randn(clean.shape, dtype=clean.dtype, generator=generator) for _ in range(slices))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_fastmri(path, noisy, Layout(slices, coils, matrix, OVERSAMPLING, (220, 253), 5), None, "ellipse")


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def preparation(scan_file: Path, devices: Sequence[str], sigpy: bool) -> None:
    scan = open_scan(scan_file)
    raw, mask = scan.read_slice(0), undersampling_mask(scan, PROTOCOL.sampling, 4.0, 0, 0)

    def ours(device: str) -> None:
        raw = scan.read_slice(0)
        float(prepare_slice(raw.to(device), None, undersample=mask, keep_reference=False).maps[0, 0, 0].abs())  # waits

    def theirs() -> None:
        whitened = whiten(raw.numpy(), covariance)
        EspiritCalib(whitened * mask.numpy(), calib_width=24, show_pbar=False).run()

    for device in devices:
        times = [seconds(lambda device=device: ours(device)) for _ in range(2 if device == "cpu" else 6)]  # type: ignore[misc]
        print(f"prepare, mrgen on {device}: {1 / median(times[1:]):.3f} slices/s")
    if sigpy:
        covariance = noise_covariance(raw, None)[0].numpy()
        print(f"prepare, sigpy on cpu: {1 / seconds(theirs):.3f} slices/s, {torch.get_num_threads()} threads for both")


def mark() -> list[torch.cuda.Event]:
    """Where a GPU is now in its work; nothing on a CPU."""
    events = [torch.cuda.Event(enable_timing=True)] if torch.cuda.is_available() else []  # type: ignore[no-untyped-call]
    for event in events:
        event.record()
    return events


@dataclass(frozen=True)
class Watched(TrainingSet):
    """A set that marks on a GPU when a batch was there, when the work with it was done, when the next was there, ..."""

    marks: list[torch.cuda.Event] = field(default_factory=list)

    def shares(self, *args: Any, **kwargs: Any) -> Generator[Share]:
        self.marks.clear()
        with closing(super().shares(*args, **kwargs)) as shares:
            for share in shares:
                self.marks.extend(mark())
                yield share
                self.marks.extend(mark())

    def waits(self, batches: int) -> list[float]:
        """Seconds (batch,) for which the GPU had nothing to do before each of the last `batches` was there."""
        between = zip(self.marks[1::2], self.marks[2::2], strict=True)
        return [done.elapsed_time(there) / 1e3 for done, there in between][-batches:]


class FromDisk(Watched):
    """A set of stored items that the system is asked to drop from memory after each use."""

    def collate(self, indices: list[int], *args: Any, **kwargs: Any) -> MeasuredBatch | CleanBatch:
        batch = super().collate(indices, *args, **kwargs)
        for item in (self.items[i] for i in indices):
            assert isinstance(item, StoredItem)
            with item.scan.file.open("rb") as opened:
                for place in (of_part[item.n] for of_part in item.scan.places.values()):
                    os.posix_fadvise(opened.fileno(), place.offset, place.nbytes, os.POSIX_FADV_DONTNEED)
        return batch


def repeated(items: Sequence[Item | StoredItem], name: str, of: type[Watched] = Watched) -> Watched:
    """A set of two batches at least."""
    many = [*items] * -(-2 * BATCH // len(items))
    return of(many, [MATRIX] * len(many), name)


def loading(data: TrainingSet, device: str) -> float:
    """Bytes of files per second, while nothing else is done."""
    shares = data.shares(0, BATCH, 0, device)
    next(shares)
    begun, count = time.perf_counter(), 6
    for share in islice(shares, count):
        assert share.items.kspace.device.type == device  # type: ignore[union-attr]
    each = (time.perf_counter() - begun) / count
    files = {item.scan.file: len(item.scan) for item in data.items if isinstance(item, StoredItem)}
    size = sum(file.stat().st_size for file in files) / sum(files.values()) / 1e6
    print(f"load, {data.fingerprint}, to {device}: {each:.2f} s a batch, {BATCH * size / each:.0f} MB/s of files")
    return 1e6 * BATCH * size / each


def training(data: TrainingSet, out: Path, device: str) -> float:
    """Seconds per step: a long run less a short one, which leaves out start and end, after one that warms up."""

    def run(count: int) -> None:
        train(data, PROTOCOL, out, device=device, resume=False, steps=count, report=lambda _: None)

    _, short, long = (seconds(lambda count=count: run(count)) for count in (2, 2, 2 + STEPS))  # type: ignore[misc]
    return (long - short) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for scan, cache and prior, 2 GB")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sigpy", action="store_true", help="compare with sigpy, on the CPU")
    args = parser.parse_args()
    folder, cache, device = args.out / "scans", args.out / "cache", args.device
    slices = 2 if device == "cpu" else BATCH
    scan_file = folder / "scan.h5"
    write_raw(scan_file, slices)
    preparation(scan_file, sorted({device, "cpu"} if args.sigpy else {device}), args.sigpy)

    begun = time.perf_counter()
    stored = TrainingSet.from_folder(folder, PROTOCOL, cache, device=device).items
    print(f"prepare into the cache, on {device}: {slices / (time.perf_counter() - begun):.3f} slices/s")

    items = [item for item in stored if isinstance(item, StoredItem)]
    warm = repeated(items, "from memory")
    cold = repeated(items, "from the disk", FromDisk)
    for data in (warm, cold):
        loading(data, device)
    if device != "cpu":
        on_gpu = [item_of(i.scan.read(i.n).to(device), i.sampling, 4.0) for i in items]
        on_the_gpu = repeated(on_gpu, "on the GPU")
        training(on_the_gpu, args.out / "prior.safetensors", device)  # fills the allocator's pools
        resident = training(on_the_gpu, args.out / "prior.safetensors", device)
        print(f"train, batches on the GPU: {1 / resident:.2f} steps/s, batch {BATCH}, SENSE basis")
        for data in (warm, cold):
            own = training(data, args.out / "prior.safetensors", device)
            waits = data.waits(STEPS)
            print(f"train, {data.fingerprint}: {1 / own:.2f} steps/s, {resident / own:.1%} of that; the GPU waited "
                  f"{1e3 * median(waits):.2f} ms for a batch, {1e3 * max(waits):.1f} at most, "
                  f"{sum(waits) / (len(waits) * own):.2%} of the time")  # fmt: skip


if __name__ == "__main__":
    main()
