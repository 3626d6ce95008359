from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop, ifft2c
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.header import anonymous_header, parse_header


def test_a_slice_comes_back_as_written_with_its_axes(write_scan, phantom):
    kspace = phantom(slices=3, coils=2, shape=(40, 32))
    scan = open_fastmri(write_scan(kspace=kspace))
    assert scan.shape == (3, 2, 40, 32)
    assert (scan.mask, scan.crop, scan.header, scan.padding) == (None, None, None, (0, 0))
    for i in range(3):
        torch.testing.assert_close(scan.read_slice(i), kspace[i], rtol=0, atol=0)
    with pytest.raises(IndexError):
        scan.read_slice(3)


def test_a_single_coil_file_gets_a_coil_axis(write_scan, phantom):
    kspace = phantom(coils=1)
    scan = open_fastmri(write_scan(kspace=kspace[:, 0]))
    assert scan.shape == (1, 1, 64, 48)
    assert torch.equal(scan.read_slice(0), kspace[0])


def test_double_precision_is_read_as_complex64(write_scan, phantom):
    scan = open_fastmri(write_scan(kspace=phantom().to(torch.complex128)))
    assert scan.read_slice(0).dtype == torch.complex64


@pytest.mark.parametrize("xmlns", ['xmlns="http://www.ismrm.org/ISMRMRD"', ""])
@pytest.mark.parametrize("rows", [64, 65])
def test_the_oversampled_readout_is_cropped_in_image_space(write_scan, phantom, header, rows, xmlns):
    kspace = phantom(shape=(rows, 48), noise=0.1)
    xml = header((rows, 48), rec=(32, 40), xmlns=" " + xmlns)
    scan = open_fastmri(write_scan(kspace=kspace, ismrmrd_header=xml))
    assert scan.shape == (1, 4, 32, 48)  # phase encodes are never cropped
    assert scan.crop == (32, 40)
    torch.testing.assert_close(ifft2c(scan.read_slice(0)), centre_crop(ifft2c(kspace[0]), (32, 48)))


def test_the_crop_keeps_the_noise_level(write_scan, header):
    noise = torch.randn(1, 2, 256, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    scan = open_fastmri(write_scan(kspace=noise, ismrmrd_header=header((256, 64), rec=(128, 64))))
    assert float(scan.read_slice(0).abs().square().mean()) == pytest.approx(1, rel=0.03)


def test_a_coarser_reconstruction_matrix_is_no_reason_to_crop(write_scan, phantom, header):
    xml = header((64, 48), rec=(32, 24), fov=(64, 48))
    scan = open_fastmri(write_scan(kspace=phantom(), ismrmrd_header=xml))
    assert scan.shape[2:] == (64, 48)
    assert scan.crop is None


def test_zero_padding_of_the_scanner_is_not_undersampling(write_scan, phantom, header):
    kspace = phantom()
    kspace[..., :4] = 0
    kspace[..., 46:] = 0
    xml = header((64, 48), limits=(20, 41))  # left = 24 - 20 = 4, right = 4 + 41 + 1 = 46
    scan = open_fastmri(write_scan(kspace=kspace, ismrmrd_header=xml))
    assert scan.mask is None
    assert scan.padding == (4, 2)


def test_the_same_zeros_without_an_explanation_are_undersampling(write_scan, phantom, header):
    kspace = phantom()
    kspace[..., :4] = 0
    for xml in (header((64, 48)), header((64, 48), limits=(22, 45))):
        scan = open_fastmri(write_scan(kspace=kspace, ismrmrd_header=xml))
        assert scan.mask.tolist() == [0.0] * 4 + [1.0] * 44


def test_limits_that_contradict_the_data_are_not_believed(write_scan, phantom, header):
    scan = open_fastmri(write_scan(kspace=phantom(), ismrmrd_header=header((64, 48), limits=(20, 41))))
    assert (scan.mask, scan.padding) == (None, (0, 0))


def test_undersampling_is_found_where_the_mask_dataset_is_missing(write_scan, phantom):
    kspace = phantom(slices=2)
    mask = (torch.arange(48) % 4 == 0) | ((torch.arange(48) - 24).abs() < 4)
    scan = open_fastmri(write_scan(kspace=kspace * mask))
    assert torch.equal(scan.mask, mask.float())
    assert torch.equal(scan.read_slice(1), kspace[1] * mask)


def test_the_mask_dataset_is_applied(write_scan, phantom):
    kspace = phantom()
    mask = np.arange(48) % 2 == 0
    scan = open_fastmri(write_scan(kspace=kspace, mask=mask))
    assert scan.mask.dtype == torch.float32
    assert torch.equal(scan.read_slice(0), kspace[0] * torch.tensor(mask))
    assert open_fastmri(write_scan(kspace=kspace, mask=np.ones(48))).mask is None


def test_reading_leaks_no_file_handle(write_scan, phantom):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc/self/fd on this system")
    path = write_scan(kspace=phantom(shape=(16, 16)))
    open_fastmri(path).read_slice(0)
    before = len(os.listdir(folder))
    scans = [open_fastmri(path) for _ in range(200)]
    for scan in scans:
        scan.read_slice(0)
    assert len(os.listdir(folder)) == before


def test_a_scan_can_be_sent_to_another_process(write_scan, phantom):
    scan = open_fastmri(write_scan(kspace=phantom()))
    assert torch.equal(pickle.loads(pickle.dumps(scan)).read_slice(0), scan.read_slice(0))


def test_nothing_that_identifies_a_person_stays_in_the_scan(write_scan, phantom, header):
    scan = open_fastmri(write_scan(kspace=phantom(), ismrmrd_header=header((64, 48))))
    for secret in ("Doe", "4711", "2001", "Jane", "Somewhere"):
        assert secret not in scan.header + repr(scan)
    assert "<patientPosition>HFS" in scan.header
    assert parse_header(scan.header) == parse_header(header((64, 48)))
    assert anonymous_header(scan.header) == scan.header


def read_all(path: Path) -> None:
    scan = open_fastmri(path)
    for i in range(scan.slices):
        scan.read_slice(i)


def refuse(path: Path, match: str) -> None:
    with pytest.raises(MrgenError, match=match) as caught:
        read_all(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_paths_that_are_no_scan_are_refused(tmp_path):
    refuse(tmp_path / "none.h5", "no such file")
    refuse(tmp_path, "is a folder")
    (tmp_path / "garbage.h5").write_bytes(b"not a scan" * 100)
    refuse(tmp_path / "garbage.h5", "not a readable HDF5 file")


def test_a_truncated_file_is_refused(write_scan, phantom):
    path = write_scan(kspace=phantom())
    path.write_bytes(path.read_bytes()[:-5000])
    refuse(path, "not a readable HDF5 file|cannot be read")


def test_unusable_kspace_is_refused(write_scan, tmp_path):
    good = np.ones((1, 2, 16, 16), np.complex64)
    refuse(write_scan(other=good), "no dataset 'kspace' .found: other")
    refuse(write_scan(kspace=good.real), "float32, expected complex")
    refuse(write_scan(kspace=good[0, 0]), r"shape \(16, 16\), expected")
    refuse(write_scan(kspace=good[:0]), "at least one slice")
    refuse(write_scan(kspace=good[..., :8]), "at least one slice and coil of 16 x 16")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("kspace")
    refuse(tmp_path / "group.h5", "no dataset 'kspace'")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_slice(write_scan, phantom, bad):
    kspace = phantom(slices=3)
    kspace[2, 1, 5, 5] = bad
    refuse(write_scan(kspace=kspace), "slice 2 of kspace holds NaN or infinity")


def test_zeros_are_refused_with_their_slice(write_scan, phantom):
    kspace = phantom(slices=3)
    refuse(write_scan(kspace=kspace * 0), "slice 1 of kspace is all zeros")
    kspace[0] = 0
    refuse(write_scan(kspace=kspace), "slice 0 of kspace is all zeros")
    refuse(write_scan(kspace=kspace, mask=np.arange(48) % 2), "slice 0 of kspace is all zeros")


def test_slices_with_different_lines_are_refused(write_scan, phantom):
    kspace = phantom(slices=2)
    kspace[..., ::2] = 0
    kspace[0, ..., 1] = 0
    refuse(write_scan(kspace=kspace), "slice 0 samples other lines")


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (np.ones(47), "mask has 47 entries"),
        (np.full(48, 0.5), "values other than 0 and 1"),
        (np.zeros(48), "keeps no line"),
        ("text", "not an array of numbers"),
    ],
)
def test_unusable_masks_are_refused(write_scan, phantom, mask, match):
    refuse(write_scan(kspace=phantom(), mask=mask), match)


def test_unusable_headers_are_refused(write_scan, phantom, header):
    xml = header((64, 48))
    refuse(write_scan(kspace=phantom(), ismrmrd_header="<a><b></a>"), "not valid XML")
    refuse(write_scan(kspace=phantom(), ismrmrd_header="<ismrmrdHeader/>"), "encodedSpace/matrixSize")
    refuse(write_scan(kspace=phantom(), ismrmrd_header=xml.replace("<x>64</x>", "<x>many</x>")), "than a number")
    refuse(write_scan(kspace=phantom(shape=(48, 64)), ismrmrd_header=xml), "swap the last two axes")
