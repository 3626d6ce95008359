from __future__ import annotations

import io
import zipfile
from functools import partial

import numpy as np
import pytest
import reading
import torch

from mrgen.scans.npz import open_npz

refuse = partial(reading.refuse, open_npz)


@pytest.fixture
def save(tmp_path):
    """save(kspace=..., compressed=False, **arrays) writes an archive and returns its path."""

    def write(compressed=False, **arrays):
        path = tmp_path / "scan.npz"
        (np.savez_compressed if compressed else np.savez)(path, **{k: np.asarray(v) for k, v in arrays.items()})
        return path

    return write


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["complex64", "complex128", ">c8"])
def test_slices_come_back_with_their_axes(save, phantom, compressed, dtype):
    kspace = phantom(slices=3, coils=2, shape=(40, 32))
    array = kspace.numpy().astype(dtype)
    for stored in (array, np.asfortranarray(array)):
        scan = open_npz(save(compressed, kspace=stored))
        assert scan.shape == (3, 2, 40, 32)
        assert (scan.format, scan.mask, scan.noise, scan.read_calibration) == ("NumPy npz", None, None, None)
        for i in (2, 0, 1):
            assert scan.read_slice(i).dtype == torch.complex64
            assert torch.equal(scan.read_slice(i), kspace[i])
    single = open_npz(save(compressed, kspace=np.asfortranarray(array[1])))
    assert single.shape == (1, 2, 40, 32)
    assert torch.equal(single.read_slice(0), kspace[1])
    with pytest.raises(IndexError):
        single.read_slice(1)


def test_mask_noise_and_calibration_come_along(save, phantom):
    kspace, calibration = phantom(slices=2, coils=3, shape=(40, 32)), phantom(slices=2, coils=3, shape=(24, 16))
    noise = torch.randn(3, 100, dtype=torch.complex64)
    for mask in (np.arange(32) % 2 == 0, np.arange(1280).reshape(40, 32) % 3 == 0):
        scan = open_npz(save(kspace=kspace, mask=mask, noise=noise, calibration=calibration))
        assert torch.equal(scan.mask, torch.tensor(mask).float())
        assert torch.equal(scan.read_slice(1), kspace[1] * torch.tensor(mask))
        assert torch.equal(scan.noise, noise)
        assert torch.equal(scan.read_calibration(1), calibration[1])
    one = open_npz(save(kspace=kspace[0], calibration=calibration[0], mask=np.ones((1, 32))))
    assert one.mask is None
    assert torch.equal(one.read_calibration(0), calibration[0])


def test_a_measured_poisson_disc_scan(scans):
    scan = open_npz(scans / "brain_poisson2d_R8_8ch_230x180.npz")
    assert scan.shape == (1, 8, 230, 180)
    assert scan.remarks == ("The zeros show undersampling in both directions: 12.4% of the points.",)
    kspace = scan.read_slice(0)
    assert torch.equal(kspace.abs().sum(0) > 0, scan.mask.bool())
    with np.load(scans / "brain_poisson2d_R8_8ch_230x180.npz", allow_pickle=False) as archive:
        assert np.array_equal(kspace.numpy(), archive["kspace"])


def test_archives_without_usable_kspace_are_refused(save, phantom, tmp_path):
    kspace = phantom(coils=2, shape=(40, 32)).numpy()
    refuse(save(data=kspace), r"no array 'kspace' \(found: data\)")
    refuse(save(kspace=kspace.real), "kspace is float32, expected complex")
    refuse(save(kspace=kspace[0, 0]), r"shape \(40, 32\), expected \(slice, coil, ky, kx\)")
    refuse(save(kspace=kspace[..., :15]), "at least one slice and coil of 16 x 16")
    refuse(save(kspace=kspace[:0]), "0 slices")
    refuse(save(kspace=np.fft.ifftshift(kspace, axes=-1)), "apply fftshift")
    refuse(save(kspace=np.array([{"a": 1}])), "kspace should be|object")
    refuse(save(kspace=kspace, mask=np.ones(31)), r"mask has shape \(31,\)")
    refuse(save(kspace=kspace, mask=np.full(32, "1")), "mask is <U1, not an array of numbers")
    for noise in (np.ones((3, 50), complex), np.ones((2, 1), complex), np.ones((2, 50)), np.ones(50, complex)):
        refuse(save(kspace=kspace, noise=noise), "expected complex .2 coils")
    refuse(save(kspace=kspace, noise=np.full((2, 50), np.nan + 0j)), "noise holds NaN")
    for shape in ((3, 24, 16), (2, 2, 24, 16), (2, 3, 16), (2, 41, 16)):
        refuse(save(kspace=kspace, calibration=np.ones(shape, complex)), "calibration has shape")
    refuse(save(kspace=kspace, calibration=np.zeros((2, 24, 16), complex)), "slice 0 of calibration is all zeros")
    (tmp_path / "no.npz").write_bytes(b"PK\3\4 and nothing else")
    refuse(tmp_path / "no.npz", "not a readable .npz archive")
    refuse(tmp_path / "none.npz", "no such file")


def declared(path, shape, size, dtype="<c8", packed=0):
    """An archive that claims to hold a `kspace` of `shape` in `size` bytes, `packed` into fewer, and holds none."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kspace.npy", buffer.getvalue())
        archive.filelist[0].file_size += size
        archive.filelist[0].compress_size += packed
    return path


def test_what_an_archive_declares_is_checked_before_it_is_unpacked(tmp_path):
    path = tmp_path / "scan.npz"
    refuse(declared(path, (8, 2**20, 2**20), 0), "but has 0 bytes")
    refuse(declared(path, (8, 2**20, 2**20), 2**46), "declares 70368744177792 bytes, but the file holds 78 of them")
    refuse(declared(path, (8, 2**20, 2**20), 2**46, packed=2**40), "more than 1 GiB")
    refuse(declared(path, (8, -32, 32), 64), "should be .8, -32, 32. of complex64")
    refuse(declared(path, (4, 32, 32), 2**15 + 1), "but has 32769 bytes")
    refuse(
        declared(path, (2, 1024, 256, 256), 2**30, packed=2**29), "not a readable .npz archive"
    )  # ends before its first slice
    refuse(declared(path, (1024, 128, 1024), 2**31, "<c16", 2**30), "more than 1 GiB")
    refuse(declared(path, (4, 32, 32), 2**15, "|O"), "object")


def test_damage_is_refused(save, phantom):
    kspace = phantom(slices=2, coils=2, shape=(40, 32))
    path = save(compressed=True, kspace=kspace)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refuse(path, "not a readable .npz archive")
    path.write_bytes(good[:5000] + bytes(200) + good[5200:])
    refuse(path, "not a readable .npz archive")
