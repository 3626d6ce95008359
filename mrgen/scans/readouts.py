"""Readouts as scanners store them, one by one, and how they become k-space.

A readout s of m samples with its echo at sample e, of phase encode l and partition p (both counted from the centre
of k-space), is placed at

    kspace[n_y // 2 - e + j, n_x // 2 + l] = s[j],    one played backwards is reversed first, and e becomes m - e

Repeated readouts are averaged. The partitions of a volume encoded in 3-D become slices z, counted from its centre:

    kspace_z = n_z^{-1/2} sum_p exp(2 pi i p z / n_z) kspace_p
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.cartesian import SMALLEST, check_values, crop_readout

Table = NDArray[np.void]  # of READOUT, one entry a readout
Reader = Callable[[Table], Iterable[NDArray[np.complex64]]]  # the samples, (coil, sample), of each readout

COUNTERS = ("repetition", "set", "phase", "contrast", "slice")  # an image for each combination, the last fastest
READOUT = np.dtype(
    [
        ("row", np.int64),  # where the reader finds it
        ("imaging", bool),
        ("calibration", bool),  # measured to estimate coil maps; readouts can serve both
        ("noise", bool),
        ("line", np.int32),  # phase encode and partition, 0 at the centre of k-space
        ("partition", np.int32),
        ("image", np.int32, len(COUNTERS)),
        ("coils", np.int32),
        ("samples", np.int32),
        ("echo", np.int32),  # sample at the centre of k-space
        ("before", np.int32),  # samples to discard at the begin and at the end
        ("after", np.int32),
        ("reverse", bool),
        ("dwell", np.float32),  # time between samples, us; 0 where unknown
        ("position", np.float32, 3),  # of the slice's centre, mm, LPS
        ("directions", np.float32, (3, 3)),  # of readout, phase encoding, slice: unit vectors
    ]
)


def kept(table: Table) -> NDArray[np.int64]:
    """Samples of each readout that are not discarded."""
    m: NDArray[np.int64] = table["samples"].astype(np.int64) - table["before"] - table["after"]
    return m


def points(table: Table) -> NDArray[np.int64]:
    """One number for each readout's place (line, partition) in k-space; numbers are ordered by line."""
    place: NDArray[np.int64] = table["line"].astype(np.int64) * 2**32 + table["partition"]
    return place


def starts(table: Table, n_y: int) -> NDArray[np.int64]:
    """Where the first sample kept of each readout lies in n_y. Raises MrgenError where it does not fit in."""
    echo, m = table["echo"].astype(np.int64) - table["before"], kept(table)
    start = n_y // 2 - np.where(table["reverse"], m - echo, echo)
    start = np.where(m == n_y, 0, start)  # complete: some converters leave the echo at 0
    wrong = np.flatnonzero((m < 1) | (start < 0) | (start + m > n_y))
    if len(wrong):
        one = table[wrong[0]]
        raise MrgenError(
            f"a readout of {one['samples']} samples with the centre of k-space at {one['echo']} (first {one['before']} "
            f"and last {one['after']} discarded) does not fit in the header's readout matrix of {n_y}: correct it"
        )
    return start


def place(read: Reader, table: Table, shape: tuple[int, int, int], partitions: int, z: int) -> Tensor:
    """k-space (coil, ky, kx) of slice z, counted from the centre, of a volume of `partitions`, from its readouts."""
    coils, n_y, n_x = shape
    kspace = np.zeros((n_x, coils, n_y), np.complex64)  # a line's samples lie side by side, as they are read
    _, point, repeats = np.unique(points(table), return_inverse=True, return_counts=True)
    weights = np.exp(2j * np.pi * z / partitions * table["partition"]) / np.sqrt(partitions) / repeats[point]
    columns = table["line"] + n_x // 2
    for one, column, start, weight, samples in zip(
        table, columns, starts(table, n_y), weights.astype(np.complex64), read(table), strict=True
    ):
        line = samples[:, one["before"] : one["samples"] - one["after"]]
        kspace[column, :, start : start + line.shape[1]] += weight * (line[:, ::-1] if one["reverse"] else line)
    return torch.from_numpy(np.ascontiguousarray(kspace.transpose(1, 2, 0)))


@dataclass(frozen=True)
class Slices:
    """`Scan.read_slice` of volumes of readouts; a class so that a Scan can be sent to worker processes."""

    read: Reader
    name: str
    volumes: tuple[Table, ...]  # the readouts of each
    shape: tuple[int, int, int]  # coil, ky, kx
    partitions: int
    kept: range  # of the partitions, counted from the centre
    rows: int  # of the image, kept of the oversampled readout

    def __call__(self, index: int) -> Tensor:
        if not 0 <= index < len(self.volumes) * len(self.kept):
            raise IndexError(f"slice {index} of {len(self.volumes) * len(self.kept)}")
        volume, z = divmod(index, len(self.kept))
        kspace = place(self.read, self.volumes[volume], self.shape, self.partitions, self.kept[z])
        return crop_readout(check_values(kspace, f"{self.name}: slice {index}"), self.rows)


@dataclass(frozen=True)
class Calibration:
    """`Scan.read_calibration`: the largest block around the centre of k-space that the calibration lines fill."""

    slices: Slices
    volumes: tuple[Table, ...]  # calibration readouts for each of the slices' volumes

    def __call__(self, index: int) -> Tensor:
        volume, z = divmod(index, len(self.slices.kept))
        table, (coils, n_y, n_x), rows = self.volumes[volume], self.slices.shape, self.slices.rows
        height, lines = self._height(table), self._lines(table)
        kspace = place(self.slices.read, table, (coils, n_y, n_x), self.slices.partitions, self.slices.kept[z])
        first = n_y // 2 - height // 2
        block = check_values(
            kspace[:, first : first + height, lines], f"{self.slices.name}: calibration of slice {index}"
        )
        return crop_readout(block, height * rows // n_y)

    def _height(self, table: Table) -> int:
        """Samples along the readout, so many that the crop of the oversampling leaves a whole number of rows."""
        n_y, rows = self.slices.shape[1], self.slices.rows
        first, last = int(starts(table, n_y).max()), int((starts(table, n_y) + kept(table)).min())
        if (first, last) == (0, n_y):
            return n_y
        step = n_y // gcd(n_y, rows)
        return 2 * min(n_y // 2 - first, last - n_y // 2) // step * step

    def _lines(self, table: Table) -> slice:
        """Columns of the block; the centre of k-space is at its n // 2."""
        measured, n_x = set(table["line"].tolist()), self.slices.shape[2]
        left = next(k for k in range(n_x) if -k - 1 not in measured)
        right = next(k for k in range(n_x) if k not in measured)
        return slice(n_x // 2 - min(left, right), n_x // 2 + min(left + 1, right))

    def fills(self, smallest: int = 4) -> bool:
        """Whether every block has at least `smallest` lines and enough samples along the readout."""
        return all(
            self._height(one) * self.slices.rows // self.slices.shape[1] >= SMALLEST
            and self._lines(one).stop - self._lines(one).start >= smallest
            for one in self.volumes
        )
