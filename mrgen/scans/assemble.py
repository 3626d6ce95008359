"""From a table of readouts to a `Scan`: what the readers of scanners' raw data (ISMRMRD, Siemens twix) share.

The noise of k-space follows from that of a noise scan, of dwell time t' and relative noise bandwidth b (Kellman and
McVeigh 2005, doi 10.1002/mrm.20713; Gadgetron):

    C = C' t' / (b t)

divided by the number of averages, and times m_z / n_z where only m_z of the n_z partitions of a volume were measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.cartesian import check_shape, check_values
from mrgen.scans.header import Header
from mrgen.scans.orientation import geometry, ranks
from mrgen.scans.pattern import contiguous, edges
from mrgen.scans.readouts import COUNTERS, Calibration, Reader, Slices, Table, kept, points, starts
from mrgen.scans.scan import Scan

_SPARSE = 64  # times as many lines as were measured: beyond, the matrix is not that of the data
_SHORT = 4  # times as many samples as the readouts have: beyond, no echo is that asymmetric
_RATIO = 1e4  # of dwell times: beyond, they are not dwell times
_NOISE_SAMPLES = 2**16  # of each coil are plenty for a covariance


def _check(table: Table, path: Path, header: Header) -> None:
    """Raises MrgenError for readouts of several kinds, or that contradict the header or the size of the file."""
    imaging, (n_y, n_x), n_z = table[table["imaging"]], header.encoded, header.partitions[0]
    if not len(imaging):
        raise MrgenError("there are no imaging readouts, only noise, calibration or other scans: pick another file")
    coils = np.unique(imaging["coils"])
    if len(coils) > 1:
        raise MrgenError(f"readouts have {coils[0]} to {coils[-1]} coils, expected the same for all: split the file")
    if 8 * (table["coils"].astype(np.int64) * table["samples"]).sum() > path.stat().st_size:
        raise MrgenError("the readouts declare more samples than the file could hold: it is damaged, copy it again")
    check_shape((1, int(coils[0]), n_y, n_x))
    if n_y > _SHORT * kept(imaging).max():
        raise MrgenError(
            f"readouts have up to {kept(imaging).max()} samples, the header's readout matrix {n_y}: they do not belong "
            "together; correct encodedSpace/matrixSize/x"
        )
    placed = table[table["imaging"] | table["calibration"]]
    starts(placed, n_y)
    for name, step, n in ("line", "1", n_x), ("partition", "2", n_z):
        index = placed[name]
        if index.min() < -(n // 2) or index.max() >= n - n // 2:
            raise MrgenError(
                f"{name}s {index.min()} to {index.max()} from the centre of k-space do not fit in the header's matrix "
                f"of {n}: correct encodedSpace/matrixSize or the center of kspace_encoding_step_{step}"
            )
        if n > _SPARSE * len(np.unique(imaging[name])):
            raise MrgenError(
                f"{len(np.unique(imaging[name]))} {name}s were measured of the header's matrix of {n}: too few to be "
                "that matrix; correct encodedSpace/matrixSize"
            )


def _in_order(table: Table) -> tuple[Table, list[str]]:
    """The table with slices numbered 0, 1, ... in the order they lie, and a remark where that is another one."""
    imaging = table[table["imaging"]]
    numbers, first = np.unique(imaging["image"][:, -1], return_index=True)
    order = ranks(imaging[first])
    place = np.searchsorted(numbers, table["image"][:, -1]).clip(max=len(numbers) - 1)
    known = numbers[place] == table["image"][:, -1]
    table = table.copy()
    table["image"][:, -1] = np.where(known, order[place], -1)
    changed = bool(np.any(np.diff(order) < 0))
    return table, ["Slices are ordered as they lie, not as they are numbered."] if changed else []


def _volumes(imaging: Table) -> tuple[list[Table], list[str]]:
    """The readouts of each image, and remarks; images that lack lines of the others are left out."""
    keys, group = np.unique(imaging["image"], axis=0, return_inverse=True)
    group = group.reshape(-1)
    volumes = np.split(imaging[np.argsort(group, kind="stable")], np.cumsum(np.bincount(group))[:-1])
    found = [np.unique(points(volume)) for volume in volumes]
    fullest = max(found, key=len)
    if not all(np.isin(some, fullest).all() for some in found):
        raise MrgenError(
            "the images sample different lines of k-space, expected one pattern for the whole scan: store images with "
            "different patterns in separate files"
        )
    whole = [volume for volume, some in zip(volumes, found, strict=True) if len(some) == len(fullest)]
    remarks = []
    if len(keys) > 1:
        sizes = [len(np.unique(column)) for column in keys.T]
        loops = ", ".join(f"{name} ({n})" for name, n in zip(COUNTERS, sizes, strict=True) if n > 1)
        remarks.append(f"{len(whole)} images: {loops}; the last varies fastest.")
    if len(whole) < len(volumes):
        remarks.append(f"{len(volumes) - len(whole)} incomplete images, with fewer lines than others, are left out.")
    return whole, remarks


def _check_partitions(volume: Table, n_z: int) -> None:
    """Raises MrgenError unless most of n_z partitions were measured, all with the same lines and without gaps."""
    partitions = np.unique(volume["partition"])
    if 2 * len(partitions) < n_z and len(partitions) == 1:
        raise MrgenError(
            f"the header says 3-D encoding with {n_z} partitions, the data hold one: correct "
            "encodedSpace/matrixSize/z (1 for slices excited one by one)"
        )
    complete = len(np.unique(points(volume))) == len(partitions) * len(np.unique(volume["line"]))
    if not complete or np.any(np.diff(partitions) > 1) or 2 * len(partitions) < n_z:
        raise MrgenError(
            f"the scan is undersampled along its {n_z} partitions (kspace_encode_step_2), expected all of them with "
            "the same lines: mrgen reconstructs slice by slice and needs them fully sampled"
        )


def _sampling(volume: Table, n_x: int, header: Header) -> tuple[Tensor | None, tuple[int, int]]:
    """The mask (kx,), None where no line is missing between the outermost ones, and the padding."""
    measured = torch.zeros(n_x, dtype=torch.bool)
    measured[torch.from_numpy(volume["line"].astype(np.int64)) + n_x // 2] = True
    padding = edges(measured)
    if contiguous(measured):
        return None, padding
    # lines may be missing at the edges for the same reason as between them
    declared = header.padding(n_x) if header.limits else padding
    return measured.float(), (min(padding[0], declared[0]), min(padding[1], declared[1]))


def _peculiarities(volume: Table, padding: tuple[int, int], kept_slices: int, header: Header) -> list[str]:
    """Remarks on how the lines of a volume were measured."""
    (n_y, n_x), n_z, remarks = header.encoded, header.partitions[0], []
    if padding != (0, 0):
        why = "partial Fourier" if 0 in padding else "a phase resolution below 100 %"
        remarks.append(
            f"The first {padding[0]} and last {padding[1]} of {n_x} phase-encoding lines were not acquired ({why}): "
            "they are 0."
        )
    missing = n_y - int(kept(volume).min())
    if missing:
        remarks.append(f"{missing} of {n_y} readout samples were not acquired (asymmetric echo): they are 0.")
    _, counts = np.unique(points(volume), return_counts=True)
    if counts.max() > 1:
        times = f"{counts[0]}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        remarks.append(f"Each line was measured {times} times: their mean is used.")
    if n_z > 1:
        measured = len(np.unique(volume["partition"]))
        filled = "" if measured == n_z else f" ({n_z - measured} were not acquired: they are 0)"
        remarks.append(f"The {n_z} partitions{filled} are Fourier transformed to slices; {kept_slices} are kept.")
    return remarks


def _noise(table: Table, read: Reader, volume: Table, header: Header) -> tuple[Tensor | None, list[str]]:
    """Samples (coil, n) of the noise scan with the covariance of the noise in the k-space of `volume`; remarks."""
    noise = table[table["noise"] & (kept(table) > 0)]
    if not len(noise):
        return None, []
    total = kept(noise).cumsum()
    noise = noise[: int(np.searchsorted(total, _NOISE_SAMPLES)) + 1]
    coils, dwell = volume["coils"][0], volume["dwell"][0].astype(np.float64)
    if np.any(noise["coils"] != coils) or total[len(noise) - 1] < 2 * coils:
        return None, ["The noise scan has other coils than the images, or too few samples: it is not used."]
    remarks = []
    with np.errstate(all="ignore"):
        ratio = noise["dwell"].astype(np.float64) / dwell / header.noise_bandwidth
    if not np.all((ratio > 1 / _RATIO) & (ratio < _RATIO)):
        ratio = np.ones(len(noise))
        remarks.append("Dwell times are unknown: the noise scan is taken to have the bandwidth of the images.")
    _, counts = np.unique(points(volume), return_counts=True)
    measured = len(np.unique(volume["partition"])) / header.partitions[0]
    factors = np.sqrt(ratio * measured * (1 / counts).mean()).astype(np.float32)
    pairs = zip(noise, read(noise), strict=True)
    samples = [one[:, cut["before"] : cut["samples"] - cut["after"]] for cut, one in pairs]
    raw = check_values(torch.from_numpy(np.concatenate(samples, axis=1)), "the noise scan")
    return raw * torch.from_numpy(np.repeat(factors, kept(noise))), remarks


def _calibration(table: Table, slices: Slices) -> tuple[Calibration | None, list[str]]:
    """The calibration lines of each volume's slice, from the first repetition (set, phase, contrast) that has them."""
    lines = table[table["calibration"]]
    if lines["imaging"].all():
        return None, []
    volumes = []
    for volume in slices.volumes:
        here = lines[lines["image"][:, -1] == volume["image"][0, -1]]
        volumes.append(here[(here["image"] == min(here["image"].tolist(), default=0)).all(1)])
    calibration = Calibration(slices, tuple(volumes))
    if not all(len(one) and np.all(one["coils"] == slices.shape[0]) for one in volumes) or not calibration.fills():
        return None, [
            "The calibration lines do not cover the slices, the coils and the centre of k-space: they are not used."
        ]
    return calibration, ["Coil maps come from calibration lines measured apart."]


def assemble(
    path: Path, table: Table, read: Reader, header: Header, *, format_: str, xml: str | None, remarks: Iterable[str]
) -> Scan:
    """A Scan of the readouts in `table`, whose samples `read` fetches from the file at `path`; only noise is read.

    Raises MrgenError, without the file's name, for readouts that do not make a Cartesian scan.
    """
    _check(table, path, header)
    (n_y, n_x), n_z = header.encoded, header.partitions[0]
    table, reordered = _in_order(table)
    volumes, loops = _volumes(table[table["imaging"]])
    _check_partitions(volumes[0], n_z)
    mask, padding = _sampling(volumes[0], n_x, header)
    rows, depth = header.cropped(0, n_y), header.cropped(2, n_z)
    coils = int(volumes[0]["coils"][0])
    centred = range(-(depth // 2), depth - depth // 2)
    slices = Slices(read, path.name, tuple(volumes), (coils, n_y, n_x), n_z, centred, rows)
    peculiar = _peculiarities(volumes[0], padding, depth, header)
    noise, about_noise = _noise(table, read, volumes[0], header)
    calibration, about_calibration = _calibration(table, slices)
    where, unplaced = geometry(np.stack([volume[0] for volume in volumes]), header, centred)
    crop = rows, header.cropped(1, n_x)
    return Scan(
        path=str(path),
        shape=(len(volumes) * depth, coils, rows, n_x),
        mask=mask,
        read_slice=slices,
        header=xml,
        crop=None if crop == (rows, n_x) else crop,
        padding=padding,
        format=format_,
        noise=noise,
        read_calibration=calibration,
        geometry=where,
        remarks=(*remarks, *loops, *reordered, *peculiar, *about_noise, *about_calibration, *unplaced),
    )
