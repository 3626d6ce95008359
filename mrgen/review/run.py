"""A whole scan through one recipe: prepare each slice, reconstruct it, keep it, and gather the `Result`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop
from mrgen.physics.masks import achieved_acceleration
from mrgen.posterior.batch import Batch
from mrgen.posterior.reconstruct import Reconstruction, reconstruct
from mrgen.prior.distributed import ALONE, Processes
from mrgen.prior.files import Prior
from mrgen.review.account import describe, other_map_sets, regularised
from mrgen.review.calibration import Calibration
from mrgen.review.card import prior_card
from mrgen.review.metrics import Array
from mrgen.review.output import Result
from mrgen.review.parts import Part, Parts
from mrgen.review.uncertainty import quantiles
from mrgen.scans.geometry import Geometry
from mrgen.scans.prepare import prepare
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Recipe

SHOWN = 16  # slices in the middle whose samples are kept for the report, where not all are asked for
QUANTILES = 0.9  # share of the samples between the two that are kept, where there are enough of them


@dataclass(frozen=True)
class Run:
    """Everything that a reconstruction depends on; `prior` is None for recipes without one."""

    scan: Scan
    slices: range
    undersample: Tensor | None  # (kx,) or (ky, kx), applied retrospectively to a fully sampled scan
    recipe_name: str
    recipe: Recipe
    prior: Prior | None
    seed: int
    device: str
    calibration: Scan | None = None  # of the same coils, for scans without a fully sampled centre
    coils: int | None = None  # virtual coils to compress the scan's to
    map_sets: int | None = None  # sets of coil maps; None: two where a slice's calibration data show that it wraps
    save_samples: bool = False
    intervals: Calibration | None = None  # of the spread
    check: bool = False  # hold the spread against withheld lines
    batch: Batch | None = None  # shared by runs, so that the next one knows how much fits into memory
    shown: int | None = None  # slices in the middle whose samples are kept in any case; None: SHOWN

    @property
    def samples(self) -> int | None:
        return self.recipe.samples if self.recipe.draws else None

    @property
    def sampled(self) -> range:
        """The slices, by their place among `slices`, whose samples are kept."""
        count = len(self.slices) if self.recipe.draws else 0
        shown = SHOWN if self.shown is None else self.shown
        spare = 0 if self.save_samples else max(count - shown, 0)
        return range(spare // 2, count - (spare + 1) // 2)

    @property
    def geometry(self) -> Geometry:
        """Of the slices to reconstruct."""
        whole = self.scan.geometry
        if whole.positions is None:
            return whole
        return replace(whole, positions=whole.positions[self.slices.start : self.slices.stop])

    def interval(self) -> dict[str, Any] | None:
        """Coverage and factor of the calibrated interval. Raises MrgenError where the calibration does not apply."""
        if self.intervals is None:
            return None
        self.intervals.refuse_other(self.recipe, self.prior.sha256 if self.prior else None)
        mask = self.scan.mask if self.undersample is None else self.undersample
        assert mask is not None
        factor = self.intervals.factor(achieved_acceleration(mask, sum(self.scan.padding)))
        return {"coverage": self.intervals.coverage, "factor": factor, "sha256": self.intervals.sha256}

    def identity(self) -> dict[str, Any]:
        """All that decides on the result, ready for JSON: two runs of one identity give the same result."""
        mask = "as measured"
        if self.undersample is not None:
            mask = hashlib.sha256(self.undersample.numpy(force=True).tobytes()).hexdigest()
        return {
            "version": __version__,
            "scan": _file_identity(self.scan),
            "slices": [self.slices.start, self.slices.stop],
            "mask": mask,
            "calibration scan": None if self.calibration is None else _file_identity(self.calibration),
            "number of coils": self.coils,
            "number of sets of coil maps": self.map_sets,
            "recipe": {"name": self.recipe_name, **self.recipe.model_dump(mode="json")},
            "prior": None if self.prior is None else self.prior.sha256,
            "seed": self.seed,
            "device": self.device.partition(":")[0],
            "choice of --save-samples": self.save_samples,
            "choice of --check": self.check,
            "calibration of the spread": None if self.intervals is None else self.intervals.sha256,
        }


def _file_identity(scan: Scan) -> dict[str, Any]:
    stat = Path(scan.path).stat()
    return {"name": Path(scan.path).name, "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def digest(identity: dict[str, Any]) -> str:
    """SHA-256 of an identity: what a report says of it, as the name and time of a file may tell too much."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def slice_generator(seed: int, index: int) -> torch.Generator:
    """The source of a slice's samples, seeded by its own number, so that A:B gives what the whole scan gives."""
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


def reconstruct_slices(
    run: Run,
    parts: Parts,
    say: Callable[[str], None],
    progress: Callable[[float, str], None],
    processes: Processes = ALONE,
) -> int:
    """Reconstruct those slices of `run` that are not among `parts` yet, and give the number of those that are.

    Several `processes`, which share the slices, all return when the last one is done. `say` is told about mask, noise
    and coils. Each slice is kept in `parts` as soon as it is finished, and nothing of it in memory. `progress` hears
    the fraction done and where that is, such as "slice 2 of 5, step 13 of 160". Raises MrgenError for slices that
    cannot be used, and where memory is short.
    """
    run.interval()  # which may be refused, so before hours of computing
    left = [index for index in run.slices if index not in parts]
    processes.wait()  # before all have looked, none writes
    resumed = len(run.slices) - len(left)
    batch = run.batch or Batch.on(run.device, say)
    if resumed and processes.rank == 0:
        earlier = parts.read(min(set(run.slices) - set(left)))
        describe(run, earlier.images["mask"], earlier.facts, say)
        say(f"resumed {resumed} of {len(run.slices)} slices were finished before an interruption")
    for number, index in processes.share([*enumerate(left, start=resumed)]):
        place = f"slice {number + 1} of {len(run.slices)}"
        progress(number / len(run.slices), place)

        def step(done: int, total: int, number: int = number, place: str = place) -> None:
            progress((number + done / total) / len(run.slices), f"{place}, step {done} of {total}")

        begun = time.perf_counter()
        with _naming(index):
            slice_ = prepare(
                run.scan,
                index,
                undersample=run.undersample,
                calibration=run.calibration,
                coils=run.coils,
                map_sets=run.map_sets,
                keep_reference=True,
                device=run.device,
            )
            if number == 0:
                describe(run, slice_.mask, _facts(slice_), say)
            result = reconstruct(
                slice_, run.prior, run.recipe, slice_generator(run.seed, index), step, batch, run.check
            )
        kept = _images(slice_, result, run.slices.index(index) in run.sampled)
        images = {name: _scanner_units(x, slice_, run.scan.crop) for name, x in kept.items()}
        images["mask"] = slice_.mask.cpu()
        seconds = round(time.perf_counter() - begun, 2)
        facts = {**_facts(slice_), "regularised": result.facts, "checks": result.checks, "seconds": seconds}
        parts.write(index, Part(images, facts))
        if result.facts:
            say(f"lambda  {regularised(result.facts)}, slice {index}")
        progress((number + 1) / len(run.slices), place)
    processes.wait()
    return resumed


@contextmanager
def _naming(index: int) -> Iterator[None]:
    """What makes a slice impossible as an error that names it."""
    try:
        yield
    except MrgenError as error:
        raise MrgenError(f"slice {index}: {error}") from error
    except torch.OutOfMemoryError as error:
        raise MrgenError(
            f"slice {index}: the device has not enough free memory: lower --samples or --processes, compress "
            "the coils with --coils, or take a larger device, or --device cpu"
        ) from error


def gather(run: Run, parts: Parts, resumed: int, say: Callable[[str], None]) -> Result:
    """The result of all slices of a run, read from `parts`, where `resumed` of them were before it began.

    Its images are all that is in memory of a scan at once.
    """
    volumes: dict[str, Array] = {}
    facts: list[dict[str, Any]] = []
    for number, index in enumerate(run.slices):
        part = parts.read(index)
        facts.append(part.facts)
        mask = part.images.pop("mask").numpy()
        part.images.pop("samples", None)
        for name, image in part.images.items():
            volume = volumes.setdefault(name, np.empty((len(run.slices), *image.shape), np.float32))
            volume[number] = image.numpy()
    if note := other_map_sets(run, (fact["map_sets"] for fact in facts)):
        say(note)
    std, interval = volumes.pop("std", None), run.interval()
    return Result(
        std=std,
        interval=None if std is None or interval is None else interval["factor"] * std,
        calibration=interval,
        null_space=volumes.pop("null_space", None),
        quantiles={name: volumes.pop(name) for name in [*volumes] if name.startswith("quantile")},
        checks=[{"slice": i, **fact["checks"]} for i, fact in zip(run.slices, facts, strict=True) if fact["checks"]],
        reference=volumes.pop("reference", None),
        rss=volumes.pop("rss", None),
        images=volumes,
        mask=mask,
        zero_filled=sum(run.scan.padding),
        first_slice=run.slices.start,
        sigma0=[fact["sigma0"] for fact in facts],
        noise_from=facts[-1]["noise_from"],
        coils=run.scan.shape[1],
        virtual_coils=run.coils,
        coil_energy=[fact["coil_energy"] for fact in facts if fact["coil_energy"] is not None],
        map_sets=[fact["map_sets"] for fact in facts],
        second_share=[fact["second_share"] for fact in facts],
        facts=[
            {"slice": index, **fact["regularised"]}
            for index, fact in zip(run.slices, facts, strict=True)
            if fact["regularised"]
        ],
        seed=run.seed,
        samples=run.samples,
        prior_sha256=run.prior.sha256 if run.prior else None,
        recipe={"name": run.recipe_name, **run.recipe.model_dump()},
        header=run.scan.header,
        seconds=[fact["seconds"] for fact in facts],
        resumed=resumed,
        identity=digest(run.identity()),
        geometry=run.geometry,
        scan_slices=run.scan.slices,
        prior=prior_card(run.prior.metadata) if run.prior else {},
        sampled=run.sampled,
        read_samples=lambda i: parts.read(run.slices[i]).images["samples"].numpy(),
        all_samples=run.save_samples,
    )


def _facts(slice_: Slice) -> dict[str, Any]:
    return {
        "sigma0": slice_.sigma0,
        "noise_from": slice_.noise_from,
        "coil_energy": slice_.coil_energy,
        "map_sets": slice_.sets,
        "second_share": slice_.second_share,
    }


def _images(slice_: Slice, result: Reconstruction, samples: bool) -> dict[str, Tensor]:
    """What is kept of a slice, (y, x) by name in scaled units; of the images the reconstruction comes last."""
    images: dict[str, Tensor | None] = {"zero_filled": result.zero_filled}
    images |= {name.replace("-", "_"): image for name, image in result.baselines.items()}
    images |= {
        "reconstruction": result.mean,
        "std": result.std,
        "null_space": result.null_space,
        "reference": slice_.reference,
        "rss": slice_.rss,
    }
    images["samples"] = result.samples if samples else None
    found = None if result.samples is None else quantiles(result.samples.numpy(force=True), QUANTILES)
    if found is not None:
        images |= {f"quantile_{n}": torch.from_numpy(image) for n, image in zip(("05", "95"), found, strict=True)}
    return {name: image for name, image in images.items() if image is not None}


def _scanner_units(image: Tensor, slice_: Slice, crop: tuple[int, int] | None) -> Tensor:
    """The image (..., y, x) in the scanner's units, cropped to the matrix of the scanner's reconstruction."""
    scaled = image.cpu() * slice_.scale
    return (scaled if crop is None else centre_crop(scaled, crop)).float()
