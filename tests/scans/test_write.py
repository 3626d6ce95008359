"""Files in the fastMRI layout: what was written is read back, by mrgen and by the fastMRI package."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import h5py
import pytest
import torch

from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.write import Layout, write_fastmri

LAYOUT = Layout(slices=3, coils=4, matrix=(32, 24), oversampling=2, fov=(240.0, 180.0), thickness=5.0)


@pytest.fixture
def kspace() -> torch.Tensor:
    return torch.randn(LAYOUT.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def test_a_full_scan_is_read_back(tmp_path: Path, kspace: torch.Tensor) -> None:
    write_fastmri(tmp_path / "scan.h5", iter(kspace), LAYOUT, None, "nobody")
    scan = open_fastmri(tmp_path / "scan.h5")
    assert (scan.shape, scan.mask, scan.padding, scan.crop) == ((3, 4, 32, 24), None, (0, 0), None)
    with h5py.File(tmp_path / "scan.h5") as file:
        assert file["kspace"].dtype == "complex64"
        assert file["kspace"].chunks == (1, 4, 64, 24)
        assert torch.equal(torch.from_numpy(file["kspace"][()]), kspace)
        assert dict(file.attrs)["patient_id"] == "nobody"
        # by torch.fft alone: image, its middle half, root of the sum of squares
        image = torch.fft.fftshift(
            torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=(-2, -1)), norm="ortho"), dim=(-2, -1)
        )
        rss = image[:, :, 16:48].abs().square().sum(1).sqrt()
        torch.testing.assert_close(torch.from_numpy(file["reconstruction_rss"][()]), rss)
        assert file.attrs["max"] == pytest.approx(float(rss.max()))
        assert file.attrs["norm"] == pytest.approx(float(rss.norm()))
        root = ET.fromstring(file["ismrmrd_header"][()])
    for space, matrix, fov in (("encodedSpace", "64 24 1", "480 180 5"), ("reconSpace", "32 24 1", "240 180 5")):
        found = root.find(f"{{*}}encoding/{{*}}{space}")
        assert " ".join(e.text for e in found.find("{*}matrixSize")) == matrix
        assert " ".join(e.text for e in found.find("{*}fieldOfView_mm")) == fov


def test_an_undersampled_scan_is_a_fastmri_test_file(tmp_path: Path, kspace: torch.Tensor) -> None:
    mask = torch.zeros(24)
    mask[::3] = 1
    mask[10:15] = 1
    write_fastmri(tmp_path / "scan.h5", iter(kspace), LAYOUT, mask, "nobody")
    scan = open_fastmri(tmp_path / "scan.h5")
    assert torch.equal(scan.mask, mask)
    with h5py.File(tmp_path / "scan.h5") as file:
        stored, rss = torch.from_numpy(file["kspace"][()]), torch.from_numpy(file["reconstruction_rss"][()])
    assert torch.equal(stored, kspace * mask)
    write_fastmri(tmp_path / "full.h5", iter(kspace), LAYOUT, None, "nobody")
    with h5py.File(tmp_path / "full.h5") as file:
        assert torch.equal(rss, torch.from_numpy(file["reconstruction_rss"][()]))  # the truth stays with it


def test_the_fastmri_package_reads_it(tmp_path: Path, kspace: torch.Tensor) -> None:
    pytest.importorskip("fastmri", reason="fastmri is a test extra")
    import fastmri
    from fastmri.data import SliceDataset
    from fastmri.data.transforms import center_crop, to_tensor

    (tmp_path / "multicoil").mkdir()
    write_fastmri(tmp_path / "multicoil/scan.h5", iter(kspace), LAYOUT, None, "nobody")
    data = SliceDataset(tmp_path / "multicoil", challenge="multicoil")
    assert len(data) == 3
    stored, mask, target, attributes, name, index = data[1]
    assert (mask, name, index) == (None, "scan.h5", 1)
    assert attributes["encoding_size"] == (64, 24, 1)
    assert attributes["recon_size"] == (32, 24, 1)
    assert (attributes["padding_left"], attributes["padding_right"]) == (0, 24)
    image = fastmri.complex_abs(fastmri.ifft2c(to_tensor(stored)))
    torch.testing.assert_close(torch.from_numpy(target), center_crop(fastmri.rss(image), (32, 24)))


def test_equal_scans_are_equal_bytes_and_missing_slices_an_error(tmp_path: Path, kspace: torch.Tensor) -> None:
    for name in ("a", "b"):
        write_fastmri(tmp_path / f"{name}.h5", iter(kspace), LAYOUT, None, "nobody")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    with pytest.raises(ValueError, match="2 slices, expected 3"):
        write_fastmri(tmp_path / "c.h5", iter(kspace[:2]), LAYOUT, None, "nobody")


def test_a_header_of_odd_size_has_its_centre_where_fft_has_it() -> None:
    root = ET.fromstring(Layout(1, 1, (32, 25), 1, (1.0, 1.0), 1.0).header())
    step = root.find("{*}encoding/{*}encodingLimits/{*}kspace_encoding_step_1")
    assert [e.text for e in step] == ["0", "24", "12"]
