"""Stored results against references: the figures of `mrgen evaluate`.

A result is compared with those slices of the reference that it holds; where the two matrices differ, the larger one is
cropped around its centre. The data range is the maximum of the whole reference volume after the crop, as in
fastmri.evaluate. Over n >= 5 scans a mean has a 95 % interval: the 2.5th and 97.5th percentiles of the means of 10,000
draws of n scans with replacement (percentile bootstrap, seed 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop
from mrgen.review.metrics import Array, best_scale, body, scores, spread_scores
from mrgen.review.uncertainty import coverage

# A fastMRI single-coil file holds the multi-coil reconstruction_rss too; its own target is reconstruction_esc.
REFERENCES = ("reconstruction_esc", "reconstruction_rss", "reference")
IMAGES = ("zero_filled", "l1_wavelet", "reconstruction")
COMMON = ("recipe", "n_samples", "prior_sha256")  # a mean over scans should have one of each
PROVENANCE = (*COMMON, "seed")
NUMBERS = ("first_slice", "zero_filled_lines")
RESAMPLES, FEWEST_FOR_INTERVAL = 10_000, 5

Record = dict[str, Any]  # ready for JSON but for NaN and infinity


@dataclass(frozen=True)
class Pair:
    """One scan's images beside its reference, all (slice, y, x) of one shape."""

    scan: str
    images: dict[str, Array]
    std: Array | None
    interval: Array | None  # half-width of a calibrated interval
    reference: Array
    protocol: Record


def find_pairs(out: Path, reference: Path | None) -> list[tuple[Path, Path]]:
    """The result files of `out`, a file, a folder or a folder of folders, each with its reference file.

    The two have the same name; without `reference` a result is its own. Raises MrgenError for nothing to compare, a
    missing counterpart, and two results of one scan.
    """
    for path in (out, reference):
        if path is not None and not path.exists():
            raise MrgenError(f"{path}: there is no such file or folder, expected .h5 scans: check the path")
    results = [out] if out.is_file() else sorted(out.glob("*.h5")) or sorted(out.glob("*/*.h5"))
    if not results:
        raise MrgenError(f"{out}: no .h5 file in this folder, expected results of `mrgen recon`: check the path")
    first: dict[str, Path] = {}
    for path in results:
        if path.name in first:
            raise MrgenError(f"{first[path.name]} and {path} are of one scan, expected one result: evaluate each alone")
        first[path.name] = path
    if reference is None:
        return [(path, path) for path in results]
    known = {p.name: p for p in ([reference] if reference.is_file() else sorted(reference.glob("*.h5")))}
    missing = [path.name for path in results if path.name not in known]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise MrgenError(f"{reference}: no reference for {len(missing)} of {len(results)} results ({names}): add it")
    return [(path, known[path.name]) for path in results]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError:
        raise MrgenError(f"{path.name}: not a readable HDF5 file: write or copy it again") from None


def _plain(value: Any) -> Any:
    """An HDF5 attribute as a Python number or text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _read(file: h5py.File, key: str, where: str, first_slice: int) -> Array:
    """Dataset `key` as (slice, y, x) in double precision; `first_slice` numbers the slices of the message."""
    data = file[key]
    if not isinstance(data, h5py.Dataset) or data.ndim != 3 or data.dtype.kind not in "fiu" or 0 in data.shape:
        found = f"{data.dtype} {data.shape}" if isinstance(data, h5py.Dataset) else "a group"
        raise MrgenError(f"{where}: {key} is {found}, expected real magnitudes (slice, y, x): convert the file")
    volume: Array = data[()].astype(np.float64)
    for i, image in enumerate(volume):
        if not np.isfinite(image).all():
            raise MrgenError(f"{where}: slice {first_slice + i} of {key} holds NaN or infinity: leave it out")
    return volume


def _read_reference(path: Path, own: bool) -> tuple[str, int, Array]:
    """(dataset, number of its first slice, volume) of a reference file; `own` when that is the result itself."""
    with _opened(path) as file:
        key = next((key for key in REFERENCES if key in file), None)
        if key is None:
            ways = "name one with --reference" if own else f"expected one of {', '.join(REFERENCES)}: use another file"
            raise MrgenError(f"{path.name}: it holds no reference; {ways}")
        first_slice = int(file.attrs.get("first_slice", 0))
        return key, first_slice, _read(file, key, f"reference {path.name}", first_slice)


def _read_result(path: Path) -> tuple[dict[str, Array], Record, Array | None]:
    """(images and std by name, attributes, mask) of a result."""
    with _opened(path) as file:
        if "reconstruction" not in file:
            found = ", ".join(sorted(file)[:5]) or "nothing"
            raise MrgenError(f"{path.name}: no dataset 'reconstruction' (found: {found}): name results of mrgen recon")
        attributes = {key: _plain(file.attrs[key]) for key in (*PROVENANCE, *NUMBERS) if key in file.attrs}
        first = int(attributes.get("first_slice", 0))
        volumes = {key: _read(file, key, path.stem, first) for key in (*IMAGES, "std", "interval") if key in file}
        mask = file["mask"][()] if "mask" in file else None
    shapes = {volume.shape for volume in volumes.values()}
    if len(shapes) > 1:
        raise MrgenError(f"{path.stem}: its images have shapes {shapes}, expected one: reconstruct it again")
    return volumes, attributes, mask


def _common_matrix(scan: str, image: Array, reference: Array) -> tuple[int, int]:
    """The smaller of the matrices (y, x) of the two volumes. Raises MrgenError where neither holds the other."""
    small, large = sorted([image.shape[1:], reference.shape[1:]])
    if small[1] > large[1]:
        found = "the result is {} x {}, its reference {} x {}".format(*image.shape[1:], *reference.shape[1:])
        raise MrgenError(
            f"{scan}: {found}, expected one to hold the other: check that the axes are (slice, y, x) and the files of "
            "one scan"
        )
    return small[0], small[1]


def _crop(volume: Array, matrix: tuple[int, int]) -> Array:
    cropped: Array = centre_crop(torch.from_numpy(volume), matrix).numpy()
    return cropped


def _sampling(mask: Array | None, zero_filled: int) -> Record:
    """R, lines (points) sampled and how many there were to sample: `zero_filled` lines are not among them."""
    if mask is None:
        return {"R": None, "sampled": None, "unit": None}
    kept, all_ = int(mask.sum()), mask.size - zero_filled * (len(mask) if mask.ndim == 2 else 1)
    return {
        "R": all_ / kept if kept else float("inf"),
        "sampled": [kept, all_],
        "unit": "lines" if mask.ndim == 1 else "points",
    }


def open_pair(path: Path, reference_path: Path) -> Pair:
    """Read a result and its reference, choose the slices and crop. Raises MrgenError naming the scan."""
    scan, own = path.stem, path == reference_path
    volumes, attributes, mask = _read_result(path)
    key, offset, reference = _read_reference(reference_path, own)
    image = volumes["reconstruction"]
    first = attributes.get("first_slice", offset)
    last = first + len(image)
    if not offset <= first < last <= offset + len(reference):
        raise MrgenError(
            f"{scan}: the result holds slices {first}:{last}, its reference {offset}:{offset + len(reference)}: "
            "name a reference that has them all"
        )
    if "first_slice" not in attributes and len(image) != len(reference):
        raise MrgenError(
            f"{scan}: the result holds {len(image)} of {len(reference)} slices, expected an attribute first_slice that "
            "says which: add it to the file"
        )
    matrix = _common_matrix(scan, image, reference)
    cropped = [name for name, v in (("result", image), ("reference", reference)) if v.shape[1:] != matrix]
    peak = float(_crop(reference, matrix).max())
    protocol = {
        "slices": [first, last],
        **_sampling(mask, int(attributes.get("zero_filled_lines", 0))),
        **{name: attributes.get(name) for name in PROVENANCE},
        "reference": f"{key}, stored in the result" if own else f"{key} of {reference_path.name}",
        "result_matrix": list(image.shape[1:]),
        "reference_matrix": list(reference.shape[1:]),
        "matrix": list(matrix),
        "cropped": cropped[0] if cropped else None,
        "data_range": peak,
        "data_range_from": f"maximum of slices {offset}:{offset + len(reference)} of the reference"
        + (" after its crop" if cropped == ["reference"] else ""),
    }
    volumes = {name: _crop(volume, matrix) for name, volume in volumes.items()}
    std, interval = volumes.pop("std", None), volumes.pop("interval", None)
    return Pair(scan, volumes, std, interval, _crop(reference, matrix)[first - offset : last - offset], protocol)


def _mean_and_std(values: list[float]) -> dict[str, float]:
    """Over the values, std with n - 1; NaN where there are too few."""
    with np.errstate(invalid="ignore"):  # the PSNR of a perfect image is infinite
        std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        return {"mean": float(np.mean(values)) if values else float("nan"), "std": std}


def _spread(pair: Pair) -> dict[str, float]:
    """spread_scores as they are, and with one scalar fit of image and std: `_fit`; coverage of a calibrated one."""
    image, std, reference = pair.images["reconstruction"], pair.std, pair.reference
    assert std is not None
    s = best_scale(image, reference)
    fitted = spread_scores(s * image, abs(s) * std, reference)
    found = spread_scores(image, std, reference) | {f"{k}_fit": v for k, v in fitted.items() if k != "body"}
    if pair.interval is not None:
        inside = body(reference)
        found["coverage_calibrated"] = coverage(abs(image - reference)[inside], pair.interval[inside], 1.0)
    return found


def evaluate_pair(pair: Pair) -> Record:
    """Every figure of one scan; slices whose reference is all zeros have none. Raises MrgenError naming the scan."""
    first, peak = pair.protocol["slices"][0], pair.protocol["data_range"]
    try:
        volume = {name: scores(image, pair.reference, peak) for name, image in pair.images.items()}
        slices: list[Record] = [
            {"slice": first + i, **{name: scores(image[i], reference, peak) for name, image in pair.images.items()}}
            for i, reference in enumerate(pair.reference)
            if reference.any()
        ]
        spread = None if pair.std is None else _spread(pair)
    except ValueError as error:
        raise MrgenError(f"{pair.scan}: {error}") from None
    over_slices = {
        name: {figure: _mean_and_std([row[name][figure] for row in slices]) for figure in figures}
        for name, figures in volume.items()
    }
    return {
        "scan": pair.scan,
        "protocol": pair.protocol,
        "volume": volume,
        "over_slices": over_slices,
        "slices": slices,
        "empty_slices": [first + i for i, reference in enumerate(pair.reference) if not reference.any()],
        "worst_slices": [row["slice"] for row in sorted(slices, key=lambda row: row["reconstruction"]["psnr"])[:3]],
        "spread": spread,
    }


def _over_scans(values: list[float]) -> Record:
    row: Record = {"scans": len(values), **_mean_and_std(values), "interval_95": None}
    if len(values) >= FEWEST_FOR_INTERVAL and np.isfinite(values).all():
        drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
        row["interval_95"] = np.percentile(np.array(values)[drawn].mean(1), (2.5, 97.5)).tolist()
    return row


def summarise(scans: list[Record]) -> Record:
    """Mean, std (n - 1) and bootstrap interval over scans of the figures of their volumes; what they differ in."""
    figures: dict[str, dict[str, list[float]]] = {}
    for scan in scans:
        for name, values in {**scan["volume"], "spread": scan["spread"] or {}}.items():
            for figure, value in values.items():
                figures.setdefault(name, {}).setdefault(figure, []).append(value)
    images = {name: {figure: _over_scans(v) for figure, v in values.items()} for name, values in figures.items()}
    protocols = [scan["protocol"] for scan in scans]
    accelerations = [p["R"] for p in protocols if p["R"] is not None]
    return {
        "scans": len(scans),
        "R": [min(accelerations), max(accelerations)] if accelerations else None,
        "differ_in": [key for key in COMMON if len({p[key] for p in protocols}) > 1],
        "spread": images.pop("spread", None),
        "images": images,
    }
