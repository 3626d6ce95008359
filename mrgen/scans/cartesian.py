"""From a function that loads one slice of Cartesian k-space to a `Scan`: the checks that all array formats share.

k-space is refused where it is not finite, empty, not centred, of absurd size, or sampled differently from slice to
slice; its sampling is told from its zeros (mrgen.scans.pattern).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.files import plain
from mrgen.scans.pattern import edges, follows, measured_points, sampling_mask_of, uncentred_axis
from mrgen.scans.scan import Scan

SMALLEST = 16  # samples along ky and kx; below this neither noise nor coil maps can be estimated
LARGEST = 2**27  # samples (1 GiB) of a slice: 128 coils of 1024 x 1024; a damaged file declares anything

_DENSEST = 1100  # bytes that a stored byte stands for: deflate packs nothing but zeros more than 1032-fold
_LARGEST_VALUE = 1e15  # sums of squares must fit into single precision, and so must those of the inverse


def crop_readout(kspace: Tensor, rows: int) -> Tensor:
    """Keep the central `rows` image rows of k-space (coil, ky, kx): readout to image, crop, and back.

    The transforms are orthonormal, so white noise keeps its std, and lines of zeros stay exactly zero.
    """
    n_y = kspace.shape[-2]
    if rows == n_y:
        return kspace
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(kspace, dim=-2), dim=-2, norm="ortho"), dim=-2)
    first = n_y // 2 - rows // 2
    cropped = torch.fft.ifftshift(image[..., first : first + rows, :], dim=-2)
    back: Tensor = torch.fft.fftshift(torch.fft.fft(cropped, dim=-2, norm="ortho"), dim=-2)
    return back


def check_shape(shape: tuple[int, int, int, int], name: str = "kspace") -> None:
    """Raises MrgenError for a (slice, coil, ky, kx) that is empty, too small to reconstruct or absurdly large."""
    slices, coils, n_y, n_x = shape
    if min(slices, coils) < 1 or min(n_y, n_x) < SMALLEST:
        raise MrgenError(
            f"{name} has {slices} slices, {coils} coils and {n_y} x {n_x} samples, expected at least one slice and "
            f"coil of {SMALLEST} x {SMALLEST}: check how the file was made"
        )
    if prod(shape[1:]) > LARGEST:
        raise MrgenError(
            f"a slice of {name} has {coils} coils of {n_y} x {n_x} samples, more than {LARGEST * 8 / 2**30:g} GiB: "
            "the file is damaged, or compress the coils"
        )


def check_stored(declared: int, stored: int, name: str = "kspace") -> None:
    """Raises MrgenError where an array of `declared` bytes cannot come from `stored` bytes, packed or not."""
    if declared > _DENSEST * stored:
        raise MrgenError(f"{name} declares {declared} bytes, but the file holds {stored} of them: copy it again")


def check_values(kspace: Tensor, what: str) -> Tensor:
    """`kspace` itself. Raises MrgenError, saying `what` it is, where it is not finite, empty or of absurd scale."""
    if not torch.isfinite(torch.view_as_real(kspace)).all():
        raise MrgenError(f"{what} holds NaN or infinity, expected finite numbers: leave it out")
    if not kspace.any():
        raise MrgenError(f"{what} is all zeros, expected measured data: leave it out")
    largest = float(kspace.abs().max())
    if not 1 / _LARGEST_VALUE < largest < _LARGEST_VALUE:
        raise MrgenError(
            f"{what} reaches a magnitude of {largest:.2g}, expected {1 / _LARGEST_VALUE:g} to {_LARGEST_VALUE:g}: "
            "rescale it"
        )
    return kspace


def stored_mask(
    shape: tuple[int, ...], dtype: np.dtype[Any], load: Callable[[], NDArray[Any]], n_y: int, n_x: int
) -> Tensor | None:
    """A mask stored beside k-space of n_y x n_x as float, (kx,) or (ky, kx); None where it keeps everything.

    `shape` and `dtype` are those it is stored with, `load` reads it. Raises MrgenError for one that cannot be used.
    """
    if dtype.kind not in "biuf":
        raise MrgenError(
            f"mask is {plain(str(dtype))}, not an array of numbers: expected one 0 or 1 for each phase line"
        )
    long = tuple(n for n in shape if n != 1)
    if long not in ((n_x,), (n_y, n_x)):
        raise MrgenError(f"mask has shape {shape}, expected one entry for each of the {n_x} phase lines")
    mask = torch.from_numpy(load().astype("float32").reshape(long))
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MrgenError("mask holds values other than 0 and 1: expected 1 where a line was sampled")
    if not mask.any():
        raise MrgenError("mask keeps no line: expected 1 where a line was sampled")
    return None if bool(mask.all()) else mask


@dataclass(frozen=True)
class SliceReader:
    """`Scan.read_slice`; a class rather than a closure so that a Scan can be sent to worker processes."""

    load: Callable[[int], Tensor]  # slice index -> (coil, ky, kx) complex64 as stored
    name: str  # of the file
    slices: int
    what: str = "kspace"
    mask: Tensor | None = None  # stored beside the k-space, (kx,) or (ky, kx)
    points: Tensor | None = None  # (ky, kx) bool, measured in the middle slice and expected of all
    rows: int | None = None  # image rows kept of an oversampled readout

    def __call__(self, index: int) -> Tensor:
        if not 0 <= index < self.slices:
            raise IndexError(f"slice {index} of {self.slices}")
        where = f"{self.name}: slice {index}"
        kspace = check_values(self.load(index), f"{where} of {self.what}")
        if self.mask is not None:
            kspace = check_values(kspace * self.mask, f"{where} of {self.what}, where the mask is 1,")
        if self.points is not None and not follows(kspace, self.points):
            raise MrgenError(
                f"{where} samples other points of k-space than the middle slice, expected one pattern for the whole "
                "scan: store slices with different patterns in separate files"
            )
        return kspace if self.rows is None else crop_readout(kspace, self.rows)


def cartesian_scan(
    path: Path,
    shape: tuple[int, int, int, int],
    load: Callable[[int], Tensor],
    *,
    format_: str,
    mask: Tensor | None = None,
    rows: int | None = None,
    padding: tuple[int, int] = (0, 0),
) -> Scan:
    """A Scan of `shape` (slice, coil, ky, kx), whose middle slice is read to see what was sampled.

    `mask` (kx,) or (ky, kx) stored beside the k-space is applied to it. `rows` of the image are kept of an
    oversampled readout, unless samples along it are missing. `padding` is what the file itself declares as
    zero-filled at the edges of kx; it is believed where the data agree.

    Raises MrgenError, as one line that names the file, for k-space that cannot be used.
    """
    slices, coils, n_y, n_x = shape
    reader = SliceReader(load, path.name, slices, mask=mask)
    kspace = reader(slices // 2)
    axis = uncentred_axis(kspace)
    if axis is not None:
        raise MrgenError(
            f"{path.name}: the centre of k-space lies at index 0 of the {('readout', 'phase')[axis]} axis, expected it "
            "at n // 2: apply fftshift"
        )
    points = measured_points(kspace)
    found = sampling_mask_of(points)
    remarks: list[str] = []
    left, right = edges(points.any(0))
    if found is None:
        if (left, right) not in (padding, (0, 0)):
            remarks.append(
                f"The first {left} and last {right} phase-encoding lines hold zeros only: taken for zero-filling or "
                "partial Fourier, not for undersampling."
            )
        padding = (left, right)
    elif left < padding[0] or right < padding[1]:
        padding = (0, 0)  # there is data where the file declares none
    above, below = edges(points.any(1))
    if above + below and (found is None or found.ndim == 1):
        remarks.append(
            f"The first {above} and last {below} readout samples hold zeros only (an asymmetric echo?): they count as "
            "measured."
        )
    if found is not None and found.ndim == 2:
        remarks.append(f"The zeros show undersampling in both directions: {float(found.mean()):.1%} of the points.")
        if rows not in (None, n_y):
            remarks.append("The oversampled readout is kept, because it is undersampled too.")
        rows = None
    return Scan(
        path=str(path),
        shape=(slices, coils, rows or n_y, n_x),
        mask=found,
        read_slice=replace(reader, points=points, rows=rows),
        padding=padding,
        format=format_,
        remarks=tuple(remarks),
    )
