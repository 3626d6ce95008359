"""`mrgen export`, and what `mrgen recon` writes beside its HDF5 file."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from mrgen.cli import recon as recon_command
from mrgen.review import output
from mrgen.review.calibration import Level, write_calibration
from mrgen.review.figure import save_figure
from mrgen.settings import Recipe, load

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def scan(write_scan, phantom: Callable[..., torch.Tensor], header: Callable[..., str]) -> Path:
    kspace = 1e-3 * phantom(slices=2, coils=4, shape=(32, 24), noise=0.01)
    return write_scan("Doe_Jane.h5", kspace=kspace, ismrmrd_header=header((32, 24)))


def written(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


OPTIONS = ["--R", 2, "--center-fraction", 0.25, "--recipe", "zero-filled", "--device", "cpu"]
SAMPLING = ["--R", 2, "--center-fraction", 0.25, "--recipe", "gaussian", "--samples", 4, "--device", "cpu"]
NIFTI = ["nifti/reconstruction.nii.gz", "nifti/zero_filled.nii.gz"]
HTML = "report.html"
DICOM = ["dicom/1001_reconstruction/00001.dcm", "dicom/1001_reconstruction/00002.dcm"]


def test_recon_writes_every_format_and_export_the_same(mrgen, scan, tmp_path):
    code, text, _ = mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out")
    assert code == 0
    assert "NOMINAL GEOMETRY, L/R NOT VERIFIED" in text
    files = written(tmp_path / "out")
    assert sorted(files) == sorted(["Doe_Jane.h5", "figure.png", "report.json", *NIFTI, *DICOM, HTML])
    assert json.loads(files["report.json"])["geometry"] == "nominal"
    code, text, _ = mrgen("export", tmp_path / "out/Doe_Jane.h5", "-o", tmp_path / "again")
    assert code == 0
    assert text.count("wrote") == 3
    again = written(tmp_path / "again")
    for name in (*DICOM, *NIFTI, HTML):
        assert again[name] == files[name], name
    assert mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "other", "--formats", "dicom")[0] == 0
    for name in DICOM:  # the same seed gives the same UIDs and pixels
        one, two = (pydicom.dcmread(folder / name) for folder in (tmp_path / "out", tmp_path / "other"))
        assert (one.SOPInstanceUID, one.PixelData) == (two.SOPInstanceUID, two.PixelData)


@pytest.fixture
def calibration(tmp_path) -> Path:
    """A calibration file for the recipe of SAMPLING."""
    recipe = load(Recipe, "gaussian").model_copy(update={"samples": 4})
    figures = {"guaranteed": 0.45, "before": 0.6, "exact": 0.7, "after": None, "rank_correlation": 0.5, "ause": 0.1}
    level = Level(2, 2.0, 2.5, 1, 2, **figures, map_sets=[1])
    path = tmp_path / "calibration.json"
    write_calibration(path, [level], share=0.9, recipe=recipe, recipe_name="gaussian", prior=None, mask="any", seed=0)
    return path


def test_flags_and_overlays_are_written_by_recon_and_export(mrgen, imported_by, scan, calibration, tmp_path):
    extra = ["--flag", 0.01, "--overlay"]
    code, text, error = mrgen("recon", scan, *SAMPLING, "--calibration", calibration, *extra, "-o", tmp_path / "out")
    assert code == 0, error
    assert "flag    interval above 0.01 of the brightest tissue: regions in 2 of 2 slices" in text
    files = written(tmp_path / "out/dicom")
    folders = ["1001_mean", "1002_std", "1003_std_pm", "1004_flagged", "1005_overlay", "1006_interval"]
    assert sorted({name.partition("/")[0] for name in files}) == [*folders, "1007_interval_pm"]
    code, text, _ = mrgen("export", tmp_path / "out/Doe_Jane.h5", *extra, "-o", tmp_path / "again")
    assert code == 0
    assert "regions in 2 of 2 slices" in text
    assert written(tmp_path / "again/dicom") == files
    assert "torch" not in imported_by("export", tmp_path / "out/Doe_Jane.h5", *extra, "-o", tmp_path / "quick")
    assert written(tmp_path / "quick") == written(tmp_path / "again")
    with h5py.File(tmp_path / "out/Doe_Jane.h5") as file:
        interval = nibabel.load(tmp_path / "out/nifti/interval.nii.gz")
        assert np.array_equal(np.asarray(interval.dataobj).T, file["interval"][()])


def test_flag_wants_intervals_and_overlay_samples(mrgen, scan, tmp_path):
    for options, match in (
        (["--flag", 0.1], "--flag looks at calibrated intervals: add --calibration with a file of mrgen calibrate"),
        (["--overlay"], "recipe 'zero-filled' draws no samples: leave out --overlay"),
        (["--flag", 10], "--flag 10: expected a share of the brightest tissue between 0 and 1"),
        (["--overlay", "--formats", "nifti"], "need dicom there"),
    ):
        code, _, error = mrgen("recon", scan, *OPTIONS, *options, "-o", tmp_path / "out")
        assert (code, error.count("\n")) == (1, 1)
        assert match in error
    assert mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out")[0] == 0
    before = written(tmp_path / "out")
    for options, match in (
        (["--flag", 0.1], "Doe_Jane.h5: it holds no calibrated interval, which --flag looks at"),
        (["--overlay"], "Doe_Jane.h5: it holds no std, which --overlay shows"),
    ):
        code, _, error = mrgen("export", tmp_path / "out/Doe_Jane.h5", *options)
        assert (code, error.count("\n")) == (1, 1)
        assert match in error
    assert written(tmp_path / "out") == before


# All of the ISMRMRD schema that may identify a person, a place or a day; x and y are the matrix.
RICH = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<subjectInformation><patientName>Doeringer^Janeth</patientName><patientWeight_kg>71.2345</patientWeight_kg>
 <patientID>Q4711Z</patientID><patientBirthdate>1931-02-03</patientBirthdate><patientGender>O</patientGender>
</subjectInformation>
<studyInformation><studyDate>2001-04-05</studyDate><studyTime>13:37:42</studyTime><studyID>8844221</studyID>
 <accessionNumber>9955331</accessionNumber><referringPhysicianName>Zuweiser^Rita</referringPhysicianName>
 <studyDescription>Headache since Monday</studyDescription><studyInstanceUID>1.2.3.4.567891</studyInstanceUID>
 <bodyPartExamined>SKULLBASE</bodyPartExamined></studyInformation>
<measurementInformation><measurementID>meas77123</measurementID><seriesDate>2001-04-06</seriesDate>
 <seriesTime>14:38:43</seriesTime><patientPosition>HFS</patientPosition><protocolName>Janeth brain</protocolName>
 <sequenceName>*secretsequence</sequenceName><seriesDescription>follow-up of Doeringer</seriesDescription>
 <seriesInstanceUIDRoot>1.2.3.4.567892</seriesInstanceUIDRoot><frameOfReferenceUID>1.2.3.4.567893</frameOfReferenceUID>
 <measurementDependency><dependencyType>Noise</dependencyType><measurementID>meas77122</measurementID>
 </measurementDependency></measurementInformation>
<acquisitionSystemInformation><systemVendor>ACME</systemVendor><systemModel>Model T</systemModel>
 <systemFieldStrength_T>3.0</systemFieldStrength_T><institutionName>Somewhere General</institutionName>
 <stationName>STATION77</stationName><deviceID>device88123</deviceID><deviceSerialNumber>66177</deviceSerialNumber>
 <coilLabel><coilNumber>1</coilNumber><coilName>coilname99</coilName></coilLabel></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>123200000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding><encodedSpace><matrixSize><x>{y}</x><y>{x}</y><z>1</z></matrixSize>
  <fieldOfView_mm><x>{y}</x><y>{x}</y><z>5</z></fieldOfView_mm></encodedSpace>
 <reconSpace><matrixSize><x>{y}</x><y>{x}</y><z>1</z></matrixSize>
  <fieldOfView_mm><x>{y}</x><y>{x}</y><z>5</z></fieldOfView_mm></reconSpace>
 <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>
 </kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding>
<userParameters><userParameterString><name>remark77</name><value>allergic to penicillin</value>
 </userParameterString></userParameters></ismrmrdHeader>"""
KEPT = {"ACME", "Model T", "HFS", "O", "1", "Noise", "3.0", "123200000", "cartesian"}  # tells nobody from others


@pytest.fixture(params=["fastMRI", "ISMRMRD"])
def named_scan(request, write_scan, phantom, tmp_path) -> tuple[Path, set[str]]:
    """A scan, and all texts in its header and attributes that mrgen has to keep to itself."""
    kspace = 1e-3 * phantom(slices=2, coils=4, shape=(32, 24), noise=0.01)
    header = RICH.format(y=32, x=24, last=23, centre=12)
    outside = ("userParameters", "subjectInformation", "studyInformation", "measurementInformation")
    root = ElementTree.fromstring(header)
    encoding = {e.text for part in root if part.tag.endswith("encoding") for e in part.iter()}
    texts = {(e.text or "").strip() for e in root.iter()} - encoding - KEPT - {""}
    assert len(texts) == 28
    assert {part.tag.rpartition("}")[2] for part in root} >= set(outside)
    if request.param == "fastMRI":
        path = write_scan("scan.h5", kspace=kspace, ismrmrd_header=header)
        with h5py.File(path, "r+") as file:
            file.attrs.update({"patient_id": "f4571M", "acquisition": "AXT2_Doeringer"})
        texts |= {"f4571M", "AXT2_Doeringer"}
    else:
        ismrmrd = pytest.importorskip("ismrmrd", reason="writing ISMRMRD files needs the package ismrmrd")
        path = tmp_path / "scan.h5"
        with ismrmrd.Dataset(str(path), mode="w") as file:
            file.write_xml_header(header)
            for number, slice_ in enumerate(kspace.numpy()):
                for line in range(24):
                    one = ismrmrd.Acquisition.from_array(np.ascontiguousarray(slice_[..., line]))
                    one.idx.slice, one.idx.kspace_encode_step_1, one.center_sample = number, line, 16
                    one.read_dir[:], one.phase_dir[:], one.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
                    one.position[:] = (0, 0, 5 * number)
                    file.append_acquisition(one)
    words = {word for text in texts for word in re.split(r"[\s^_]", text) if len(word) > 4}
    return path, texts | words | {text.replace("-", "") for text in texts if text.startswith(("19", "20"))}


def readable(name: str, content: bytes, path: Path) -> bytes:
    """All bytes of a file in which a text may stand, unpacked."""
    if name.endswith(".gz"):
        return gzip.decompress(content)
    if name.endswith(".h5"):  # its chunks may be packed
        found: list[object] = []
        with h5py.File(path) as file:
            file.visititems(lambda key, item: found.extend([key, *item.attrs.items()]))
            found += [*file.attrs.items(), *(item[()] for item in file.values() if item.dtype.kind in "OS")]
        return content + repr(found).encode()
    pictures = [content] if name.endswith(".png") else []
    if name == HTML:  # numbers are in base64, where letters mean nothing
        pictures = [base64.b64decode(text) for text in re.findall(rb"data:image/png;base64,([^\"]*)", content)]
        assert len(pictures) == 3  # two slices and the mask
        content = re.sub(rb'base64,[^"]*|<script type="text/plain".*', b"", content)
    return content + b"".join(repr(Image.open(io.BytesIO(picture)).info).encode() for picture in pictures)


def test_nothing_of_the_header_that_identifies_is_in_any_output(mrgen, named_scan, calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "save_figure", save_figure)
    scan, secrets = named_scan
    assert {"Doeringer^Janeth", "Doeringer", "8844221", "20010405", "penicillin"} <= secrets
    extra = ["--flag", 0.01, "--overlay", "--dicom-samples", "--calibration", calibration]
    code, text, error = mrgen("recon", scan, *SAMPLING, *extra, "-o", tmp_path / "out")
    assert code == 0, error
    files = written(tmp_path / "out")
    kinds = {Path(name).parent.name if name.endswith(".dcm") else Path(name).suffix for name in files}
    series = {
        "1001_mean",
        "1002_std",
        "1003_std_pm",
        "1004_flagged",
        "1005_overlay",
        "1006_interval",
        "1007_interval_pm",
    }
    assert kinds == {".h5", ".json", ".png", ".html", ".gz", *series, *(f"110{n}_sample" for n in range(1, 5))}
    files |= {"stdout": text.replace(str(scan), "").encode(), "stderr": error.encode()}
    for name, content in files.items():
        unpacked = readable(name, content, tmp_path / "out" / name).lower()
        for secret in secrets:
            for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
                assert secret.lower().encode(encoding) not in unpacked, (name, secret)


@pytest.mark.parametrize("formats", ["hdf5", "nifti", "DICOM", "dicom, nifti", "html"])
def test_formats_are_chosen_and_stale_ones_go(mrgen, scan, tmp_path, formats):
    assert mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out")[0] == 0
    assert mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out", "--formats", formats)[0] == 0
    expected = NIFTI * ("nifti" in formats) + DICOM * ("dicom" in formats.lower()) + [HTML] * (formats == "html")
    assert sorted(written(tmp_path / "out")) == sorted(["Doe_Jane.h5", "figure.png", "report.json", *expected])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--formats", "png"], "--formats 'png': expected some of hdf5, nifti, dicom, html"),
        (["--patient-id", "4711"], "NOMINAL GEOMETRY"),
        (["--patient-id", ""], "--patient-id: expected 1 to 64 printable characters"),
        (["--study-uid", "1.2.3"], "say with --patient-id to which"),
        (["--patient-id", "4711", "--study-uid", "1.02"], "expected a DICOM UID"),
        (["--formats", "nifti", "--patient-id", "4711"], "need dicom there"),
        (["--patient-id", "4711", "--reference-dicom", "none"], "--reference-dicom brings a patient and a study"),
        (["--reference-dicom", "none"], "expected a folder with the scanner's DICOM images"),
    ],
)
def test_refusals_come_before_the_computing(mrgen, scan, tmp_path, monkeypatch, options, match):
    monkeypatch.setattr(recon_command, "reconstruct_slices", lambda *_: 1 / 0)
    code, _, error = mrgen("recon", scan, *OPTIONS, *options, "-o", tmp_path / "out")
    assert (code, error.count("\n")) == (1, 1)
    assert match in error
    assert not list((tmp_path / "out").glob("*"))


def test_files_of_others_are_left_alone(mrgen, scan, tmp_path):
    (tmp_path / "out/dicom").mkdir(parents=True)
    (tmp_path / "out/dicom/mine.dcm").write_text("mine")
    code, _, error = mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out")
    assert code == 1
    assert "dicom holds other files than mrgen's own" in error
    assert written(tmp_path / "out") == {"dicom/mine.dcm": b"mine"}
    (tmp_path / "out/dicom/mine.dcm").unlink()
    (tmp_path / "out/report.html").write_text("<p>mine")
    code, _, error = mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out")
    assert code == 1
    assert "report.html is not a report of mrgen's" in error
    assert written(tmp_path / "out") == {"report.html": b"<p>mine"}


def test_a_skipped_scan_gets_the_formats_it_lacks(mrgen, scan, tmp_path, write_scan, phantom):
    other = write_scan("other.h5", kspace=1e-3 * phantom(slices=1, shape=(32, 24)))
    arguments = ["recon", scan, other, *OPTIONS, "-o", tmp_path / "out"]
    assert mrgen(*arguments, "--formats", "nifti")[0] == 0
    before = written(tmp_path / "out")
    code, text, _ = mrgen(*arguments)
    assert code == 0
    assert text.count("skipped ") == 2
    assert "stays as it is" not in text
    after = written(tmp_path / "out")
    assert after.items() >= before.items()
    assert sorted(after.keys() - before.keys()) == sorted(
        [*(f"Doe_Jane/{name}" for name in (*DICOM, HTML)), f"other/{DICOM[0]}", f"other/{HTML}"]
    )


def test_a_skipped_scan_says_that_its_dicom_stays(mrgen, scan, tmp_path, write_scan, phantom):
    other = write_scan("other.h5", kspace=1e-3 * phantom(slices=1, shape=(32, 24)))
    arguments = ["recon", scan, other, *SAMPLING, "--formats", "dicom", "-o", tmp_path / "out"]
    assert mrgen(*arguments)[0] == 0
    before = written(tmp_path / "out")
    assert mrgen(*arguments, "--overlay")[1].count("dicom stays as it is: mrgen export makes it anew") == 2
    assert written(tmp_path / "out") == before


def test_a_failing_disk_leaves_what_was_there(mrgen, scan, tmp_path, monkeypatch):
    assert mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out")[0] == 0
    before = written(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    code, _, error = mrgen("export", tmp_path / "out/Doe_Jane.h5", "--formats", "dicom")
    assert code == 1
    assert "could not write" in error
    assert "No space left" in error
    assert written(tmp_path / "out") == before


def test_what_is_no_result_is_refused(mrgen, scan, tmp_path):
    for path, match in (
        (scan, "Doe_Jane.h5: no dataset 'reconstruction'"),
        (tmp_path / "none.h5", "none.h5: there is no such file"),
    ):
        code, _, error = mrgen("export", path, "-o", tmp_path / "out")
        assert (code, error.count("\n")) == (1, 1)
        assert match in error


def test_the_axes_of_the_result_are_those_of_the_images(mrgen, scan, tmp_path):
    assert mrgen("recon", scan, *OPTIONS, "-o", tmp_path / "out", "--slices", "1:2")[0] == 0
    image = nibabel.load(tmp_path / "out/nifti/reconstruction.nii.gz")
    ds = pydicom.dcmread(tmp_path / "out" / DICOM[0])
    assert image.shape == (24, 32, 1)
    assert ds.pixel_array.shape == (32, 24)
    scaled = ds.pixel_array * ds.RealWorldValueMappingSequence[0].RealWorldValueSlope
    half = 0.501 * ds.RealWorldValueMappingSequence[0].RealWorldValueSlope
    top = ds.pixel_array < 32767
    assert np.abs(scaled - np.asarray(image.dataobj)[..., 0].T)[top].max() < half
