"""The DICOM objects, looked at by pydicom, highdicom, dciodvfy, dcentvfy, dcm2niix and dcmqi."""

from __future__ import annotations

import re
from dataclasses import replace

import highdicom
import nibabel
import numpy as np
import oblique
import pydicom
import pytest
from exporting import DICOM, KINDS, converted, export, needs, objects, run, series

from mrgen.review.identity import identity_of_options
from mrgen.scans.geometry import Geometry

RAS = np.array([-1, -1, 1])
NOTICE = "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE"
SERIES = {"1001_mean": "reconstruction", "1002_std": "std"}
INTERVAL = {"1006_interval": "interval"}
MAPS = {"1003_std_pm/std.dcm": lambda: oblique.images()["std"], "1007_interval_pm/interval.dcm": oblique.interval}


@pytest.mark.parametrize("kind", ["oblique", "nominal", "no samples", "repetitions"])
def test_validators_find_nothing(exported, tmp_path, kind):
    needs("dciodvfy", "dicom3tools")
    geometry = oblique.oblique()
    if kind == "oblique":
        out = exported()
    elif kind == "nominal":
        out = export(tmp_path / "out", Geometry(), replace(DICOM, **KINDS), calibrated=True)
    elif kind == "no samples":
        out = export(tmp_path / "out", geometry, samples=None)
    else:
        geometry = replace(geometry, positions=geometry.positions[:2] * 2)
        out = export(tmp_path / "out", geometry, replace(DICOM, **KINDS), calibrated=True)
        assert len(list((out / "dicom/1004_flagged").iterdir())) == 2
    files = sorted((out / "dicom").rglob("*.dcm"))
    chosen = [path for path in files if path.name == "00001.dcm" or not path.stem.isdecimal()]
    for path in chosen:  # dciodvfy exits with 0 whatever it finds
        complaints = [line for line in run("dciodvfy", path).splitlines() if line.startswith(("Error", "Warning"))]
        assert not complaints, path
    assert run("dcentvfy", *files) == ""


@pytest.mark.parametrize("reverse", [False, True])
def test_every_slice_lies_where_the_raw_data_say(exported, reverse):
    for folder in SERIES:
        slices = series(exported(reverse), folder)
        assert len(slices) == oblique.SLICES
        for i, ds in enumerate(slices):
            assert (ds.Rows, ds.Columns, ds.InstanceNumber) == (oblique.ROWS, oblique.COLUMNS, i + 1)
            along_x, along_y = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
            dy, dx = map(float, ds.PixelSpacing)
            for row, column in ((0, 0), oblique.MARKERS[i]):
                found = np.array(ds.ImagePositionPatient, float) + column * dx * along_x + row * dy * along_y
                np.testing.assert_allclose(found, oblique.world(row, column, i, reverse), atol=1e-6)
            if folder == "1001_mean":
                assert np.unravel_index(ds.pixel_array.argmax(), ds.pixel_array.shape) == oblique.MARKERS[i]
            assert ds.SliceThickness == 3.0


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("folder", list(SERIES))
def test_dcm2niix_and_our_nifti_agree_in_the_world(exported, tmp_path, folder, reverse):
    needs("dcm2niix", "dcm2niix")
    said = run("dcm2niix", "-z", "n", "-b", "n", "-f", "scan", "-o", tmp_path, exported(reverse) / "dicom" / folder)
    assert (tmp_path / "scan.nii").exists(), said
    assert "siemens" not in said.lower()
    theirs = nibabel.load(tmp_path / "scan.nii")
    ours = nibabel.load(exported(reverse) / "nifti" / f"{folder.partition('_')[2]}.nii.gz")
    assert theirs.shape == ours.shape
    slope = series(exported(reverse), folder)[0].RealWorldValueMappingSequence[0].RealWorldValueSlope
    true = oblique.images()[SERIES[folder]]
    scale = np.abs(theirs.get_fdata()).max() / true.max()  # dcm2niix may apply the mapping
    assert scale == pytest.approx(1, rel=1e-3) or scale == pytest.approx(1 / slope, rel=1e-3)
    for row, column, i in [(0, 0, 0), (23, 1, 4), *((*marker, i) for i, marker in enumerate(oblique.MARKERS))]:
        place = RAS * oblique.world(row, column, i, reverse)
        for image, factor, exact in ((theirs, scale, 0.6 * slope), (ours, 1, 1e-12)):
            voxel = np.linalg.solve(image.affine, [*place, 1])[:3]
            np.testing.assert_allclose(voxel, voxel.round(), atol=2e-4)
            value = image.get_fdata()[tuple(voxel.round().astype(int))]
            assert abs(value / factor - true[i, row, column]) < exact


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", list(MAPS))
def test_the_float_map_is_bit_identical_and_in_its_place(exported, name, reverse):
    image = highdicom.imread(exported(reverse) / "dicom" / name)
    volume = image.get_volume()
    true = MAPS[name]()
    for row, column, i in [(0, 0, 0), (23, 1, 4), (7, 16, 2), (3, 12, 3), (8, 5, 0)]:
        voxel = np.linalg.solve(volume.affine, [*oblique.world(row, column, i, reverse), 1])[:3]
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-4)
        assert np.float32(volume.array[tuple(voxel.round().astype(int))]) == true[i, row, column]

    ds = pydicom.dcmread(exported(reverse) / "dicom" / name)
    frames = ds.PerFrameFunctionalGroupsSequence
    positions = np.array([f.PlanePositionSequence[0].ImagePositionPatient for f in frames], float)
    shared = ds.SharedFunctionalGroupsSequence[0]
    along_x, along_y = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    assert (np.diff(positions @ np.cross(along_x, along_y)) > 0).all()  # dcmqi believes the order
    assert [f.FrameContentSequence[0].DimensionIndexValues for f in frames] == [1, 2, 3, 4, 5]
    sources = [f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for f in frames]
    mean = {d.SOPInstanceUID: np.array(d.ImagePositionPatient, float) for d in series(exported(reverse), "1001_mean")}
    np.testing.assert_allclose([mean[uid] for uid in sources], positions, atol=1e-9)
    assert shared.FrameAnatomySequence[0].AnatomicRegionSequence  # without it dcmqi crashes
    assert shared.FrameVOILUTSequence[0].VOILUTFunction == "LINEAR_EXACT"  # as its width is below 1
    assert float(shared.FrameVOILUTSequence[0].WindowWidth) < 1
    mapping = shared.RealWorldValueMappingSequence if "RealWorldValueMappingSequence" in shared else frames[0][
        "RealWorldValueMappingSequence"
    ].value  # fmt: skip
    assert (mapping[0].RealWorldValueSlope, mapping[0].RealWorldValueIntercept) == (1, 0)
    assert ds.Modality == "MR"
    assert ds.PatientPosition == "HFS"
    assert [e.Manufacturer for e in ds.ContributingEquipmentSequence] == [
        "Scanner: SIEMENS",
        "Open-source mrgen project",
    ]


@pytest.mark.parametrize("reverse", [False, True])
def test_dcmqi_reads_the_map_in_its_place(exported, tmp_path, reverse):
    image, true = (
        converted("paramap2itkimage", exported(reverse) / "dicom/1003_std_pm/std.dcm", tmp_path),
        oblique.images()["std"],
    )
    for row, column, i in [(0, 0, 0), (23, 1, 4), (7, 16, 2), (3, 12, 3)]:
        voxel = np.linalg.solve(image.affine, [*RAS * oblique.world(row, column, i, reverse), 1])[:3]
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-3)
        assert np.float32(image.get_fdata()[tuple(voxel.round().astype(int))]) == true[i, row, column]


def test_one_scale_through_all_series(exported):
    images, slopes = oblique.images() | {"interval": oblique.interval()}, set()
    samples = {f"110{k + 1}_sample": images["reconstruction"] * np.float32(1 + 0.01 * k) for k in (0, 1)}
    for folder, true in {**{f: images[n] for f, n in (SERIES | INTERVAL).items()}, **samples}.items():
        for ds, image in zip(series(exported(), folder), true, strict=True):
            slope = ds.RealWorldValueMappingSequence[0].RealWorldValueSlope
            slopes.add(slope)
            assert ds.pixel_array.max() <= 32767
            assert np.abs(ds.pixel_array - np.minimum(image / slope, 32767)).max() < 0.51
            for window in (ds.WindowCenter, ds.WindowWidth):
                assert window == int(window) >= 1
    assert len(slopes) == 1
    assert 1 / slopes.pop() == pytest.approx(16000 / np.percentile(images["reconstruction"], 99.9))


def test_bright_pixels_are_clipped_and_an_empty_image_is_no_error(tmp_path, monkeypatch):
    images = oblique.images()
    images["reconstruction"][2, 5, 5] = 1
    images["zero_filled"] *= 0
    monkeypatch.setattr(oblique, "images", lambda _: images)
    out = export(tmp_path / "bright", oblique.oblique())
    assert series(out, "1001_mean")[2].pixel_array[5, 5] == 32767
    for image in images.values():
        image *= 0
    out = export(tmp_path / "empty", oblique.oblique())
    assert not any(ds.pixel_array.any() for ds in series(out, "1001_mean"))


def test_the_tags_of_the_series(exported):
    mean, std = (series(exported(), folder) for folder in SERIES)
    assert [list(s[0].ImageType) for s in (mean, std)] == [
        ["DERIVED", "PRIMARY", "OTHER", "MEAN"], ["DERIVED", "SECONDARY", "OTHER", "STD_DEV"]
    ]  # fmt: skip
    assert [s[0].SeriesNumber for s in (mean, std)] == [1001, 1002]
    for one, other in zip(mean, std, strict=True):
        assert [item.ReferencedSOPInstanceUID for item in other.SourceImageSequence] == [one.SOPInstanceUID]
        assert other.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        for ds in (one, other):
            assert (ds.ScanningSequence, ds.SequenceVariant, ds.MRAcquisitionType) == ("RM", "NONE", "2D")
            assert (ds.RepetitionTime, ds.EchoTime, ds.MagneticFieldStrength) == (500, 9.8, 2.89)
            assert ds.PatientPosition == "HFS"
            assert "RescaleSlope" not in ds  # which dciodvfy warns of in this class
            for fact in ("2 posterior samples", "R = 4.00", "prior " + 6 * "ab", "seed 3", NOTICE):
                assert fact in ds.DerivationDescription
    equipment = mean[0].ContributingEquipmentSequence
    assert [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in equipment] == ["109101", "109102"]
    assert [item.Manufacturer for item in equipment] == ["Scanner: SIEMENS", "Open-source mrgen project"]
    for item in (*equipment, mean[0]):  # dcm2niix would take them for scanners of these
        assert not re.match("SI|GE|HI|ME|PH|TO|CA|CP|UI|BR|MR|HY", item.Manufacturer, re.IGNORECASE)


def test_foreign_text_is_one_value(tmp_path, monkeypatch):
    odd = oblique.HEADER.replace("SIEMENS", "Some\\one\n" + 70 * "x").replace("HFS", "upside down")
    monkeypatch.setattr(oblique, "HEADER", odd.replace("<TE>9.8</TE>", "<TE>1</TE><TE>2</TE>"))
    for ds in objects(export(tmp_path / "out", oblique.oblique())):
        assert re.fullmatch(r"Scanner: Some/one\?x+\.\.\.", ds.ContributingEquipmentSequence[0].Manufacturer)
        assert (ds.PatientPosition, ds.get("EchoTime")) == ("", None)


def test_the_notice_is_in_every_object(exported, tmp_path):
    for ds in objects(exported()):
        assert ds.ImageComments == NOTICE
        assert NOTICE in ds.DerivationDescription
        assert "research" in ds.SeriesDescription
        assert len(ds.SeriesDescription) <= 64
    for ds in objects(export(tmp_path / "nominal", Geometry())):
        assert ds.ImageComments == f"{NOTICE}. NOMINAL GEOMETRY, L/R NOT VERIFIED"
        assert "nominal geometry" in ds.SeriesDescription
        assert ds.PatientPosition == ""


def test_uids_follow_from_the_content(exported, tmp_path):
    first = objects(exported())
    uids = [ds.SOPInstanceUID for ds in first]
    assert len(set(uids)) == len(uids) == 6 * 5 + 2 + 1
    assert all(pydicom.uid.UID(uid).is_valid for uid in uids)
    for shared in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({ds[shared].value for ds in first if shared in ds}) == 1
    assert len({ds.SeriesInstanceUID for ds in first}) == 9
    both, options = replace(DICOM, **KINDS), {"samples": 2, "calibrated": True}
    again = export(tmp_path / "again", oblique.oblique(), both, **options)
    assert [ds.SOPInstanceUID for ds in objects(again)] == uids
    both.write(tmp_path, again / "scan.h5", print)
    for path in sorted((again / "dicom").rglob("*.dcm")):
        assert path.read_bytes() == (tmp_path / path.relative_to(again)).read_bytes()
    real = replace(both, identity=identity_of_options("4711", "1.2.3"))
    for other in (
        export(tmp_path / "seed", oblique.oblique(), both, **options, seed=4),
        export(tmp_path / "place", replace(oblique.oblique(), thickness=2.5), both, **options),
        export(tmp_path / "patient", oblique.oblique(), real, **options),
    ):
        assert not {ds.SOPInstanceUID for ds in objects(other)} & set(uids)


def test_the_interval_is_named_for_what_it_is(exported):
    for ds in (*series(exported(), "1006_interval"), *series(exported(), "1007_interval_pm")):
        assert "marginal 90% int" in ds.SeriesDescription
        for words in ("marginal", "in-distribution", "2.00 x std", "does not mean correct"):
            assert words in ds.DerivationDescription
    first = series(exported(), "1006_interval")[0]
    assert (first.SeriesNumber, list(first.ImageType)) == (1006, ["DERIVED", "SECONDARY", "OTHER", "INTERVAL"])
    map_ = series(exported(), "1007_interval_pm")[0]
    assert (map_.SeriesNumber, map_.ContentLabel, map_.ImageType[3]) == (1007, "INTERVAL", "MULTIPLICATION")


def test_nobody_is_identified_unless_asked_for(exported, tmp_path):
    for ds in objects(exported()):
        assert (ds.PatientIdentityRemoved, ds.PatientName, ds.PatientBirthDate) == ("YES", "Anonymous^", "")
        assert ds.PatientID == f"MRGEN-{ds.PatientID[-12:]}"
    real = replace(DICOM, identity=identity_of_options("4711", "1.2.3"))
    for ds in objects(export(tmp_path / "real", oblique.oblique(), real)):
        assert (ds.PatientID, ds.StudyInstanceUID, ds.StudyDate) == ("4711", "1.2.3", "")
        assert "PatientIdentityRemoved" not in ds
