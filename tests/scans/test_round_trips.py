"""Valid files that hypothesis makes up come back as written, whatever their format, size and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reading import fuzz, slices_of, write_cfl
from synthetic import make_header

from mrgen.physics.fourier import centre_crop, ifft2c
from mrgen.scans.open import open_scan

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("valid")


@dataclass(frozen=True)
class Case:
    """k-space (slice, coil, ky, kx) as measured, and what its zeros say."""

    kspace: NDArray[np.complex64]
    measured: NDArray[np.bool_]  # (ky, kx)

    @property
    def lines(self) -> bool:
        return bool((self.measured == self.measured[0]).all())

    @property
    def expected(self) -> tuple[torch.Tensor | None, tuple[int, int]]:
        """Mask and padding."""
        mask = torch.from_numpy(self.measured).float()
        if not self.lines:
            return mask, (0, 0)
        where = np.flatnonzero(self.measured[0])
        if not np.all(np.diff(where) == 1):
            return mask[0], (0, 0)
        return None, (int(where[0]), int(mask.shape[1] - 1 - where[-1]))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    slices, coils = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    n_y, n_x = draw(st.integers(16, 40)), draw(st.integers(16, 40))
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y, x = np.ogrid[:n_y, :n_x]
    kspace = 30 / (1 + (y - n_y // 2) ** 2 + (x - n_x // 2) ** 2) + g.normal(size=(slices, coils, n_y, n_x, 2)) @ [
        1,
        1j,
    ]
    measured = np.ones((n_y, n_x), bool)
    kind = draw(st.sampled_from(["full", "padding", "lines", "points"]))
    if kind == "padding":
        measured[:, : draw(st.integers(0, n_x // 4))] = False
        measured[:, n_x - draw(st.integers(0, n_x // 4)) :] = False
    elif kind == "lines":
        measured &= (g.random(n_x) < draw(st.floats(0.1, 0.9))) | (abs(x[0] - n_x // 2) < 4)
    elif kind == "points":
        centre = (abs(y - n_y // 2) < 3) & (abs(x - n_x // 2) < 3)
        measured &= (g.random((n_y, n_x)) < draw(st.floats(0.2, 0.7))) | centre
        box = measured.any(1)[:, None] & measured.any(0)
        assume(measured.sum() < 0.9 * box.sum())
    scale = 10.0 ** draw(st.integers(-8, 6))
    return Case((scale * kspace * measured).astype(np.complex64), measured)


def check(path: Path, case: Case) -> None:
    scan = open_scan(path)
    mask, padding = case.expected
    assert scan.shape == case.kspace.shape
    assert scan.padding == padding
    assert (scan.mask is None) == (mask is None)
    assert mask is None or torch.equal(scan.mask, mask)
    assert np.array_equal(np.stack([scan.read_slice(i) for i in range(scan.slices)]), case.kspace)


@fuzz
@given(case=cases(), fortran=st.booleans(), compressed=st.booleans(), stored=st.booleans(), alone=st.booleans())
def test_valid_archives_come_back(folder, case, fortran, compressed, stored, alone):
    kspace = case.kspace[0] if alone and len(case.kspace) == 1 else case.kspace
    arrays = {"kspace": np.asfortranarray(kspace) if fortran else kspace}
    if stored:
        arrays["mask"] = case.measured[:1] if case.lines else case.measured
    (np.savez_compressed if compressed else np.savez)(folder / "scan.npz", **arrays)
    check(folder / "scan.npz", case)


@fuzz
@given(case=cases(), layout=st.sampled_from(["slices", "section", "swapped"]), short=st.booleans())
def test_valid_bart_pairs_come_back(folder, case, layout, short):
    slices, coils, n_y, n_x = case.kspace.shape
    sizes = slices_of(coils, n_y, n_x, slices)
    if layout != "slices":
        sizes[:3] = (1, n_y, n_x) if layout == "section" else (n_y, 1, n_x)
    write_cfl(folder / "pair", case.kspace, sizes[:4] if short and slices == 1 else sizes)
    check(folder / "pair", case)


@fuzz
@given(case=cases(), chunks=st.booleans(), double=st.booleans(), stored=st.booleans(), emulated=st.booleans())
def test_valid_fastmri_files_come_back(folder, case, chunks, double, stored, emulated):
    kspace = case.kspace[:, 0] if emulated and case.kspace.shape[1] == 1 else case.kspace
    with h5py.File(folder / "scan.h5", "w") as file:
        dtype = np.complex128 if double else np.complex64
        options = {"chunks": (1, *kspace.shape[1:]), "compression": "gzip"} if chunks else {}
        file.create_dataset("kspace", data=kspace.astype(dtype), **options)
        if stored:
            file["mask"] = case.measured[0] if case.lines else case.measured.astype("f4")
    check(folder / "scan.h5", case)


@fuzz
@given(case=cases(), rows=st.integers(16, 40), columns=st.integers(10, 40))
def test_valid_readouts_are_cropped_to_the_header_s_matrix(folder, case, rows, columns):
    n_y, n_x = case.kspace.shape[2:]
    with h5py.File(folder / "scan.h5", "w") as file:
        file["kspace"] = case.kspace
        file["ismrmrd_header"] = make_header((n_y, n_x), rec=(rows, columns))
    scan = open_scan(folder / "scan.h5")
    kept = min(rows, n_y) if case.lines else n_y
    assert scan.shape == (*case.kspace.shape[:2], kept, n_x)
    crop = min(rows, n_y), min(columns, n_x)
    assert scan.crop == (None if crop == (kept, n_x) else crop)
    expected = centre_crop(ifft2c(torch.from_numpy(case.kspace)), (kept, n_x))
    for i in range(scan.slices):
        found = ifft2c(scan.read_slice(i))
        assert float((found - expected[i]).abs().max() / expected[i].abs().max()) < 1e-5


@fuzz
@given(case=cases(), averages=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_valid_averages_are_combined(folder, case, averages, seed):
    assume(case.lines)
    g = np.random.default_rng(seed)
    lines = (g.random((averages, case.kspace.shape[3])) < 0.5) & case.measured[0]
    lines[0] |= case.measured[0] & ~lines.any(0)  # each line by one at least
    repeated = case.kspace * (1 + g.random((averages, 1, 1, 1, 1))) * lines[:, None, None, None, :]
    with h5py.File(folder / "scan.h5", "w") as file:
        file["kspace"] = repeated.astype(np.complex64)
        file["calibration_data"] = case.kspace[..., -8:] + 1
    scan = open_scan(folder / "scan.h5")
    times = lines.sum(0)
    least = times[times > 0].min()
    expected = np.zeros_like(case.kspace)
    for line in np.flatnonzero(times):
        expected[..., line] = repeated[np.flatnonzero(lines[:, line])[:least], ..., line].mean(0)
    mask, padding = case.expected
    assert (scan.mask is None, scan.padding) == (mask is None, padding)
    for i in range(scan.slices):
        np.testing.assert_allclose(scan.read_slice(i), expected[i], rtol=1e-4, atol=1e-5 * abs(expected).max())
        assert np.array_equal(scan.read_calibration(i), case.kspace[i, ..., -8:] + 1)
