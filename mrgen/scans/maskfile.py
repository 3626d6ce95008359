"""A sampling mask from a file of the user's own.

    .npy            one array
    .npz            the array `mask`, or the only one
    .h5             the dataset `mask`, as in fastMRI's test files
    .txt .csv       0 and 1, separated by spaces, commas or semicolons; one row of k-space a line
    .cfl .hdr       a BART pair, such as `bart poisson` or `bart pattern` write it

Axes of length 1 are dropped. What is left is (kx,) for lines or (ky, kx) for points, centred: k = 0 at n // 2.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.cfl import dimensions as cfl_dimensions
from mrgen.scans.files import check_file, hdf5, naming, reason


def _npy(file: IO[bytes]) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _read_npy(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        return _npy(file)


def _read_npz(path: Path) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "mask.npy" not in names and len(names) != 1:
            found = ", ".join(sorted(name.removesuffix(".npy") for name in names)[:5]) or "nothing"
            raise MrgenError(f"no array 'mask' (found: {found}): save the mask under that name")
        with archive.open("mask.npy" if "mask.npy" in names else names[0]) as file:
            return _npy(file)


def _read_hdf5(path: Path) -> NDArray[Any]:
    with hdf5(path) as file:
        mask = file.get("mask")
        if not isinstance(mask, h5py.Dataset):
            found = "mask, a group" if mask is not None else ", ".join(sorted(file)[:5]) or "nothing"
            raise MrgenError(f"no dataset 'mask' (found: {found}): save the mask under that name")
        array: NDArray[Any] = mask[()]
        return array


def _read_text(path: Path) -> NDArray[Any]:
    lines = (line.strip(" \t,;") for line in path.read_text(encoding="utf-8-sig").splitlines())
    try:
        return np.array([re.split(r"[\s,;]+", line) for line in lines if line], float)
    except ValueError:
        raise MrgenError(
            "expected 0 and 1 separated by spaces, commas or semicolons, as many in each line: save it as such"
        ) from None


def _read_cfl(path: Path) -> NDArray[Any]:
    data, header = path.with_suffix(".cfl"), path.with_suffix(".hdr")
    check_file(data, "BART data, with a header .hdr beside it")
    check_file(header, "the header of a BART .cfl file")
    return np.fromfile(data, "<c8").reshape(cfl_dimensions(header), order="F")


_READERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".h5": _read_hdf5,
    ".txt": _read_text,
    ".csv": _read_text,
    ".cfl": _read_cfl,
    ".hdr": _read_cfl,
}


def _check_shape(mask: NDArray[Any], lines: int, rows: int | None) -> None:
    """Raises MrgenError where a mask of 0 and 1 without axes of length 1 does not fit."""
    size = " x ".join(str(n) for n in mask.shape) or "1"
    expected = f"expected {lines}, one for each phase-encode line"
    if rows is not None:
        expected += f", or {rows} x {lines} points"
    if mask.shape == (lines,):
        return
    if mask.ndim == 2 and lines in mask.shape and (mask == mask[:, :1]).all():
        raise MrgenError(f"the {size} entries undersample the first axis, the readout: transpose the mask")
    if rows is not None and mask.shape == (rows, lines):
        return
    if rows is not None and mask.shape in ((rows,), (lines, rows)):
        raise MrgenError(f"{size} entries, {expected}: the axes are swapped, transpose the mask")
    raise MrgenError(f"{size} entries, {expected}: draw the mask for this scan")


def read_mask(path: Path | str, lines: int, rows: int | None = None) -> Tensor:
    """The mask in `path` for k-space of `lines` phase-encode lines: (lines,), or (rows, lines) for points.

    A 2-D mask whose rows are all equal is one of lines. Points are accepted where `rows` is given. Raises MrgenError,
    as one line that names the file, for what is no such mask or does not sample the centre of k-space.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise MrgenError(f"{path.name}: no mask is read from {path.suffix or 'this'}, expected {', '.join(_READERS)}")
    check_file(path, "a mask")
    try:
        with naming(path):
            return _checked(reader(path), lines, rows)
    except MrgenError:
        raise
    except Exception as error:  # NumPy and zipfile raise nearly every type there is for damaged files
        raise MrgenError(f"{path.name}: not a readable mask ({reason(error)}): save it again") from None


def _checked(mask: NDArray[Any], lines: int, rows: int | None) -> Tensor:
    if mask.dtype.kind not in "biufc":
        raise MrgenError(f"the mask is {mask.dtype}, expected numbers: 1 where k-space is sampled, 0 elsewhere")
    if not ((mask == 0) | (mask == 1)).all():
        raise MrgenError("the mask holds values other than 0 and 1, expected 1 where k-space is sampled: threshold it")
    mask = (mask == 1).squeeze()
    if not mask.any():
        raise MrgenError("the mask keeps nothing, expected 1 where k-space is sampled: invert or choose another")
    if mask.ndim == 2 and (mask == mask[0]).all():
        mask = mask[0]
    _check_shape(mask, lines, rows)
    if not mask[tuple(n // 2 for n in mask.shape)]:
        centre = ", ".join(str(n // 2) for n in mask.shape)
        raise MrgenError(
            f"the mask leaves out the centre of k-space, index {centre}: apply fftshift if k = 0 is at index 0, or "
            "choose another"
        )
    return torch.from_numpy(mask.astype("float32"))
