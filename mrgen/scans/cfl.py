"""Reader for BART's .cfl/.hdr pairs (Uecker et al., mrirecon.github.io/bart).

The header lists up to 16 dimensions, the data are complex64, little-endian, first dimension fastest. Those of k-space:

    0 READ   1 PHS1   2 PHS2   3 COIL   13 SLICE

- READ x PHS1 (PHS2 = 1): ky is READ, kx is PHS1.
- PHS1 x PHS2 (READ = 1), a section of a 3-D scan: ky is PHS1, kx is PHS2, both undersampled as a rule.

Slices are contiguous in the file, so one is read at a time. k-space is centred and orthonormal, as `bart fft -u` and
mrgen have it. The format knows no noise scan and no geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.cartesian import cartesian_scan, check_shape
from mrgen.scans.files import check_file, naming
from mrgen.scans.scan import Scan

# BART's names, in its order
_NAMES = "READ PHS1 PHS2 COIL MAPS TE COEFF COEFF2 ITER CSHIFT TIME TIME2 LEVEL SLICE AVG BATCH"
_DIMENSIONS = tuple(_NAMES.split())
_BYTES = 8  # of a complex64
_LONGEST_HEADER = 2**20  # bytes


@dataclass(frozen=True)
class _Load:
    """Slice `index`, (coil, ky, kx) complex64; the file is open only meanwhile."""

    path: Path
    shape: tuple[int, int, int]  # coil, ky, kx

    def __call__(self, index: int) -> Tensor:
        count = prod(self.shape)
        try:
            array = np.fromfile(self.path, "<c8", count, offset=index * count * _BYTES)
        except OSError as error:
            raise MrgenError(f"{self.path.name}: slice {index} cannot be read ({error.strerror})") from None
        if array.size < count:
            raise MrgenError(f"{self.path.name}: slice {index} is cut short: copy the file again")
        coil, n_y, n_x = self.shape
        return torch.from_numpy(array.reshape(coil, n_x, n_y).swapaxes(1, 2).astype(np.complex64, order="C"))


def dimensions(path: Path) -> list[int]:
    """The 16 dimensions in a header: the numbers on the first line that is no comment."""
    with path.open("rb") as file:
        text = file.read(_LONGEST_HEADER).decode(errors="replace")
    line = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    numbers = line.split()
    if not numbers or not all(n.isascii() and n.isdecimal() and len(n) < 16 and int(n) > 0 for n in numbers):
        raise MrgenError("the header has no line of dimensions, expected such as '256 256 1 8': write it with BART")
    if len(numbers) > len(_DIMENSIONS):
        raise MrgenError(f"the header has {len(numbers)} dimensions, expected at most {len(_DIMENSIONS)}")
    return [int(n) for n in numbers] + [1] * (len(_DIMENSIONS) - len(numbers))


def _scan_shape(sizes: list[int]) -> tuple[int, int, int, int]:
    """(slice, coil, ky, kx) of BART's 16 `sizes`."""
    for name, size in zip(_DIMENSIONS, sizes, strict=True):
        if size > 1 and name not in ("READ", "PHS1", "PHS2", "COIL", "SLICE"):
            raise MrgenError(
                f"dimension {_DIMENSIONS.index(name)} ({name}) has {size} entries, expected 1: choose one with "
                "`bart slice`, or move them to dimension 13 (SLICE) with `bart transpose`"
            )
    if min(sizes[:3]) > 1:
        raise MrgenError(
            f"k-space has {sizes[0]} x {sizes[1]} x {sizes[2]} along READ, PHS1 and PHS2, expected 1 along one of "
            "them: transform the readout (`bart fft -iu 1`), then move it to dimension 13 (`bart transpose 0 13`)"
        )
    plane = sizes[:3]
    plane.remove(1)
    return sizes[_DIMENSIONS.index("SLICE")], sizes[_DIMENSIONS.index("COIL")], plane[0], plane[1]


def open_cfl(path: Path | str) -> Scan:
    """Open a BART pair by the name of either file or by what they share; only the middle slice is read.

    Raises MrgenError, as one line that names the file, for anything that is not such a pair of k-space.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".cfl", ".hdr") else path
    data, header = Path(f"{stem}.cfl"), Path(f"{stem}.hdr")
    check_file(data, "BART data, with a header .hdr beside it")
    check_file(header, "the header of a BART .cfl file")
    with naming(header):
        sizes = dimensions(header)
        shape = _scan_shape(sizes)
        check_shape(shape)
    found, expected = data.stat().st_size, prod(sizes) * _BYTES
    if found != expected:
        raise MrgenError(f"{data.name}: has {found} bytes, its header asks for {expected}: copy both files again")
    return cartesian_scan(data, shape, _Load(data, shape[1:]), format_="BART cfl")
