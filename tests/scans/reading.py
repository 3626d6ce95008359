"""What the tests of the readers share.

MRGEN_FUZZ in the environment is the number of examples of each test that hypothesis makes up, drawn anew in each run;
without it there are 50, always the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.scan import Scan

fuzz = settings(
    max_examples=int(os.environ.get("MRGEN_FUZZ", "50")),
    derandomize="MRGEN_FUZZ" not in os.environ,
    deadline=5000,  # ms for an example
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

Opener = Callable[[Path], Scan]


def read_all(open_: Opener, path: Path) -> list[Tensor]:
    """Everything that the file's Scan can give."""
    scan = open_(path)
    readers = [scan.read_slice, *([scan.read_calibration] if scan.read_calibration else [])]
    return [read(i) for read in readers for i in range(scan.slices)]


def refuse(open_: Opener, path: Path, match: str) -> None:
    """Reading the file ends with a MrgenError of one line that names the file and matches `match`."""
    with pytest.raises(MrgenError, match=match) as caught:
        read_all(open_, path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(path.stem)


def write_cfl(stem: Path, kspace: NDArray[np.complex64] | Tensor, sizes: Sequence[int]) -> Path:
    """A BART pair of k-space (slice, coil, ky, kx); `sizes` say along which dimensions. The path of the data."""
    array = np.asarray(kspace).transpose(2, 3, 1, 0).astype("<c8")
    assert np.prod(sizes) == array.size
    array.reshape(-1, order="F").tofile(stem.with_suffix(".cfl"))
    stem.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, sizes))} \n# Creator\nBART v0.8.00\n")
    return stem.with_suffix(".cfl")


def slices_of(coils: int, n_y: int, n_x: int, slices: int) -> list[int]:
    """BART's dimensions of 2-D slices."""
    return [n_y, n_x, 1, coils, *[1] * 9, slices, 1, 1]
