"""Readers of image volumes: directions, sizes, order of slices and refusals, on made and on real files."""

from __future__ import annotations

import tarfile
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from mrgen.errors import MrgenError
from mrgen.scans.volumes import open_volume, turn

SAMPLES = Path(__file__).parents[2].parent / "shared/data/dicom/mr_dicom_samples.tar.xz"
# What index (slice, y, x) grows towards, in the patient's (left, posterior, superior): as a radiologist looks at it.
GROWS = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


def head(shape: tuple[int, int, int]) -> np.ndarray:
    """A bright ellipsoid with a brighter spot off its centre, in a field of air."""
    z, y, x = np.meshgrid(*((np.arange(n) - n // 2) / (n / 2) for n in shape), indexing="ij")
    body = (z**2 + y**2 + x**2 < 0.7**2).astype(np.float32)
    return 500 * body + 400 * (((z - 0.2) ** 2 + (y + 0.3) ** 2 + (x - 0.25) ** 2) < 0.02)


def spot(images: np.ndarray) -> tuple[float, ...]:
    """The middle of the brightest spot, in fractions of the half-axes from the centre."""
    where = np.argwhere(images > 0.8 * images.max())
    return tuple((where.mean(0) - np.array(images.shape) // 2) / (np.array(images.shape) / 2))


@pytest.mark.parametrize("plane", GROWS)
@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)))
def test_any_storage_order_is_turned_to_the_plane(plane: str, order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    size = (1.0, 1.5, 2.5)
    steps = np.zeros((3, 3))
    for axis, (world, sign, mm) in enumerate(zip(order, signs, size, strict=True)):
        steps[world, axis] = sign * mm
    indices = np.indices((3, 4, 5)).reshape(3, -1)
    for world in range(3):
        place = (steps @ indices)[world].reshape(3, 4, 5)  # of every voxel, along one of the patient's axes
        turned, voxel = turn(place.astype(np.float32), steps, plane)
        for axis, towards in enumerate(GROWS[plane]):
            assert np.allclose(np.diff(turned, axis=axis), towards[world] * voxel[axis])


def test_an_oblique_volume_goes_to_the_nearest_plane_and_keeps_its_pixels() -> None:
    c, s = np.cos(0.4), np.sin(0.4)
    steps = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([-1.0, 2.0, 3.0])
    array = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    turned, voxel = turn(array, steps, "axial")
    np.testing.assert_array_equal(turned, array[::-1].transpose(2, 1, 0))
    assert voxel == pytest.approx((3, 2, 1))


def test_nifti_is_read_with_its_directions_scaling_and_size(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel reads NIfTI")
    stored = head((20, 32, 24))  # superior, anterior, left
    affine = np.array([[0, 0, -2.0, 0], [0, 1.5, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(stored.astype(np.int16), affine)
    image.header.set_slope_inter(2.0, -3.0)
    nibabel.save(image, tmp_path / "head.nii.gz")
    kind, axial = open_volume(tmp_path / "head.nii.gz")
    assert kind == "nifti"
    assert axial.images.shape == (20, 32, 24)
    assert (axial.fov, axial.thickness) == ((48.0, 48.0), 3.0)
    assert np.diff(axial.heights).tolist() == [3.0] * 19
    assert spot(axial.images.numpy()) == pytest.approx(
        (0.2, 0.24, 0.25), abs=0.06
    )  # y is mirrored about its last pixel
    _, coronal = open_volume(tmp_path / "head.nii.gz", "coronal")
    assert coronal.images.shape == (32, 20, 24)
    assert coronal.fov == (60.0, 48.0)
    _, sagittal = open_volume(tmp_path / "head.nii.gz", "sagittal")
    assert sagittal.images.shape == (24, 20, 32)
    assert spot(sagittal.images.numpy())[1] == pytest.approx(-0.3, abs=0.06)  # superior is up


def test_nifti_that_is_no_volume_is_refused(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel", reason="nibabel reads NIfTI")
    for name, array, match in (
        ("series", np.ones((20, 20, 20, 3), np.float32), "one volume"),
        ("complex", np.ones((20, 20, 20), np.complex64), "real numbers"),
        ("flat", np.ones((20, 20, 20), np.float32), "affine"),
    ):
        image = nibabel.Nifti1Image(array, np.eye(4))
        if name == "flat":
            image.set_sform(np.diag([1.0, 1, 0, 1]), code=2)
        nibabel.save(image, tmp_path / f"{name}.nii")
        with pytest.raises(MrgenError, match=match):
            open_volume(tmp_path / f"{name}.nii")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(MrgenError, match=r"broken.nii.gz: not a readable NIfTI file"):
        open_volume(tmp_path / "broken.nii.gz")


def write_series(folder: Path, array: np.ndarray, **changes: object) -> None:
    """An axial series (slice, y, x), 3 mm apart, its files in no order; `changes` are of the last file."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom reads DICOM")
    from pydicom.dataset import FileMetaDataset

    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(array):
        s = pydicom.Dataset()
        s.file_meta = FileMetaDataset()
        s.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        s.SOPClassUID, s.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"1.2.3.{i}"
        s.PatientName, s.PatientID, s.Modality, s.SeriesInstanceUID = "Doe^Jane", "Q4711Z", "MR", "1.2.3"
        s.Rows, s.Columns, s.SamplesPerPixel, s.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
        s.BitsAllocated = s.BitsStored = 16
        s.HighBit, s.PixelRepresentation = 15, 0
        s.PixelSpacing, s.SliceThickness = [1.5, 2.0], 2.0
        s.ImageOrientationPatient, s.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * i]
        s.RescaleSlope, s.RescaleIntercept = i + 1, 0  # each slice has its own
        s.PixelData = (pixels / (i + 1)).round().astype(np.uint16).tobytes()
        if i == len(array) - 1:
            for name, value in changes.items():
                setattr(s, name, value)
        s.save_as(folder / f"{hash((i, 7)) % 9973:05d}_{i}.dcm", enforce_file_format=True)


def test_dicom_is_sorted_by_position_and_rescaled(tmp_path: Path) -> None:
    array = head((20, 32, 24))
    write_series(tmp_path / "series", array)
    (tmp_path / "series/readme.txt").write_text("not an image")
    kind, volume = open_volume(tmp_path / "series")
    assert kind == "dicom"
    assert volume.images.shape == (20, 32, 24)
    assert (volume.fov, volume.thickness) == ((48.0, 48.0), 3.0)
    body = array > 0
    np.testing.assert_allclose(volume.images.numpy()[body], array[body] / 900, atol=0.02)
    _, coronal = open_volume(tmp_path / "series", "coronal")
    assert coronal.images.shape == (32, 20, 24)
    assert spot(coronal.images.numpy()) == pytest.approx((-0.3, -0.3, 0.25), abs=0.08)  # superior is up


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"SeriesInstanceUID": "1.2.4"}, "2 different values of SeriesInstanceUID"),
        ({"PixelSpacing": [1.0, 1.0]}, "2 different values of PixelSpacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "2 different values of ImageOrientationPatient"),
        ({"ImagePositionPatient": [0, 0, 50.0]}, "3.00 to 23.00 mm apart"),
        ({"ImagePositionPatient": [0, 0, 27.0]}, "0.00 to 3.00 mm apart"),
    ],
)
def test_mixed_series_are_refused_without_naming_the_patient(
    tmp_path: Path, changes: dict[str, object], match: str
) -> None:
    write_series(tmp_path / "series", head((11, 32, 24)), **changes)
    with pytest.raises(MrgenError, match=match) as error:
        open_volume(tmp_path / "series")
    assert "Doe" not in str(error.value)
    assert "Q4711Z" not in str(error.value)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="pydicom reads DICOM")
    with pytest.raises(MrgenError, match="no DICOM file"):
        open_volume(tmp_path)


@pytest.mark.skipif(not SAMPLES.is_file(), reason="no mr_dicom_samples.tar.xz in the data folder beside the repository")
@pytest.mark.parametrize(
    ("series", "shape", "fov", "gap"),
    [
        ("sag_anon", (12, 256, 256), 220.0, 0.9),
        ("siemens/anatomical/001", (4, 256, 256), 256.0, 1.0),
        ("ge/anatomical/001_implicit", (4, 256, 256), 256.0, 1.0),
        ("philips/anatomical/001", (4, 240, 240), 250.0, 0.6),
        ("hitachi/anatomical/001", (4, 64, 64), 150.0, 4.0),
    ],
)
def test_real_series_of_four_vendors(
    tmp_path: Path, series: str, shape: tuple[int, ...], fov: float, gap: float
) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom reads DICOM")
    with tarfile.open(SAMPLES) as archive:
        archive.extractall(tmp_path, [m for m in archive if m.name.startswith(series + "/")], filter="data")
    _, volume = open_volume(tmp_path / series)
    assert tuple(volume.images.shape) == shape
    assert volume.fov == pytest.approx((fov, fov), abs=0.01)
    assert volume.thickness == pytest.approx(gap, abs=0.02)
    files = [pydicom.dcmread(f) for f in (tmp_path / series).iterdir()]
    x, y = np.reshape(files[0].ImageOrientationPatient, (2, 3)).astype(float)
    lowest = min(files, key=lambda f: np.dot(np.cross(x, y), f.ImagePositionPatient))
    pixels, inside = lowest.pixel_array.astype(float), volume.images[0].numpy() > 0.2
    assert np.corrcoef(pixels[inside], volume.images[0].numpy()[inside])[0, 1] > 0.99


@pytest.mark.parametrize(("name", "heights"), [("slices", [0.0, 0.0, 0.0]), ("vol", [-1.0, 0.0, 1.0])])
def test_arrays_are_read_by_name(tmp_path: Path, name: str, heights: list[float]) -> None:
    array = head((3, 32, 24)).astype(np.uint16)
    np.savez(tmp_path / "images.npz", **{name: array}, subject=np.arange(3))
    kind, volume = open_volume(tmp_path / "images.npz")
    assert kind == "npz"
    assert list(volume.heights) == heights  # `slices` are of several people: all in the middle of the coils
    np.testing.assert_allclose(volume.images[1].numpy()[array[1] > 0], array[1][array[1] > 0] / array.max(), atol=0.02)


def test_the_only_array_is_read_along_any_axis(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", anything=head((20, 32, 24)))
    for axis, shape in (("0", (20, 32, 24)), ("1", (32, 20, 24)), ("2", (24, 20, 32))):
        assert open_volume(tmp_path / "images.npz", axis)[1].images.shape == shape


def test_other_arrays_and_files_are_refused(tmp_path: Path) -> None:
    for name, arrays, match in (
        ("two", {"a": np.ones((2, 32, 32)), "b": np.ones(3)}, "arrays a, b"),
        ("complex", {"vol": np.ones((2, 32, 32), np.complex64)}, "expected real numbers"),
        ("flat", {"vol": np.ones((32, 32))}, "expected real numbers"),
        ("objects", {"vol": np.array([{}, {}])}, "not a readable .npz"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(MrgenError, match=match):
            open_volume(tmp_path / f"{name}.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 nothing")
    (tmp_path / "picture.png").write_bytes(b"")
    for name, axis, match in (
        ("broken.npz", None, "not a readable .npz"),
        ("picture.png", None, "expected phantom, a .nii"),
        ("absent.nii", None, "no such file"),
        ("two.npz", "axial", "expected 0, 1 or 2 for npz"),
        ("absent.nii", "0", "no such file"),
    ):
        with pytest.raises(MrgenError, match=match):
            open_volume(tmp_path / name, axis)
