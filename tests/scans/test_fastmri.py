from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import reading
import torch

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop, ifft2c
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.geometry import Geometry
from mrgen.scans.header import anonymous_header, parse_header

refuse = partial(reading.refuse, open_fastmri)


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


def test_kspace_may_lie_in_other_files(write_scan, phantom, tmp_path):
    kspace = phantom(slices=2)
    layout = h5py.VirtualLayout(kspace.shape, np.complex64)
    for i in range(2):
        layout[i] = h5py.VirtualSource(write_scan(f"{i}.h5", x=kspace[i]), "x", kspace.shape[1:])
    with h5py.File(tmp_path / "both.h5", "w") as file:
        file.create_virtual_dataset("kspace", layout)
    assert torch.equal(open_fastmri(tmp_path / "both.h5").read_slice(1), kspace[1])


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


def test_zeros_at_the_edges_are_zero_filling_though_the_header_is_absent_or_lies(write_scan, phantom, header):
    kspace = phantom()
    kspace[..., :4] = 0
    for xml in ({}, {"ismrmrd_header": header((64, 48))}, {"ismrmrd_header": header((64, 48), limits=(20, 41))}):
        scan = open_fastmri(write_scan(kspace=kspace, **xml))
        assert (scan.mask, scan.padding) == (None, (4, 0))
        assert scan.remarks == (
            "The first 4 and last 0 phase-encoding lines hold zeros only: taken for zero-filling or partial Fourier, "
            "not for undersampling.",
        )
        assert torch.equal(scan.read_slice(0), kspace[0])


def test_an_asymmetric_echo_is_no_undersampling(write_scan, phantom):
    kspace = phantom()
    kspace[..., :10, :] = 0
    scan = open_fastmri(write_scan(kspace=kspace))
    assert (scan.mask, scan.padding) == (None, (0, 0))
    assert "first 10 and last 0 readout samples" in scan.remarks[0]


def test_a_few_samples_of_exactly_zero_are_no_undersampling(write_scan, phantom):
    kspace = phantom(slices=3)
    for i in range(3):
        kspace[i, :, i * 7 :: 9, 5::11] = 0  # 1 % of the samples, others in each slice
    scan = open_fastmri(write_scan(kspace=kspace))
    assert (scan.mask, scan.remarks) == (None, ())
    assert torch.equal(scan.read_slice(0), kspace[0])


def test_undersampling_of_both_axes_is_a_mask_of_points(write_scan, phantom, header):
    kspace = phantom(slices=2)
    points = torch.rand(64, 48, generator=torch.Generator().manual_seed(1)) < 0.3
    points[24:40, 16:32] = True
    xml = header((64, 48), rec=(32, 40))
    scan = open_fastmri(write_scan(kspace=kspace * points, ismrmrd_header=xml))
    assert torch.equal(scan.mask, points.float())
    assert scan.shape == (2, 4, 64, 48)  # a readout that is undersampled cannot be cropped
    assert scan.crop == (32, 40)
    assert torch.equal(scan.read_slice(1), kspace[1] * points)
    assert (
        scan.remarks[0]
        == f"The zeros show undersampling in both directions: {points.float().mean():.1%} of the points."
    )
    stored = open_fastmri(write_scan(kspace=kspace, mask=points.numpy(), ismrmrd_header=xml))
    assert torch.equal(stored.mask, points.float())
    assert torch.equal(stored.read_slice(0), kspace[0] * points)


def test_the_geometry_comes_from_the_header(write_scan, phantom, header):
    xml = header((64, 48), rec=(32, 40)).replace("<x>64.0</x><y>48.0</y><z>5</z>", "<x>128.0</x><y>36.0</y><z>7.5</z>")
    scan = open_fastmri(write_scan(kspace=phantom(), ismrmrd_header=xml.replace("<x>32.0</x>", "<x>64.0</x>")))
    assert scan.shape[2:] == (32, 48)
    assert scan.geometry == Geometry(spacing=(2.0, 0.75), thickness=5.0)
    assert open_fastmri(write_scan(kspace=phantom())).geometry == Geometry()
    other = open_fastmri(write_scan(kspace=phantom(shape=(64, 40)), ismrmrd_header=xml))
    assert other.geometry == Geometry(thickness=5.0)
    assert other.remarks == ("The header's matrix (64, 48) is not that of kspace, (64, 40): no pixel sizes.",)


def test_axis_0_is_believed_where_the_header_lists_other_slices(write_scan, phantom, header):
    listed = "<slice><minimum>0</minimum><maximum> 15\n</maximum><center>8</center></slice></encodingLimits>"
    xml = header((64, 48)).replace("</encodingLimits>", listed)
    scan = open_fastmri(write_scan(kspace=phantom(slices=3), ismrmrd_header=xml))
    assert scan.slices == 3
    assert scan.remarks == ("The header lists 16 slices, kspace has 3: kspace is believed.",)
    assert open_fastmri(write_scan(kspace=phantom(slices=16, coils=1), ismrmrd_header=xml)).remarks == ()


@pytest.mark.parametrize("coils", [2, 5, 32])
@pytest.mark.parametrize("shape", [(17, 33), (50, 31)])
def test_odd_sizes_and_many_coils(write_scan, phantom, header, coils, shape):
    kspace = phantom(slices=2, coils=coils, shape=shape)
    scan = open_fastmri(write_scan(kspace=kspace, ismrmrd_header=header(shape)))
    assert scan.shape == (2, coils, *shape)
    assert torch.equal(scan.read_slice(1), kspace[1])


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
    assert torch.equal(open_fastmri(write_scan(kspace=kspace, mask=mask[None, None])).mask, scan.mask)
    assert open_fastmri(write_scan(kspace=kspace, mask=np.ones((1, 48)))).mask is None


def test_a_mask_says_nothing_of_lines_that_the_scanner_zero_filled(write_scan, phantom, header):
    kspace = phantom()
    kspace[..., :4] = 0
    kspace[..., 46:] = 0
    mask = (np.arange(48) % 3 == 0) | (abs(np.arange(48) - 24) < 4)
    scan = open_fastmri(write_scan(kspace=kspace, mask=mask, ismrmrd_header=header((64, 48), limits=(20, 41))))
    assert scan.padding == (4, 2)
    assert scan.mask.tolist() == [float(m and 4 <= i < 46) for i, m in enumerate(mask)]


def test_padding_is_not_believed_where_an_undersampled_scan_has_data(write_scan, phantom, header):
    kspace = phantom()
    kspace[..., 8:20:2] = 0
    scan = open_fastmri(write_scan(kspace=kspace, ismrmrd_header=header((64, 48), limits=(20, 41))))
    assert scan.padding == (0, 0)
    kspace[..., :4] = kspace[..., 46:] = 0
    scan = open_fastmri(write_scan(kspace=kspace, ismrmrd_header=header((64, 48), limits=(20, 41))))
    assert scan.padding == (4, 2)
    assert scan.mask.sum() == 48 - 6 - 6


def test_many_scans_leave_no_file_open(write_scan, phantom):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc/self/fd on this system")
    path, bad = write_scan(kspace=phantom(shape=(16, 16))), write_scan("bad.h5", kspace=np.zeros((2, 2), complex))
    before = len(os.listdir(folder)), h5py.h5f.get_obj_count()
    scans = [open_fastmri(path) for _ in range(200)]
    for scan in scans[::10]:
        scan.read_slice(0)
        with pytest.raises(MrgenError):
            open_fastmri(bad)
    assert (len(os.listdir(folder)), h5py.h5f.get_obj_count()) == before


def test_nothing_that_identifies_a_person_stays_in_the_scan(write_scan, phantom, header):
    scan = open_fastmri(write_scan(kspace=phantom(), ismrmrd_header=header((64, 48))))
    for secret in ("Doe", "Q4711Z", "2001-02-03", "Jane", "Somewhere"):
        assert secret not in scan.header + repr(scan)
    assert "<patientPosition>HFS" in scan.header
    assert parse_header(scan.header) == parse_header(header((64, 48)))
    assert anonymous_header(scan.header) == scan.header


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
    refuse(write_scan(kspace=np.ones((2, 1, 2, 16, 16), np.complex64)), "beside the calibration_data")
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
    refuse(write_scan(kspace=kspace), "slice 0 samples other points")
    kspace = phantom(slices=2)
    kspace[0, :, 30:] = 0  # broken off
    refuse(write_scan(kspace=kspace), "slice 0 samples other points")
    kspace = phantom(slices=2)
    kspace[1, ..., ::2] = 0
    refuse(write_scan(kspace=kspace), "slice 0 samples other points")


def test_kspace_that_is_not_centred_is_refused(write_scan, phantom):
    for axes, name in (((-2,), "readout"), ((-1,), "phase"), ((-2, -1), "readout")):
        kspace = torch.fft.ifftshift(phantom(), dim=axes)
        refuse(write_scan(kspace=kspace), f"index 0 of the {name} axis, expected it at n // 2: apply fftshift")
    kspace = torch.fft.ifftshift(phantom(), dim=-1)
    refuse(write_scan(kspace=kspace * (torch.arange(48) % 3 == 0)), "index 0 of the phase axis")


@pytest.mark.parametrize("scale", [1e-17, 1e17])
def test_absurd_scales_are_refused(write_scan, phantom, scale):
    refuse(write_scan(kspace=scale * phantom()), "expected 1e-15 to 1e\\+15: rescale it")


def test_absurd_sizes_are_refused_unread(tmp_path):
    for name, shape, chunks, match in (
        ("wide", (1, 4, 2**20, 2**20), (1, 1, 64, 64), "more than 1 GiB"),
        ("long", (2**40, 4, 32, 32), (1, 4, 32, 32), "declares 36028797018963968 bytes, but the file holds 0"),
        ("lumped", (2**20, 4, 32, 32), (2**18, 1, 32, 32), "chunks"),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("kspace", shape, np.complex64, chunks=chunks)
        refuse(tmp_path / name, match)


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (np.ones(47), r"mask has shape \(47,\), expected one entry for each of the 48"),
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
    refuse(
        write_scan(kspace=phantom(), ismrmrd_header=header((64, 48), rec=(8, 48))), "8 x 48 samples, expected at least"
    )
