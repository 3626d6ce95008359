"""A whole scan through one recipe: prepare each slice, reconstruct it, and gather the `Result`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop
from mrgen.physics.masks import achieved_acceleration
from mrgen.posterior.reconstruct import Reconstruction, reconstruct
from mrgen.prior.files import Prior
from mrgen.review.output import Result
from mrgen.scans.prepare import prepare
from mrgen.scans.recognise import acceleration_text
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Recipe


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

    @property
    def samples(self) -> int | None:
        return None if self.prior is None else self.recipe.samples


def slice_generator(seed: int, index: int, device: str) -> torch.Generator:
    """The source of a slice's samples, seeded by its own number, so that A:B gives what the whole scan gives."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + index)


def reconstruct_scan(run: Run, say: Callable[[str], None], progress: Callable[[float, str], None]) -> Result:
    """Reconstruct the slices of `run`, telling `say` about mask, noise and virtual coils.

    `progress` hears the fraction done and where that is, such as "slice 2 of 5, step 13 of 160". Raises MrgenError
    for slices that cannot be used.
    """
    begun = time.perf_counter()
    volumes: dict[str, list[NDArray[np.float32]]] = {}
    sigma0: list[float] = []
    coil_energy: list[float] = []
    for number, index in enumerate(run.slices):
        place = f"slice {number + 1} of {len(run.slices)}"
        progress(number / len(run.slices), place)

        def step(done: int, total: int, number: int = number, place: str = place) -> None:
            progress((number + done / total) / len(run.slices), f"{place}, step {done} of {total}")

        generator = slice_generator(run.seed, index, run.device)
        try:
            slice_ = prepare(
                run.scan,
                index,
                undersample=run.undersample,
                calibration=run.calibration,
                coils=run.coils,
                keep_reference=True,
                device=run.device,
            )
            if number == 0:
                _describe(run, slice_, say)
            result = reconstruct(slice_, run.prior, run.recipe, generator, step)
        except MrgenError as error:
            raise MrgenError(f"slice {index}: {error}") from error
        for name, image in _images(slice_, result).items():
            volumes.setdefault(name, []).append(_scanner_units(image, slice_, run.scan.crop))
        sigma0.append(slice_.sigma0)
        if slice_.coil_energy is not None:
            coil_energy.append(slice_.coil_energy)
        progress((number + 1) / len(run.slices), place)

    stacked = {name: np.stack(images) for name, images in volumes.items()}
    return Result(
        std=stacked.pop("std", None),
        reference=stacked.pop("reference", None),
        rss=stacked.pop("rss", None),
        images=stacked,
        mask=slice_.mask.numpy(force=True),
        zero_filled=sum(run.scan.padding),
        first_slice=run.slices.start,
        sigma0=sigma0,
        noise_from=slice_.noise_from,
        coils=run.scan.shape[1],
        virtual_coils=run.coils,
        coil_energy=coil_energy,
        seed=run.seed,
        samples=run.samples,
        prior_sha256=run.prior.sha256 if run.prior else None,
        recipe={"name": run.recipe_name, **run.recipe.model_dump()},
        header=run.scan.header,
        seconds={"reconstruction": round(time.perf_counter() - begun, 2)},
    )


def _describe(run: Run, slice_: Slice, say: Callable[[str], None]) -> None:
    kept, whole = int(slice_.mask.sum()), slice_.mask.numel()
    what = "lines" if slice_.mask.ndim == 1 else "points"
    how = "as measured" if run.undersample is None else "retrospectively"
    measurable = achieved_acceleration(slice_.mask, sum(run.scan.padding))
    text = acceleration_text(measurable, achieved_acceleration(slice_.mask))
    say(f"mask    {kept} of {whole} {what}, {how}, {text}")
    say(f"noise   sigma0 = {slice_.sigma0:.4f} of full scale, from {slice_.noise_from}")
    if slice_.coil_energy is not None:
        energy = f"{100 * slice_.coil_energy:.1f} % of the energy of the calibration data"
        say(f"coils   {run.coils} virtual of {run.scan.shape[1]}, {energy}")


def _images(slice_: Slice, result: Reconstruction) -> dict[str, Tensor]:
    """What is kept of a slice, (y, x) by name in scaled units; of the images the reconstruction comes last."""
    images: dict[str, Tensor | None] = {"zero_filled": result.zero_filled}
    images |= {name.replace("-", "_"): image for name, image in result.baselines.items()}
    images |= {"reconstruction": result.mean, "std": result.std}
    images |= {"reference": slice_.reference, "rss": slice_.rss}
    return {name: image for name, image in images.items() if image is not None}


def _scanner_units(image: Tensor, slice_: Slice, crop: tuple[int, int] | None) -> NDArray[np.float32]:
    """The image (y, x) in the scanner's units, cropped to the matrix of the scanner's reconstruction."""
    scaled = image.cpu() * slice_.scale
    array: NDArray[np.float32] = (scaled if crop is None else centre_crop(scaled, crop)).float().numpy()
    return array
