"""The scans of the experiment: simulated heads, prepared as measured ones are, each in a file of its own.

    scans/<set>/00000.h5              one undersampled slice of a training set
    scans/<set>/clean/00000.safetensors   its clean image, which the supervised oracle alone reads
    scans/test/00.h5                  one slice at each R of the evaluation
    scans/test/00.safetensors         `reference`: RSS of the noise-free whitened coil images; person in the metadata

Scan n of every training set is the same head with the same coils and noise but for what the set's name says.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from train_bundled_prior import FIRST_VALIDATION_SUBJECT, TEMPLATE, VOLUME, coil_images, volume_heads

from mrgen.physics.masks import sampling_mask
from mrgen.prior.cache import CachedScan, Entry, write_scan
from mrgen.prior.data import TrainingSet, item_of
from mrgen.prior.files import read_safetensors, write_safetensors
from mrgen.scans.heads import vary_head
from mrgen.scans.prepare import default_center_fraction, noise_covariance, prepare_slice
from mrgen.scans.scan import Slice
from mrgen.scans.simulate import simulate_kspace
from mrgen.settings import Sampling

SIGMA = (0.005, 0.02)  # noise std over the 99th percentile of the image; four scans have the one, four the other
COILS = (8, 16)
ADULT = 100  # the person of the head volume, whom the template does not number


@dataclass(frozen=True)
class Scans:
    """How a training set is simulated."""

    name: str
    noise: float = 1.0  # times SIGMA
    acceleration: float = 4.0
    whitened: bool = True  # else every coil keeps its own noise, correlated with the others'
    one_mask: bool = False  # the same lines in every scan


@dataclass(frozen=True)
class Arm:
    """What a prior learns from, and what it is told about it."""

    name: str
    scans: Scans
    step: int = 1  # it learns from every step-th scan
    told: float = 1.0  # sigma0 that training is told, over the true one

    @property
    def sampling(self) -> Sampling:
        r = self.scans.acceleration
        return Sampling(acceleration=(r,), center_fraction=default_center_fraction(r))


@dataclass(frozen=True)
class Head:
    """A magnitude (y, x), the field of view in its pixels, and whose it is."""

    pixels: NDArray[np.uint8]
    canvas: tuple[int, int]
    person: int


@cache
def heads(images: Path, volume: Path | None, test: bool) -> tuple[Head, ...]:
    """Axial slices of the people to train on, one of them the adult of `volume`, or of those to test on.

    The first and last of the ten slices of a template subject, at the slab's edges, are no anatomy.
    """
    with np.load(images) as data:
        position = np.arange(len(data["slices"])) % 10
        keep = (position > 0) & (position < 9) & ((data["subject"] >= FIRST_VALIDATION_SUBJECT) == test)
        people = zip(data["slices"][keep], data["subject"][keep].tolist(), strict=True)
        found = [Head(pixels, TEMPLATE[0], person) for pixels, person in people]
    if volume is not None and not test:
        found += [Head(pixels, VOLUME[0], ADULT) for pixels, _ in volume_heads(volume)[0][::6]]
    return tuple(found)


def _raw(
    head: Head, number: int, noise: float, matrix: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noisy and noise-free k-space (coil, ky, kx) of one varied head."""
    image = torch.tensor(np.ascontiguousarray(head.pixels)).float() / 255
    image = vary_head(image, head.canvas, matrix, generator)
    coils = int(torch.randint(COILS[0], COILS[1] + 1, (), generator=generator))
    noisy, clean, _ = simulate_kspace(image, coils, noise * SIGMA[number // 4 % 2], generator)
    return noisy, clean


def simulate_training(
    scans: Scans, folder: Path, number: int, heads: tuple[Head, ...], matrix: tuple[int, int]
) -> None:
    """Write scan `number` of a training set."""
    generator = torch.Generator().manual_seed(7_000_000 + number)
    noisy, clean = _raw(heads[number % len(heads)], number, scans.noise, matrix, generator)
    rng = np.random.RandomState(0 if scans.one_mask else number)
    r = scans.acceleration
    mask = sampling_mask("equispaced-any-offset", matrix[1], r, default_center_fraction(r), rng)
    noise = None
    if not scans.whitened:  # a noise scan that says that the coils are alike and independent
        power = noise_covariance(noisy, None)[0].diagonal().real.mean()
        noise = power.sqrt() * torch.randn(len(noisy), 4096, dtype=torch.complex64, generator=generator)
    slice_ = prepare_slice(noisy, None, undersample=mask, noise=noise, keep_reference=False)
    if scans.whitened:
        target = (slice_.maps.conj() * coil_images(noisy, clean)).sum(0) * slice_.sigma0
        write_safetensors(folder / "clean" / f"{number:05d}.safetensors", {"image": target}, {})
    write_scan(folder / f"{number:05d}.h5", [Entry(0, r, slice_)], {"simulated": number, "left_out": {}})


def simulate_test(folder: Path, number: int, head: Head, seed: int, rs: tuple[float, ...], m: tuple[int, int]) -> None:
    """Write test scan `number`: one slice undersampled with each R of `rs` by fastMRI's equispaced masks."""
    noisy, clean = _raw(head, number, 1.0, m, torch.Generator().manual_seed(seed + number))
    entries = []
    for r in rs:
        rng = np.random.RandomState([seed % 2**31, number])
        mask = sampling_mask("equispaced", m[1], r, default_center_fraction(r), rng)
        entries.append(Entry(0, r, prepare_slice(noisy, None, undersample=mask, keep_reference=False)))
    reference = coil_images(noisy, clean).abs().square().sum(0).sqrt()
    write_safetensors(folder / f"{number:02d}.safetensors", {"reference": reference}, {"person": head.person})
    write_scan(folder / f"{number:02d}.h5", entries, {"simulated": number, "left_out": {}})


def read(scan: CachedScan, arm: Arm) -> Slice:
    """A training slice as the arm's trainers are told it is."""
    slice_ = scan.read(0)
    return replace(slice_, sigma0=arm.told * slice_.sigma0)


def training_scans(folder: Path, arm: Arm) -> list[CachedScan]:
    return [CachedScan.open(file) for file in sorted(folder.glob("*.h5"))[:: arm.step]]


def measured_set(folder: Path, arm: Arm, device: str) -> TrainingSet:
    """Every measured slice of an arm, in memory on `device`."""
    with ThreadPoolExecutor(8) as pool:
        slices = pool.map(lambda scan: read(scan, arm).to(device), training_scans(folder, arm))
        items = [item_of(slice_, arm.sampling, arm.scans.acceleration) for slice_ in slices]
    return TrainingSet(items, [item.shape for item in items], f"{arm.name}-{len(items)}")


def clean_set(folder: Path, arm: Arm, device: str) -> TrainingSet:
    """The clean images of the same slices, for the oracle."""
    files = sorted((folder / "clean").glob("*.safetensors"))[:: arm.step]
    images = [read_safetensors(file)[0]["image"].to(device) for file in files]
    return TrainingSet.from_images(images, f"{arm.name}-clean-{len(images)}")
