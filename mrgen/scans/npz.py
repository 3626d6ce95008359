"""Reader for plain NumPy archives, the simplest way to hand over k-space:

    np.savez("scan.npz", kspace=..., mask=..., noise=..., calibration=...)

    kspace        (slice, coil, ky, kx) or (coil, ky, kx), complex, centred at n // 2; ky is the readout
    mask          (kx,) or (ky, kx), 1 where sampled; optional, as zeros tell it as well
    noise         (coil, n), samples of a noise scan at the scale of the k-space; optional
    calibration   (coil, ay, ax) or one for each slice, the fully sampled centre measured apart; optional

What an array declares of itself is checked before any of it is unpacked, objects are never unpickled, and no more than
a slice is unpacked at a time, unless the array is stored with its first index fastest.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.cartesian import (
    LARGEST,
    SliceReader,
    cartesian_scan,
    check_shape,
    check_stored,
    check_values,
    stored_mask,
)
from mrgen.scans.files import check_file, listing, naming, plain, reason
from mrgen.scans.scan import Scan

_LARGEST_ARRAY = 8 * LARGEST  # bytes unpacked at once


@dataclass(frozen=True)
class _Array:
    """What a .npy file says of itself, and the byte at which its numbers begin."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    start: int


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, open for reading inside the block only. Raises MrgenError for what cannot be read."""
    try:
        with naming(path), zipfile.ZipFile(path) as archive:
            yield archive
    except MrgenError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise nearly every type there is for damaged files
        raise MrgenError(f"{path.name}: not a readable .npz archive ({reason(error)}): save it again") from None


def _keys(path: Path) -> set[str]:
    with _archive(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


@contextmanager
def _opened(path: Path, key: str) -> Iterator[tuple[IO[bytes], _Array]]:
    """The array `key`, open for reading its numbers inside the block only. Raises MrgenError."""
    with _archive(path) as archive, archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        array = _Array(*header(file), file.tell())
        entry = archive.getinfo(f"{key}.npy")
        check_stored(entry.file_size, entry.compress_size, key)
        stored = entry.file_size - array.start
        if min(array.shape, default=1) < 0 or stored != prod(array.shape) * array.dtype.itemsize:
            raise MrgenError(
                f"{key} should be {array.shape} of {plain(str(array.dtype))}, but has {stored} bytes: save it again"
            )
        yield file, array


def _describe(path: Path, key: str) -> _Array:
    with _opened(path, key) as (_, array):
        return array


def _read(path: Path, key: str, index: int | None = None) -> NDArray[Any]:
    """The array `key`, or element `index` of its first axis."""
    with _opened(path, key) as (file, array):
        shape, first = array.shape, 0
        if index is not None and not array.fortran:
            shape = array.shape[1:]
            first = index * prod(shape)
        if prod(shape) * array.dtype.itemsize > _LARGEST_ARRAY:
            raise MrgenError(
                f"{key} takes more than {_LARGEST_ARRAY / 2**30:g} GiB: save it with its slices first, in C order "
                "(np.ascontiguousarray)"
            )
        file.seek(array.start + first * array.dtype.itemsize)
        numbers = np.frombuffer(file.read(prod(shape) * array.dtype.itemsize), array.dtype)
        values = numbers.reshape(shape, order="F" if array.fortran else "C")
        return values if index is None or not array.fortran else values[index]


@dataclass(frozen=True)
class _Load:
    """Slice `index` of the array `key`, (coil, y, x) complex64."""

    path: Path
    key: str
    single: bool  # the array has no slice axis

    def __call__(self, index: int) -> Tensor:
        with np.errstate(over="ignore"):  # what does not fit into complex64 becomes infinite, and is refused as such
            array = _read(self.path, self.key, None if self.single else index).astype(np.complex64, order="C")
        return torch.from_numpy(array)


def _shape(array: _Array, key: str) -> tuple[int, int, int, int]:
    """(slice, coil, y, x) of a complex array of three or four axes."""
    if array.dtype.kind != "c":
        raise MrgenError(f"{key} is {plain(str(array.dtype))}, expected complex numbers: save it as complex64")
    if len(array.shape) not in (3, 4):
        raise MrgenError(f"{key} has shape {array.shape}, expected (slice, coil, ky, kx) or (coil, ky, kx): rearrange")
    slices, coils, n_y, n_x = (1, *array.shape)[-4:]
    return slices, coils, n_y, n_x


def _noise(path: Path, coils: int) -> Tensor:
    array = _describe(path, "noise")
    if array.dtype.kind != "c" or len(array.shape) != 2 or array.shape[0] != coils or array.shape[1] < coils:
        raise MrgenError(
            f"noise is {array.shape} of {plain(str(array.dtype))}, expected complex ({coils} coils, many samples)"
        )
    return check_values(torch.from_numpy(_read(path, "noise").astype(np.complex64, order="C")), "noise")


def _calibration(path: Path, shape: tuple[int, int, int, int]) -> SliceReader:
    array = _describe(path, "calibration")
    slices, coils, a_y, a_x = _shape(array, "calibration")
    if (slices, coils) != shape[:2] or not (4 <= a_y <= shape[2] and 4 <= a_x <= shape[3]):
        raise MrgenError(
            f"calibration has shape {array.shape}, expected {shape[0]} slices of {shape[1]} coils and 4 x 4 samples or "
            "more, as many as kspace at most"
        )
    return SliceReader(_Load(path, "calibration", len(array.shape) == 3), path.name, slices, "calibration")


def open_npz(path: Path | str) -> Scan:
    """Open an archive; of its k-space only the middle slice is read.

    Raises MrgenError, as one line that names the file, for anything that is not such an archive.
    """
    path = Path(path)
    check_file(path, "a NumPy archive .npz with the array kspace")
    with naming(path):
        keys = _keys(path)
        if "kspace" not in keys:
            raise MrgenError(
                f"no array 'kspace' (found: {listing(keys)}): save k-space (slice, coil, ky, kx) under that name"
            )
        array = _describe(path, "kspace")
        shape = _shape(array, "kspace")
        check_shape(shape)
        _, coils, n_y, n_x = shape
        mask = _describe(path, "mask") if "mask" in keys else None
        scan = cartesian_scan(
            path,
            shape,
            _Load(path, "kspace", len(array.shape) == 3),
            format_="NumPy npz",
            mask=None if mask is None else stored_mask(mask.shape, mask.dtype, lambda: _read(path, "mask"), n_y, n_x),
        )
        return replace(
            scan,
            noise=_noise(path, coils) if "noise" in keys else None,
            read_calibration=_calibration(path, shape) if "calibration" in keys else None,
        )
