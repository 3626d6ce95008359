"""Geometry and identity by the scanner's own DICOM series of the same scan."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import oblique
import pydicom
import pytest

from mrgen.errors import MrgenError
from mrgen.review.export import Exports
from mrgen.review.geometry import place
from mrgen.review.identity import ANONYMOUS, Names
from mrgen.review.reference import open_reference, place_by_reference
from mrgen.scans.geometry import Geometry

TAGS = {
    "PatientName": "Müller^Änne", "PatientID": "Q4711Z", "PatientBirthDate": "19700101", "PatientSex": "F",
    "StudyInstanceUID": "1.2.3.4", "StudyID": "77", "AccessionNumber": "A88", "StudyDate": "20010203",
    "StudyTime": "121314", "FrameOfReferenceUID": "1.2.3.5", "PatientPosition": "HFP", "BodyPartExamined": "HEAD",
    "ReferringPhysicianName": "Who^Dr",
}  # fmt: skip
WAYS = [(t, y, x, r) for t in (False, True) for y in (False, True) for x in (False, True) for r in (False, True)]


def write_series(
    folder: Path, way: tuple[bool, bool, bool, bool], shift: int = 0, slices: int = oblique.SLICES
) -> None:
    """The oblique phantom as a scanner may show it: transposed, flipped, slices reversed, shifted in x."""
    transpose, flip_y, flip_x, reverse = way
    volume = 1e6 * oblique.images()["reconstruction"]
    folder.mkdir()
    for number in range(slices):
        i = oblique.SLICES - 1 - number if reverse else number
        rows, columns = np.mgrid[: oblique.ROWS, : oblique.COLUMNS]
        columns = columns + shift
        if transpose:
            rows, columns = rows.T, columns.T
        rows, columns = (v[:: -1 if flip_y else 1, :: -1 if flip_x else 1] for v in (rows, columns))
        first, down, right = (oblique.world(rows[j], columns[j], i) for j in ((0, 0), (1, 0), (0, 1)))
        ds = pydicom.Dataset()
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        ds.SpecificCharacterSet = "ISO_IR 100"
        for keyword, value in TAGS.items():
            setattr(ds, keyword, value)
        ds.SOPClassUID, ds.SOPInstanceUID = pydicom.uid.MRImageStorage, f"1.2.3.6.{number + 1}"
        ds.SeriesInstanceUID, ds.InstanceNumber, ds.SliceThickness = "1.2.3.7", number + 1, 3
        sizes = [np.linalg.norm(v - first) for v in (down, right)]
        ds.PixelSpacing = [round(float(size), 6) for size in sizes]
        cosines = [*((right - first) / sizes[1]), *((down - first) / sizes[0])]
        ds.ImageOrientationPatient = [round(float(v), 9) for v in cosines]
        ds.ImagePositionPatient = [round(float(v), 6) for v in first]
        pixels = volume[i][rows, columns % oblique.COLUMNS].astype(np.uint16)
        ds.Rows, ds.Columns = pixels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit = 15
        ds.PixelData = pixels.tobytes()
        ds.save_as(folder / f"{(number * 7) % 11:02d}.dcm", enforce_file_format=True)  # names tell no order


@pytest.mark.parametrize("way", WAYS)
def test_the_images_tell_how_the_arrays_lie(tmp_path, way):
    write_series(tmp_path / "series", way)
    reference = open_reference(tmp_path / "series", oblique.SLICES, (oblique.ROWS, oblique.COLUMNS))
    image = oblique.images()["reconstruction"] * np.float32(1 + 0.01)
    placement = place_by_reference(reference, image, 0)
    expected = place(oblique.oblique(), oblique.SLICES, image.shape[1:])
    np.testing.assert_allclose(placement.origins, expected.origins, atol=1e-5)
    np.testing.assert_allclose(placement.affine(), expected.affine(), atol=1e-5)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shift_by_a_pixel_is_found(tmp_path, shift):
    write_series(tmp_path / "series", (False, False, True, False), shift)
    reference = open_reference(tmp_path / "series", oblique.SLICES, (oblique.ROWS, oblique.COLUMNS))
    image = oblique.images()["reconstruction"]
    placement = place_by_reference(reference, image, 0)
    np.testing.assert_allclose(placement.origins, place(oblique.oblique(), 5, image.shape[1:]).origins, atol=1e-5)


def test_a_part_of_the_slices_lies_where_it_belongs(tmp_path):
    write_series(tmp_path / "series", (False, True, False, True))
    reference = open_reference(tmp_path / "series", oblique.SLICES, (oblique.ROWS, oblique.COLUMNS))
    image = oblique.images()["reconstruction"]
    placement = place_by_reference(reference, image[1:3], 1)
    np.testing.assert_allclose(placement.origins, place(oblique.oblique(), 5, image.shape[1:]).origins[1:3], atol=1e-5)


def test_images_that_tell_no_left_and_right_are_refused(tmp_path):
    write_series(tmp_path / "series", (False, False, False, False))
    reference = open_reference(tmp_path / "series", oblique.SLICES, (oblique.ROWS, oblique.COLUMNS))
    image = oblique.images()["reconstruction"]
    noise = np.random.default_rng(0).random(image.shape).astype(np.float32)
    for other in (image + image[:, :, ::-1], noise):  # symmetric; of another scan
        with pytest.raises(MrgenError, match="do not tell how this scan lies"):
            place_by_reference(reference, other, 0)


@pytest.mark.parametrize(
    ("slices", "matrix", "match"),
    [(5, (24, 16), "5 images of 24 x 17, expected 5 of 24 x 16"), (6, (24, 17), "expected 6 of 24 x 17")],
)
def test_another_series_is_refused(tmp_path, slices, matrix, match):
    write_series(tmp_path / "series", (False, False, False, False))
    with pytest.raises(MrgenError, match=match):
        open_reference(tmp_path / "series", slices, matrix)


def test_patient_and_study_are_the_series_own(tmp_path):
    write_series(tmp_path / "series", (True, True, False, False))
    oblique.write_result(tmp_path / "scan.h5", Geometry())
    said: list[str] = []
    Exports(reference=tmp_path / "series").write(tmp_path, tmp_path / "scan.h5", said.append)
    assert not said  # the geometry is real
    found = [pydicom.dcmread(path) for path in (tmp_path / "dicom").rglob("*.dcm")]
    assert len(found) == 2 * oblique.SLICES + 1
    for ds in found:
        assert {keyword: str(ds[keyword].value) for keyword in TAGS} == TAGS
        assert "PatientIdentityRemoved" not in ds
        assert "NOMINAL" not in ds.ImageComments
        assert ds.SeriesInstanceUID != "1.2.3.7"
    assert b"Q4711Z" not in b"".join(path.read_bytes() for path in (tmp_path / "nifti").iterdir())


def test_anonymous_names_hold_nothing_but_the_content():
    one, two = (Names.of(content, ANONYMOUS) for content in (("a",), ("b",)))
    assert one.uid("study") == Names.of(("a",), ANONYMOUS).uid("study") != two.uid("study") != one.uid("series")


def test_a_real_series_places_its_own_images(tmp_path):
    """Of a scanner, with every transposition and flip of its images."""
    archive = Path(__file__).parents[2].parent / "shared/data/dicom/mr_dicom_samples.tar.xz"
    if not archive.exists():
        pytest.skip("no ../shared/data/dicom/mr_dicom_samples.tar.xz beside the repository")
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and "siemens/anatomical/001/" in m.name]
        tar.extractall(tmp_path, members, filter="data")
    folder = (tmp_path / members[0].name).parent
    first = pydicom.dcmread(tmp_path / members[0].name)
    matrix = int(first.Rows), int(first.Columns)
    reference = open_reference(folder, len(members), matrix)
    truth = reference.placement()
    pixels = np.stack([ds.pixel_array for ds in reference.images]).astype(np.float32)
    placement = place_by_reference(reference, pixels[:, ::-1], 0)
    np.testing.assert_allclose(placement.along_y, -truth.along_y)
    np.testing.assert_allclose(placement.along_x, truth.along_x)
    np.testing.assert_allclose(placement.origins, truth.origins + (matrix[0] - 1) * truth.spacing[0] * truth.along_y)
