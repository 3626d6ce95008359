"""What `mrgen recon` leaves in its output folder: <stem>.h5, report.json and figure.png; `export.py` makes the rest.

Every file is written under a temporary name and renamed at the very end, so an interruption leaves either the
old files or the new ones, never half of one. Nothing that identifies a person is written: the scan's header has
been stripped where it was read, and no path or attribute of the input is copied.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.physics.masks import achieved_acceleration
from mrgen.review.figure import NOTICE, save_figure
from mrgen.review.folder import replacing
from mrgen.review.geometry import write_geometry
from mrgen.review.metrics import Array, scores
from mrgen.review.pack import levels, step_of
from mrgen.review.second_look import RULE, second_look, slice_figures
from mrgen.review.uncertainty import std_sampling_error
from mrgen.scans.geometry import Geometry
from mrgen.scans.header import anonymous_header

DEFINITIONS = (
    "Against the coil combination |S^H F^H k| of the fully sampled scan (volume, slices), with two sets of maps the "
    "root of the sum of squares over them as in all images, and against the RSS of its "
    "whitened coil images (volume_rss), whose background is the noise of all coils; peak = maximum of the reference "
    "volume. psnr (dB), ssim and nmse without a fit, as in fastmri.evaluate; psnr_fit, ssim_fit and nmse_fit after the "
    "best scalar fit, of each slice or of the whole volume."
)
CHECKS = (
    "measured_share, null_space_share: of the power of the samples' complex mean, what the sampled lines resolve above "
    "their noise, and the rest, which is the prior's. residual: of the samples, over what the noise alone leaves; 1 if "
    "the model is right. withheld: samples drawn without some lines; ratio of their rms error at these lines to what "
    "their spread and the noise predict, 1 if the spread is right."
)
_OF_THE_RUN = ("seconds", "resumed_slices")  # not in the .h5 file, which the same identity gives to the byte
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Result:
    """A reconstructed scan in the units of its input; images are (slice, y, x), float32."""

    images: dict[str, Array]  # zero_filled, l1_wavelet where computed, and last the reconstruction
    std: Array | None  # std over the samples; None for a recipe without samples
    reference: Array | None  # coil combination of the fully sampled scan
    rss: Array | None  # root of the sum of squares of its whitened coil images
    mask: Array  # (kx,) lines or (ky, kx) points: 1 where sampled
    zero_filled: int  # lines that the scanner zero-filled, so that nobody could sample them
    first_slice: int  # index in the input of the first slice reconstructed
    sigma0: list[float]  # noise std of each slice, in scaled units
    noise_from: str
    coils: int  # of the scan
    virtual_coils: int | None  # that they were compressed to
    coil_energy: list[float]  # share of each slice's calibration data that the virtual coils keep
    facts: list[dict[str, Any]]  # by slice: lambda, how it was chosen, and whether an iteration converged
    seed: int
    samples: int | None
    prior_sha256: str | None
    recipe: dict[str, Any]  # the recipe's name and settings
    header: str | None
    seconds: list[float]  # of each slice
    resumed: int  # slices that an earlier, interrupted run had finished
    identity: str  # SHA-256 of all that decides on the images
    geometry: Geometry  # of the slices reconstructed, as far as the raw data tell
    scan_slices: int  # of the input
    interval: Array | None = None  # half-width of the calibrated interval about the reconstruction
    calibration: dict[str, Any] | None = None  # that interval's coverage and factor, and the calibration's SHA-256
    map_sets: list[int] = field(default_factory=list)  # sets of coil maps of each slice
    second_share: list[float | None] = field(default_factory=list)  # what a second set holds of its calibration image
    null_space: Array | None = None  # what the scan does not measure of the samples' complex mean, magnitude
    quantiles: dict[str, Array] = field(default_factory=dict)  # by name, of enough samples
    checks: list[dict[str, Any]] = field(default_factory=list)  # of each slice: mrgen.posterior.check
    prior: dict[str, str] = field(default_factory=dict)  # what the prior's file says of it, in words
    sampled: range = range(0)  # the slices, by their place in the images, whose samples were kept
    read_samples: Callable[[int], Array] | None = None  # those of the i-th slice, (n, y, x)
    all_samples: bool = False  # they were asked for, of every slice
    geometry_from: str | None = None  # what the images are placed by in the other formats; None: the raw data

    @property
    def antithetic(self) -> bool:
        """Whether samples 0 and 1, 2 and 3, ... are pairs with noise of opposite signs."""
        return bool(self.recipe.get("antithetic"))

    @property
    def acceleration(self) -> float:
        """R as achieved: lines (points) that are not zero-filled over those sampled."""
        return achieved_acceleration(torch.from_numpy(self.mask), self.zero_filled)

    @cached_property
    def volume_scores(self) -> Scores:
        """Figures of every image over the whole volume against the reference, by image name; empty without one."""
        return self._scores(self.reference)

    @cached_property
    def volume_rss_scores(self) -> Scores:
        """The same against the RSS."""
        return self._scores(self.rss)

    def _scores(self, reference: Array | None) -> Scores:
        return {} if reference is None else {name: scores(image, reference) for name, image in self.images.items()}

    @cached_property
    def slice_scores(self) -> list[Scores]:
        """Figures of every image of each reconstructed slice against the reference, with the volume's peak."""
        if self.reference is None:
            return [{} for _ in self.images["reconstruction"]]
        peak = float(self.reference.max())
        return [
            {name: scores(image[i], reference, peak) for name, image in self.images.items()}
            for i, reference in enumerate(self.reference)
        ]


def finished(out_dir: Path, stem: str, identity: str) -> bool:
    """Whether the folder holds the whole result of a run with this identity."""
    if not all((out_dir / name).is_file() for name in (f"{stem}.h5", "figure.png")):
        return False
    try:
        return bool(json.loads((out_dir / "report.json").read_text())["identity"] == identity)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_result(out_dir: Path, stem: str, result: Result) -> list[Path]:
    """Write the three files and return their paths. Raises MrgenError when the disk refuses."""
    paths = [out_dir / f"{stem}.h5", out_dir / "figure.png", out_dir / "report.json"]  # this last, see `finished`
    try:
        with replacing(paths) as (volume, figure, report):
            facts = finite(_report(result))
            _write_volume(volume, result, {name: value for name, value in facts.items() if name not in _OF_THE_RUN})
            report.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
            _write_figure(figure, result)
    except OSError as error:
        raise MrgenError(
            f"could not write the result to {out_dir} ({error}): free space, and the same command goes on"
        ) from None
    return paths


def _write_volume(path: Path, result: Result, report: dict[str, Any]) -> None:
    arrays = {
        **result.images,
        "std": result.std,
        **result.quantiles,
        "interval": result.interval,
        "null_space": result.null_space,
        "reference": result.reference,
        "rss": result.rss,
        "mask": result.mask,
    }
    attributes = {
        "R": result.acceleration,
        "zero_filled_lines": result.zero_filled,
        "seed": result.seed,
        "n_samples": result.samples,
        "prior_sha256": result.prior_sha256,
        "recipe": result.recipe["name"],
        **{f"interval_{key}": value for key, value in (result.calibration or {}).items()},
        "first_slice": result.first_slice,
        "scan_slices": result.scan_slices,
        "mrgen_version": __version__,
        "notice": NOTICE,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = np.asarray(array, dtype=np.float32)
        if result.sampled:
            _write_samples(file, result)
        file["report"] = json.dumps(report, allow_nan=False)
        if result.header is not None:
            file["ismrmrd_header"] = anonymous_header(result.header)
        write_geometry(file, result.geometry)
        for name, value in attributes.items():
            if value is not None:
                file.attrs[name] = value


def _write_samples(file: h5py.File, result: Result) -> None:
    assert result.read_samples is not None
    mean = result.images["reconstruction"]
    shape = (len(result.sampled), result.samples, *mean.shape[1:])
    if result.all_samples:
        volume = file.create_dataset("samples", shape, np.float32, chunks=(1, 1, *shape[2:]))
    else:
        packed = {"chunks": (1, *shape[1:]), "shuffle": True, "compression": "gzip", "compression_opts": 1}
        volume = file.create_dataset("report_samples", shape, np.uint16, **packed)
        volume.attrs.update({"step": step_of(mean), "first": result.sampled.start})
    for place, i in enumerate(result.sampled):  # one slice at a time, as all may not fit into memory
        samples = result.read_samples(i)
        volume[place] = samples if result.all_samples else levels(samples, step_of(mean))


def _report(result: Result) -> dict[str, Any]:
    count = len(result.images["reconstruction"])
    figures = slice_figures(result.images["reconstruction"], result.std, result.checks, result.first_slice)
    report: dict[str, Any] = {
        "notice": NOTICE,
        "mrgen_version": __version__,
        "slices": [result.first_slice, result.first_slice + count],
        "R": result.acceleration,
        "geometry": result.geometry_from or ("raw data" if result.geometry.complete else "nominal"),
        "R_of_all_lines": achieved_acceleration(torch.from_numpy(result.mask)),
        "zero_filled_lines": result.zero_filled,
        "lines" if result.mask.ndim == 1 else "points": {
            "sampled": int(result.mask.sum()),
            "all": int(result.mask.size),
        },
        "noise": {"sigma0_scaled_units": result.sigma0, "from": result.noise_from},
        "coils": {"scan": result.coils, "virtual": result.virtual_coils, "energy_kept": result.coil_energy},
        "coil_maps": {"sets": result.map_sets, "share_of_second_set": result.second_share},
        "recipe": result.recipe,
        "regularisation": result.facts,
        "seed": result.seed,
        "n_samples": result.samples,
        "prior_sha256": result.prior_sha256,
        "prior": result.prior,
        "flagged": {"rule": RULE, "figures": figures, "slices": second_look(figures, result.facts)},
        "seconds": {"reconstruction": round(sum(result.seconds), 2), "slices": result.seconds},
        "resumed_slices": result.resumed,
        "identity": result.identity,
    }
    if result.samples is not None:
        report["std_relative_sampling_error"] = std_sampling_error(result.samples, result.antithetic)
        report["interval"] = result.calibration
        report["checks"] = {"definitions": CHECKS, "slices": result.checks}
    if result.reference is not None:
        slices = [{"slice": result.first_slice + i, **found} for i, found in enumerate(result.slice_scores)]
        report["metrics"] = {
            "definitions": DEFINITIONS,
            "volume": result.volume_scores,
            "slices": slices,
            "volume_rss": result.volume_rss_scores,
        }
    return report


def finite(value: Any) -> Any:
    """JSON has no infinity (the PSNR of a perfect image): such a number becomes null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_figure(path: Path, result: Result) -> None:
    i = len(result.images["reconstruction"]) // 2
    save_figure(
        path,
        images={name: image[i] for name, image in result.images.items()},
        std=None if result.std is None else result.std[i],
        samples=result.samples,
        antithetic=result.antithetic,
        reference=None if result.reference is None else result.reference[i],
        scores=result.slice_scores[i],
        mask=result.mask,
        title=f"mrgen {result.recipe['name']}, slice {result.first_slice + i}, R = {result.acceleration:.1f}",
    )
