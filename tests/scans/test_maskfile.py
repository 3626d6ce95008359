"""Masks from files: every format, BART's own, and refusals that say what to do."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mrgen.errors import MrgenError
from mrgen.physics.masks import fastmri_rng, sampling_mask
from mrgen.scans.maskfile import read_mask

ROWS, LINES = 48, 40
LINE_MASK = sampling_mask("equispaced", LINES, 4, 0.1, fastmri_rng("a.h5"))
POINT_MASK = sampling_mask("poisson-disc", LINES, 4, 0.08, fastmri_rng("a.h5"), rows=ROWS)


def save_cfl(path: Path, mask: NDArray[np.generic]) -> None:
    """As BART does: sizes in the header, first dimension fastest, complex64."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(str(n) for n in mask.shape) + "\n")
    mask.astype("<c8").ravel(order="F").tofile(path.with_suffix(".cfl"))


def save_hdf5(path: Path, mask: NDArray[np.generic]) -> None:
    with h5py.File(path, "w") as file:
        file["mask"] = mask


def save_text(separator: str) -> Callable[[Path, NDArray[np.generic]], None]:
    return lambda path, mask: np.savetxt(path, np.atleast_2d(mask).astype(int), "%d", separator)


SAVERS: dict[str, Callable[[Path, NDArray[np.generic]], None]] = {
    "m.npy": lambda path, mask: np.save(path, mask),
    "only.npz": lambda path, mask: np.savez(path, anything=mask),
    "named.npz": lambda path, mask: np.savez_compressed(path, kspace=np.zeros(3), mask=mask),
    "m.h5": save_hdf5,
    "m.txt": save_text(" "),
    "m.csv": save_text(","),
    "semicolon.CSV": save_text(" ; "),
    "m.cfl": save_cfl,
    "m.hdr": save_cfl,
}


@pytest.mark.parametrize("mask", [LINE_MASK, POINT_MASK], ids=["lines", "points"])
@pytest.mark.parametrize("name", SAVERS)
def test_a_mask_comes_back_from_every_format(name: str, mask: torch.Tensor, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, mask.numpy())
    found = read_mask(tmp_path / name, LINES, ROWS)
    assert found.dtype == torch.float32
    assert torch.equal(found, mask)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float64, np.complex64])
@pytest.mark.parametrize("shape", [(LINES,), (LINES, 1), (1, 1, LINES, 1), (1, LINES)])
def test_axes_of_one_and_kinds_of_number_do_not_matter(shape: tuple[int, ...], kind: type, tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", LINE_MASK.numpy().reshape(shape).astype(kind))
    assert torch.equal(read_mask(str(tmp_path / "m.npy"), LINES), LINE_MASK)


@pytest.mark.parametrize("order", ["C", "F"])
def test_equal_rows_are_lines_and_others_points(order: str, tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    np.save(path, np.asarray(LINE_MASK.expand(2 * ROWS, LINES), order=order))  # as many rows as an oversampled readout
    assert torch.equal(read_mask(path, LINES, ROWS), LINE_MASK)
    assert torch.equal(read_mask(path, LINES), LINE_MASK)
    np.save(path, np.asarray(POINT_MASK[None, :, :, None], order=order))
    assert torch.equal(read_mask(path, LINES, ROWS), POINT_MASK)


def test_a_text_file_may_hold_a_column_blank_lines_and_a_mark(tmp_path: Path) -> None:
    text = "\n".join(f"{value:.0f}" for value in LINE_MASK.tolist())
    (tmp_path / "m.txt").write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    assert torch.equal(read_mask(tmp_path / "m.txt", LINES), LINE_MASK)


def test_barts_own_masks_are_read(tmp_path: Path) -> None:
    if not shutil.which("bart"):
        pytest.skip("bart is not installed")
    poisson = ["bart", "poisson", "-Y", "90", "-Z", "64", "-y", "2", "-z", "2", "-C", "20", "-s", "3", "-e"]
    subprocess.run([*poisson, str(tmp_path / "p")], check=True, capture_output=True)
    mask = read_mask(tmp_path / "p.cfl", 64, 90)
    assert mask.shape == (90, 64)
    assert bool(mask[36:54, 23:41].all()), "the calibration region of 20 x 20"
    assert not mask[:3, :3].any(), "an elliptical mask has no corners"
    subprocess.run(["bart", "extract", "1", "0", "89", str(tmp_path / "p"), str(tmp_path / "q")], check=True)
    with pytest.raises(MrgenError, match=r"89 x 64 entries, expected 64, .* or 90 x 64 points"):
        read_mask(tmp_path / "q.cfl", 64, 90)


def refuse(path: Path, match: str, lines: int = LINES, rows: int | None = ROWS) -> None:
    with pytest.raises(MrgenError, match=match) as caught:
        read_mask(path, lines, rows)
    assert "\n" not in str(caught.value)
    assert path.stem in str(caught.value)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refuse_array(mask: NDArray[np.generic] | torch.Tensor, match: str, rows: int | None = ROWS) -> None:
        np.save(tmp_path / "m.npy", np.asarray(mask))
        refuse(tmp_path / "m.npy", match, rows=rows)

    ones = np.ones
    refuse_array(ones(39), "39 entries, expected 40, one for each phase-encode line, or 48 x 40 points: draw the mask")
    refuse_array(ones(39), "39 entries, expected 40, one for each phase-encode line: draw the mask", rows=None)
    refuse_array(ones(()), "1 entries, expected 40")
    refuse_array(POINT_MASK, "48 x 40 entries, expected 40, one for each phase-encode line: draw", rows=None)
    refuse_array(np.stack([POINT_MASK, 1 - POINT_MASK]), "2 x 48 x 40 entries, expected 40")
    refuse_array(POINT_MASK[1:], "47 x 40 entries, expected 40")
    refuse_array(ones(ROWS), "48 entries, .*: the axes are swapped, transpose the mask")
    refuse_array(POINT_MASK.T, "40 x 48 entries, .*: the axes are swapped, transpose the mask")
    for rows in (ROWS, None):
        across = LINE_MASK[:, None].expand(LINES, ROWS)
        refuse_array(across, "40 x 48 entries undersample the first axis, the readout: transpose", rows=rows)
    square = LINE_MASK[:, None].expand(LINES, LINES)
    refuse_array(square, "40 x 40 entries undersample the first axis, the readout: transpose", rows=LINES)


def test_masks_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npy"
    for wrong in (0.5, 2, -1, np.nan, 1j):
        mask = LINE_MASK.numpy().astype(complex if wrong == 1j else float)
        mask[3] = wrong
        np.save(path, mask)
        refuse(path, "values other than 0 and 1, expected 1 where k-space is sampled")
    np.save(path, np.array(["a"] * LINES))
    refuse(path, "the mask is <U1, expected numbers")
    np.save(path, np.zeros(LINES))
    refuse(path, "keeps nothing")
    np.save(path, np.fft.fftshift(LINE_MASK.numpy()))
    refuse(path, "leaves out the centre of k-space, index 20: apply fftshift")
    np.save(path, np.fft.fftshift(POINT_MASK.numpy()))
    refuse(path, "leaves out the centre of k-space, index 24, 20: apply fftshift")


def test_files_that_hold_no_mask_are_refused(tmp_path: Path) -> None:
    mask = LINE_MASK.numpy()
    refuse(tmp_path / "none.npy", "no such file")
    refuse(tmp_path / "m.mat", r"no mask is read from \.mat, expected \.npy, \.npz")
    refuse(tmp_path / "m", "no mask is read from this")
    np.savez(tmp_path / "two.npz", a=mask, b=mask)
    refuse(tmp_path / "two.npz", r"no array 'mask' \(found: a, b\)")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kspace"] = mask
        file.create_group("group/mask")
    refuse(tmp_path / "other.h5", r"no dataset 'mask' \(found: group, kspace\)")
    with h5py.File(tmp_path / "folder.h5", "w") as file:
        file.create_group("mask")
    refuse(tmp_path / "folder.h5", r"no dataset 'mask' \(found: mask, a group\)")
    for text in ("1 0 x", "1 0\n1", "mask\n1\n0", "1 0 1 \xff"):
        (tmp_path / "m.txt").write_text(text, encoding="latin-1")
        refuse(tmp_path / "m.txt", "expected 0 and 1 separated by spaces, commas or semicolons|not a readable mask")
    (tmp_path / "empty.txt").write_text("\n")
    refuse(tmp_path / "empty.txt", "keeps nothing")
    save_cfl(tmp_path / "b.cfl", mask)
    (tmp_path / "b.hdr").write_text("# Dimensions\n1 41\n")
    refuse(tmp_path / "b.cfl", "not a readable mask")
    (tmp_path / "b.hdr").unlink()
    refuse(tmp_path / "b.cfl", "no such file, expected the header of a BART .cfl file")


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["m.npy", "only.npz"])
def test_objects_are_never_unpickled(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, np.array([Trap(tmp_path / "sprung")] * LINES))
    refuse(tmp_path / name, "not a readable mask")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["m.npy", "only.npz", "m.h5", "m.cfl"])
def test_a_file_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name, LINE_MASK.numpy())
    whole = (tmp_path / name).read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        (tmp_path / name).write_bytes(whole[:length])
        refuse(tmp_path / name, "not a readable|has no")
