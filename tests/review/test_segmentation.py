"""The segmentation of flagged regions, looked at by pydicom, highdicom and dcmqi; validators are in test_dicom.py."""

from __future__ import annotations

from dataclasses import replace

import h5py
import highdicom
import numpy as np
import oblique
import pydicom
import pytest
from exporting import DICOM, converted, export, objects, series

from mrgen.errors import MrgenError
from mrgen.review.identity import identity_of_options

FLAGGED = replace(DICOM, flag=oblique.FLAG)


def check_mask(array: np.ndarray, affine: np.ndarray, to_world: np.ndarray, reverse: bool) -> None:
    """`array` is 1 at the voxels of oblique.WIDE, found by their place in the patient, and nowhere else."""
    voxels = set()
    for i, row, column in oblique.WIDE:
        voxel = np.linalg.solve(affine, [*to_world * oblique.world(row, column, i, reverse), 1])[:3]
        np.testing.assert_allclose(voxel, voxel.round(), atol=1e-3)
        voxels.add(tuple(voxel.round().astype(int)))
    assert {tuple(v) for v in np.argwhere(array)} == voxels
    assert len(voxels) == len(oblique.WIDE)


@pytest.mark.parametrize("reverse", [False, True])
def test_highdicom_finds_the_regions_in_their_place(exported, reverse):
    segmentation = highdicom.seg.segread(exported(reverse) / "dicom/1004_flagged/flagged.dcm")
    volume = segmentation.get_volume(combine_segments=True)
    check_mask(volume.array, volume.affine, np.ones(3), reverse)
    mean = {ds.SOPInstanceUID: ds for ds in series(exported(reverse), "1001_mean")}
    frames = segmentation.PerFrameFunctionalGroupsSequence
    sources = [f.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID for f in frames]
    assert sorted(mean[uid].InstanceNumber for uid in sources) == [1, 3, 4]
    for uid, frame in zip(sources, frames, strict=True):
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(position, np.array(mean[uid].ImagePositionPatient, float), atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_dcmqi_finds_the_regions_in_their_place(exported, tmp_path, reverse):
    image = converted("segimage2itkimage", exported(reverse) / "dicom/1004_flagged/flagged.dcm", tmp_path)
    check_mask(image.get_fdata(), image.affine, np.array([-1, -1, 1]), reverse)


def test_a_segment_says_what_it_is_and_no_more(exported):
    (ds,) = series(exported(), "1004_flagged")
    assert (ds.SeriesNumber, ds.Modality, ds.SegmentationType, ds.BurnedInAnnotation) == (1004, "SEG", "BINARY", "NO")
    (segment,) = ds.SegmentSequence
    assert segment.SegmentLabel == "Uncertain region"
    assert "above 0.2 x the slice's 99th percentile" in segment.SegmentDescription
    assert "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE" in segment.SegmentDescription
    assert "no finding" in ds.DerivationDescription
    assert "marginal" in ds.DerivationDescription
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Spatial and Relational Concept"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Region in Space"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("mrgen --flag", "0.1.0")
    assert algorithm.AlgorithmParameters == "threshold=0.2"
    assert [e.Manufacturer for e in ds.ContributingEquipmentSequence] == [
        "Scanner: SIEMENS",
        "Open-source mrgen project",
    ]


def test_repetitions_have_a_segmentation_each_where_there_are_regions(tmp_path, monkeypatch):
    monkeypatch.setattr(oblique, "WIDE", [voxel for voxel in oblique.WIDE if voxel[0] == 3])
    geometry = replace(oblique.oblique(), positions=oblique.oblique().positions[:2] * 2)
    out = export(tmp_path / "out", geometry, FLAGGED, calibrated=True)
    (path,) = (out / "dicom/1004_flagged").iterdir()
    assert path.name == "flagged_00002.dcm"
    ds = pydicom.dcmread(path)
    sources = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence
    assert sources[0].ReferencedSOPInstanceUID == series(out, "1001_mean")[3].SOPInstanceUID


def test_no_region_no_segmentation(tmp_path, capsys):
    out = export(tmp_path / "out", oblique.oblique(), replace(DICOM, flag=0.9), calibrated=True)
    assert not (out / "dicom/1004_flagged").exists()
    assert (
        "flag    interval above 0.9 of the brightest tissue: no region, so no segmentation" in capsys.readouterr().out
    )
    FLAGGED.write(out, out / "scan.h5", print)
    assert "regions in 3 of 5 slices" in capsys.readouterr().out


def test_an_interval_without_its_calibration_is_refused(tmp_path):
    path = oblique.write_result(tmp_path / "scan.h5", oblique.oblique(), calibrated=True)
    with h5py.File(path, "r+") as file:
        del file.attrs["interval_factor"]
    with pytest.raises(MrgenError, match=r"scan.h5: it lacks interval_factor: .*; reconstruct the scan again"):
        FLAGGED.write(tmp_path, path, print)


def test_another_threshold_is_another_series_of_the_same_study(tmp_path):
    out = export(tmp_path / "out", oblique.oblique(), FLAGGED, calibrated=True)
    (one,), others = series(out, "1004_flagged"), {ds.SOPInstanceUID for ds in objects(out)}
    replace(FLAGGED, flag=0.3).write(out, out / "scan.h5", print)
    (two,) = series(out, "1004_flagged")
    assert one.StudyInstanceUID == two.StudyInstanceUID
    assert one.SeriesInstanceUID != two.SeriesInstanceUID
    assert others - {ds.SOPInstanceUID for ds in objects(out)} == {one.SOPInstanceUID}


def test_a_real_identity_is_in_the_segmentation_too(tmp_path):
    real = replace(FLAGGED, overlay=True, identity=identity_of_options("4711", "1.2.3"))
    out = export(tmp_path / "out", oblique.oblique(), real, calibrated=True)
    for ds in (*series(out, "1004_flagged"), *series(out, "1005_overlay")):
        assert (ds.PatientID, ds.StudyInstanceUID) == ("4711", "1.2.3")
        assert "PatientIdentityRemoved" not in ds
