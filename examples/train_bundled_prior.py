r"""Simulate undersampled head scans and train the prior that ships with mrgen, without a clean image.

    python examples/train_bundled_prior.py simulate --images brain_t1_slices.npz \
        --volume head_t1_volume.npz --work runs/head --scans 2400
    python examples/train_bundled_prior.py train --work runs/head -o runs/head/gsure.safetensors
    python examples/train_bundled_prior.py em --work runs/head --start runs/head/gsure.safetensors --rounds 3 \
        --set em.quietest=0.5 training.sigma_min=0.003 -o runs/head/em.safetensors
    python examples/train_bundled_prior.py ship --work runs/head --prior runs/head/em.safetensors \
        -o mrgen/prior/head.safetensors

`brain_t1_slices.npz` holds `slices` (n, y, x) uint8 and `subject` (n,): axial T1 slices of the Pediatric Template of
Brain Perfusion (Avants et al., Scientific Data 2015, doi 10.1038/sdata.2015.3). Subjects from 53 on are kept for
validation. `head_t1_volume.npz` holds `vol` (z, y, x), one adult T1 head. The clean images are written to a folder of
their own, which only the supervised oracle reads.
"""

from __future__ import annotations

import argparse
import math
import os
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrgen.physics.fourier import ifft2c
from mrgen.physics.masks import sampling_mask
from mrgen.physics.noise import whiten, whitening_matrix
from mrgen.posterior.em import network_steps
from mrgen.prior import em
from mrgen.prior.cache import CachedScan, Entry, write_scan
from mrgen.prior.data import Item, TrainingSet, item_of
from mrgen.prior.em import Case, Run
from mrgen.prior.files import read_safetensors, save_prior, write_safetensors
from mrgen.prior.mstep import stages_of
from mrgen.prior.train import train
from mrgen.scans.heads import vary_head
from mrgen.scans.prepare import noise_covariance, prepare_slice
from mrgen.scans.scan import Slice
from mrgen.scans.simulate import simulate_kspace, uniform
from mrgen.settings import Protocol, Sampling, load

FIRST_VALIDATION_SUBJECT = 53
# Field of view in pixels of the source image, and the matrices to draw from, with equal probability.
TEMPLATE = (240, 208), ((240, 208), (208, 176), (176, 144), (144, 128))
VOLUME = (416, 360), ((288, 248), (240, 208), (240, 208), (208, 176), (176, 144))
SQUARE = (416, 416), ((256, 256), (224, 224), (192, 192))
SIGMA = (0.004, 0.04)  # noise std over the 99th percentile of the image, log-uniform
COILS = (6, 17)


Field = tuple[tuple[int, int], tuple[tuple[int, int], ...]]
Head = tuple[NDArray[np.uint8], Field]


def template_heads(images: Path, validation: bool) -> list[Head]:
    """Axial slices of the template subjects; the first and last of each ten, at the slab's edges, are no anatomy."""
    with np.load(images) as data:
        position = np.arange(len(data["slices"])) % 10
        keep = (position > 0) & (position < 9) & ((data["subject"] >= FIRST_VALIDATION_SUBJECT) == validation)
        return [(image, TEMPLATE) for image in data["slices"][keep]]


def volume_heads(volume: Path) -> list[list[Head]]:
    """Axial, coronal and sagittal slices of one adult head, axes (superior, anterior, left); the neck fades out."""
    with np.load(volume) as data:
        voxels = data["vol"].astype(np.float32)
    voxels *= 220 / np.percentile(voxels, 99.95)
    voxels *= np.clip(np.arange(len(voxels)) / 60, 0, 1)[:, None, None] ** 2
    heads = voxels.clip(0, 255).round().astype(np.uint8)
    axial, coronal, sagittal = heads[150:346:2], heads[::-1, 110:370:2], heads[::-1, :, 60:214:2]
    planes = (axial, VOLUME), (coronal.transpose(1, 0, 2), VOLUME), (sagittal.transpose(2, 0, 1), SQUARE)
    return [[(image, field) for image in plane if (image > 20).mean() > 0.05] for plane, field in planes]


def simulate_scan(head: Head, generator: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    """Noisy and noise-free raw k-space (coil, ky, kx) of one varied head."""
    pixels, (canvas, matrices) = head
    image = torch.tensor(np.ascontiguousarray(pixels), device=device).float() / 255
    if uniform(0, 1, generator) < 0.5:
        image = image.flip(-1)
    matrix = matrices[int(torch.randint(len(matrices), (), generator=generator))]
    varied = vary_head(image, canvas, matrix, generator)
    if uniform(0, 1, generator) < 0.5:
        varied = varied.mT
    sigma = math.exp(uniform(math.log(SIGMA[0]), math.log(SIGMA[1]), generator))
    coils = int(torch.randint(COILS[0], COILS[1], (), generator=generator))
    noisy, clean, _ = simulate_kspace(varied, coils, sigma, generator)
    return noisy, clean


def coil_images(noisy: Tensor, clean: Tensor) -> Tensor:
    """Noise-free images (coil, y, x), whitened with the noise covariance of the noisy k-space (coil, ky, kx)."""
    return ifft2c(whiten(clean, whitening_matrix(noise_covariance(noisy, None)[0])))


def prepare(noisy: Tensor, clean: Tensor, mask: Tensor) -> tuple[Slice, Tensor]:
    """The undersampled slice, and the clean complex image (y, x) that its maps and scale make."""
    slice_ = prepare_slice(noisy, None, undersample=mask, keep_reference=True)
    return slice_, (slice_.maps.conj() * coil_images(noisy, clean)).sum(0) * slice_.sigma0


def training_sources(images: Path, volume: Path) -> list[list[Head]]:
    """The heads to learn from, in groups that are drawn from with equal probability."""
    template = template_heads(images, validation=False)
    return [template, template, *volume_heads(volume)]


def simulated_slice(
    head: Head, sampling: Sampling, number: int, generator: torch.Generator, device: str
) -> tuple[Slice, Tensor, float]:
    """`prepare` of one varied head, undersampled by the mask of scan `number`, and R."""
    noisy, clean = simulate_scan(head, generator, device)
    acceleration = sampling.acceleration[int(torch.randint(len(sampling.acceleration), (), generator=generator))]
    rng = np.random.RandomState(number)
    mask = sampling_mask(sampling.pattern, noisy.shape[-1], acceleration, sampling.fraction(acceleration), rng)
    return *prepare(noisy, clean, mask.to(device)), acceleration


def simulate(args: argparse.Namespace) -> None:
    sampling = load(Protocol, args.protocol).sampling
    sources = training_sources(args.images, args.volume)
    shard, shards = (int(n) for n in args.shard.split("/"))
    for number in range(shard, args.scans, shards):
        generator = torch.Generator().manual_seed(7_000_000 + number)
        heads = sources[number % len(sources)]
        head = heads[int(torch.randint(len(heads), (), generator=generator))]
        slice_, target, acceleration = simulated_slice(head, sampling, number, generator, args.device)
        entry, source = Entry(0, acceleration, slice_), {"simulated": number, "left_out": {}}
        write_scan(args.work / "measured" / f"{number:05d}.h5", [entry], source)
        write_safetensors(args.work / "clean" / f"{number:05d}.safetensors", {"image": target}, {})
        if number % 100 == shard:
            print(
                f"simulated {number} of {args.scans}: sigma0 {slice_.sigma0:.4f}, {tuple(slice_.kspace.shape)}",
                flush=True,
            )


def measured_scans(work: Path) -> list[CachedScan]:
    """Every measured scan, each of one slice."""
    return [CachedScan.open(file) for file in sorted((work / "measured").glob("*.h5"))]


def measured_set(work: Path, sampling: Sampling, device: str) -> TrainingSet:
    """Every measured slice, in memory on `device`."""

    def fetch(scan: CachedScan) -> Item:
        return item_of(scan.read(0).to(device), sampling, scan.acceleration[0])

    with ThreadPoolExecutor(8) as pool:
        items = list(pool.map(fetch, measured_scans(work)))
    return TrainingSet(items, [i.shape for i in items], f"simulated-{len(items)}")


def image_set(folder: Path, device: str) -> TrainingSet:
    """Every image of a folder, for the oracle."""
    images = [read_safetensors(f)[0]["image"].to(device) for f in sorted(folder.glob("*.safetensors"))]
    return TrainingSet.from_images(images, f"{folder.name}-{len(images)}")


def protocol_with(protocol: str, changes: Iterable[str]) -> Protocol:
    """The protocol that is named, with `changes` of the form PART.NAME=VALUE."""
    settings = load(Protocol, protocol).model_dump()
    for path, equals, value in (text.partition("=") for text in changes):
        part, _, name = path.partition(".")
        if not equals or name not in settings.get(part, {}):
            raise SystemExit(f"error: {path}: expected PART.NAME=VALUE of a protocol, such as em.relaxation=1.5")
        try:
            settings[part][name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:  # a word needs no quotes
            settings[part][name] = value
    try:
        return Protocol(**settings)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def learn(args: argparse.Namespace) -> None:
    protocol = protocol_with(args.protocol, args.set)
    supervised = protocol.training.objective == "supervised"
    data = (
        image_set(args.work / "clean", args.device)
        if supervised
        else measured_set(args.work, protocol.sampling, args.device)
    )
    start = None
    if args.start:
        start = {k: v.float() for k, v in read_safetensors(args.start)[0].items()}
    train(
        data,
        protocol,
        args.out,
        device=args.device,
        seconds=args.seconds,
        start=start,
        report=say,
    )


def expectation_maximisation(args: argparse.Namespace) -> None:
    """Rounds of EM on the measured scans, in a folder of --work named after the prior to write."""
    protocol = protocol_with(args.protocol, args.set)
    steps, settings = network_steps(protocol, args.device, say, args.diffem)
    scans = measured_scans(args.work)
    noise = [(scan.mask[0].numel() / float(scan.mask[0].sum())) ** 0.5 * scan.sigma0[0] for scan in scans]
    scans = [scans[n] for n in em.quietest(noise, protocol.em.quietest)]
    scans.sort(key=lambda scan: scan.shape[1:])  # those of one matrix are sampled together
    cases = [Case(scan.file.stem, scan.mask[0], partial(scan.read, 0)) for scan in scans]
    run = Run(
        cases,
        args.start,
        args.work / f"rounds-{args.out.stem}",
        protocol.em,
        settings,
        device=args.device,
        together="WORLD_SIZE" in os.environ,
    )
    em.expectation_maximisation(run, steps, args.rounds, args.out, say)


def say(text: str) -> None:
    print(text, flush=True)


def ship(args: argparse.Namespace) -> None:
    """Write the prior with the story of how it was trained in its metadata."""
    weights, metadata = read_safetensors(args.prior)
    changes = {
        "name": "head",
        "trained_on": "simulated undersampled noisy multi-coil head scans, R = 2 to 4, of subjects below 53 of the "
        "Pediatric Template of Brain Perfusion (doi 10.1038/sdata.2015.3) and of an adult head; no clean image was "
        "used in training",
        "stages": stages_of(metadata),
    }
    save_prior(args.out, weights, {**metadata, **changes})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("simulate", "train", "em", "ship"))
    parser.add_argument("--work", type=Path, required=True, help="folder for scans, samples and checkpoints")
    parser.add_argument("--images", type=Path, help="brain_t1_slices.npz")
    parser.add_argument("--volume", type=Path, help="head_t1_volume.npz")
    parser.add_argument("--scans", type=int, default=2400)
    parser.add_argument("--shard", default="0/1", help="k/n: this process does every n-th scan from k")
    parser.add_argument("--protocol", default="head")
    parser.add_argument("--set", nargs="+", default=[], metavar="PART.NAME=VALUE", help="what differs from it")
    parser.add_argument("--start", type=Path, help="prior to start from")
    parser.add_argument("--rounds", type=int, default=3, help="of EM, at most")
    parser.add_argument("--diffem", action="store_true", help="conditional denoisers in the rounds of EM")
    parser.add_argument("--prior", type=Path, help="prior to ship")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after this time, to be resumed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()
    {"simulate": simulate, "train": learn, "em": expectation_maximisation, "ship": ship}[args.stage](args)


if __name__ == "__main__":
    main()
