"""`mrgen recon` of scans that were undersampled when measured: their place in the patient, their scale, their image."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from mrgen.cli.recon import choose_mask
from mrgen.review.metrics import best_scale
from mrgen.scans.open import open_scan

nibabel, pydicom = pytest.importorskip("nibabel"), pytest.importorskip("pydicom")
pytestmark = pytest.mark.usefixtures("no_plots")
BUNDLED = Path(__file__).parents[1] / "examples" / "data" / "brain.h5"


def test_an_ismrmrd_scan_lies_where_the_scanner_says_in_every_format(mrgen, scans, tmp_path):
    """Positions are computed from the headers of the acquisitions, once more and apart from mrgen's reader."""
    path = scans / "phantom_14ch_prospective_R3_ismrmrd.h5"
    code, text, _ = mrgen("recon", path, "--recipe", "zero-filled", "-o", tmp_path)
    assert (code, "NOMINAL" in text) == (0, False)
    with h5py.File(path) as file:
        head = file["dataset/data"].fields("head")[1]
    with h5py.File(tmp_path / f"{path.stem}.h5") as file:
        image = file["reconstruction"][0]
    dy, dx = 280 / 192, 210 / 144  # of the header's encoded space, read by eye
    centre, along_y, along_x = (np.array(head[key], float) for key in ("position", "read_dir", "phase_dir"))

    def place(row: int, column: int) -> np.ndarray:
        """Of a pixel of the .h5 file, in LPS."""
        return centre + (row - 96) * dy * along_y + (column - 72) * dx * along_x

    bright = sorted((int(r), int(c)) for r, c in np.argwhere(image > np.quantile(image, 0.9995)))
    assert len(bright) > 5
    volume = nibabel.load(next((tmp_path / "nifti").glob("*reconstruction*.nii*")))
    values, to_voxel = volume.get_fdata(), np.linalg.inv(volume.affine)
    slice_ = pydicom.dcmread(next(p for p in sorted((tmp_path / "dicom").rglob("*")) if p.is_file()))
    step_column, step_row = np.reshape(np.array(slice_.ImageOrientationPatient, float), (2, 3))
    pixels = slice_.pixel_array * float(slice_.get("RescaleSlope", 1)) + float(slice_.get("RescaleIntercept", 0))
    down, right = (float(v) for v in slice_.PixelSpacing)
    for row, column in bright:
        at = place(row, column)
        voxel = (to_voxel @ [-at[0], -at[1], at[2], 1])[:3]  # NIfTI's axes are RAS
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-3)
        assert values[tuple(voxel.round().astype(int))] == pytest.approx(float(image[row, column]), rel=1e-4)
        offset = at - np.array(slice_.ImagePositionPatient, float)
        i, j = offset @ step_row / down, offset @ step_column / right
        assert (i, j) == (pytest.approx(round(i), abs=1e-3), pytest.approx(round(j), abs=1e-3))
        np.testing.assert_allclose(offset, step_row * i * down + step_column * j * right, atol=1e-3)
        assert pixels[round(i), round(j)] / pixels.max() == pytest.approx(float(image[row, column] / image.max()), 0.01)


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    """The bundled head at R = 4 as fastMRI lays its test files out: a mask, zeros, and no reference."""
    mask = choose_mask(open_scan(BUNDLED), 4, 0)
    with h5py.File(BUNDLED) as full, h5py.File(tmp_path / "head.h5", "w") as file:
        file["kspace"] = full["kspace"][()] * mask.numpy()
        file["mask"] = mask.numpy() > 0
        file["ismrmrd_header"] = full["ismrmrd_header"][()]
        file.attrs.update(acceleration=4, num_low_frequency=18, acquisition="AXT1", patient_id="Q4711Z")
    return tmp_path / "head.h5"


def test_a_fastmri_test_file_gives_what_its_fully_sampled_scan_gives(mrgen, test_file, tmp_path):
    """The same lines, so the image of the retrospective run, in the units of the scanner; and no reference.

    Its noise is read beside the object, and that of the fully sampled scan in the corners of its image, so the coils
    weigh differently: that is most of the difference.
    """
    recipe = tmp_path / "quick.toml"
    recipe.write_text('description = "d"\nmethod = "sense"\nregularisation = 0.01\niterations = 15\n')
    for name, arguments in (("prospective", (test_file,)), ("retrospective", (BUNDLED, "--R", 4))):
        options = ("--recipe", recipe, "--formats", "hdf5", "-o", tmp_path / name)
        code, text, _ = mrgen("recon", *arguments, *options)
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert (code, report["coil_maps"]["sets"]) == (0, [1])
        assert ("metrics" in report, "PSNR" in text) == (name == "retrospective",) * 2
    with h5py.File(tmp_path / "prospective/head.h5") as found, h5py.File(tmp_path / "retrospective/brain.h5") as other:
        assert np.array_equal(found["mask"][()], other["mask"][()])
        assert ("rss" in found, "reference" in found) == (False, False)
        assert "Q4711Z" not in str(dict(found.attrs))
        image, same, full = found["reconstruction"][0], other["reconstruction"][0], other["reference"][0]
    assert np.linalg.norm(image - same) < 0.2 * np.linalg.norm(same)
    object_ = full > 0.2 * np.quantile(full, 0.99)
    assert best_scale(image[object_], full[object_]) == pytest.approx(1, abs=0.05)
