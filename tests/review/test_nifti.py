from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import oblique
import pytest

from mrgen.errors import MrgenError
from mrgen.review.geometry import place
from mrgen.review.nifti import nifti_image, write_nifti
from mrgen.review.stored import read_stored
from mrgen.scans.geometry import Geometry

RAS = np.array([-1, -1, 1])


@pytest.fixture
def written(tmp_path):
    """written(geometry, **options): the folder with the NIfTI files of a result."""

    def write(geometry, **options):
        stored = read_stored(oblique.write_result(tmp_path / "scan.h5", geometry, **options))
        count, *matrix = stored.shape
        folder = tmp_path / "nifti"
        folder.mkdir()
        write_nifti(folder, stored, place(stored.geometry, count, tuple(matrix)))
        return folder

    return write


@pytest.mark.parametrize("reverse", [False, True])
def test_markers_are_where_they_belong(written, reverse):
    folder = written(oblique.oblique(reverse))
    assert sorted(p.name for p in folder.iterdir()) == ["mean.nii.gz", "std.nii.gz", "zero_filled.nii.gz"]
    image = nibabel.load(folder / "mean.nii.gz")
    pixels = image.get_fdata()
    assert pixels.shape == (oblique.COLUMNS, oblique.ROWS, oblique.SLICES)
    for affine in (image.get_sform(), image.get_qform()):
        for i, (row, column) in enumerate(oblique.MARKERS):
            found = np.unravel_index(pixels[:, :, i].argmax(), pixels.shape[:2])
            assert found == (column, row)
            place_found = (affine @ [*found, i, 1])[:3]
            np.testing.assert_allclose(place_found, RAS * oblique.world(row, column, i, reverse), atol=1e-4)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert image.header.get_xyzt_units()[0] == "mm"
    for name, key in (("mean", "reconstruction"), ("std", "std"), ("zero_filled", "zero_filled")):
        stored = nibabel.load(folder / f"{name}.nii.gz")
        assert stored.get_data_dtype() == np.float32
        assert np.array_equal(np.asarray(stored.dataobj).transpose(2, 1, 0), oblique.images()[key])
        assert b"Research use only. Not for diagnostic use." in stored.header["descrip"].item()


def test_nominal_geometry_is_marked(written):
    folder = written(Geometry(), samples=None)
    assert sorted(p.name for p in folder.iterdir()) == ["reconstruction.nii.gz", "zero_filled.nii.gz"]
    image = nibabel.load(folder / "zero_filled.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 2)
    text = image.header["descrip"].item().decode()
    assert text == "NOMINAL GEOMETRY, L/R UNVERIFIED. Research use only. Not for diagnostic use."
    np.testing.assert_allclose(image.affine, [[-1, 0, 0, 8], [0, -1, 0, 12], [0, 0, 1, -2], [0, 0, 0, 1]])


def test_repetitions_are_the_fourth_axis(written):
    geometry = oblique.oblique()
    image = nibabel.load(written(replace(geometry, positions=geometry.positions * 2)) / "mean.nii.gz")
    assert image.shape == (oblique.COLUMNS, oblique.ROWS, 5, 2)
    volume = oblique.images(10)["reconstruction"]
    assert np.array_equal(np.asarray(image.dataobj)[..., 3, 1].T, volume[8])


def test_slices_that_step_aslant_have_no_quaternion():
    placement = place(oblique.oblique(), oblique.SLICES, (oblique.ROWS, oblique.COLUMNS))
    aslant = replace(placement, origins=placement.origins + np.multiply.outer(np.arange(5), placement.along_x))
    image = nifti_image(oblique.images()["std"], aslant)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 0)
    np.testing.assert_allclose(image.affine[:, 2] * [-1, -1, 1, 1], aslant.affine()[:, 2], atol=1e-6)


def test_what_nifti_cannot_hold_is_refused(written):
    geometry = oblique.oblique()
    with pytest.raises(MrgenError, match="not whole repetitions"):
        written(replace(geometry, positions=geometry.positions * 2 + geometry.positions[:2]))
