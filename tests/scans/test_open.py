from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import reading
import torch
from reading import slices_of, write_cfl

from mrgen.scans import files
from mrgen.scans.open import READERS, open_scan

refuse = partial(reading.refuse, open_scan)


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("brain_wrapped_8ch_320x168.h5", "fastMRI HDF5"),
        ("brain_t2_1ch_256x340.h5", "fastMRI HDF5"),
        ("brain_poisson2d_R8_8ch_230x180.npz", "NumPy npz"),
        ("phantom_14ch_prospective_R3_ismrmrd.h5", "ISMRMRD"),
        ("phantom_2ch_siemens_twix_gre.dat", "Siemens twix"),
    ],
)
def test_measured_scans_of_every_format(scans, name, format_):
    scan = open_scan(scans / name)
    assert scan.format == format_
    kspace = scan.read_slice(0)
    assert kspace.shape == scan.shape[1:]
    assert torch.isfinite(kspace.abs()).all()


def test_the_content_decides_whatever_the_name(write_scan, phantom, tmp_path):
    kspace = phantom(coils=2, shape=(40, 32))
    assert open_scan(write_scan("scan.dat", kspace=kspace)).format == "fastMRI HDF5"
    np.savez(tmp_path / "scan.npz", kspace=kspace)
    (tmp_path / "scan.npz").rename(tmp_path / "scan.h5")
    assert open_scan(tmp_path / "scan.h5").format == "NumPy npz"
    data = write_cfl(tmp_path / "pair", kspace, slices_of(2, 40, 32, 1))
    for path in (data, data.with_suffix(".hdr"), data.with_suffix("")):
        assert open_scan(path).format == "BART cfl"
        assert torch.equal(open_scan(str(path)).read_slice(0), kspace[0])


def dicom() -> bytes:
    return bytes(128) + b"DICM" + bytes(50)


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(17)


def nifti(signature: bytes) -> bytes:
    return struct.pack("<i", 348) + bytes(340) + signature + bytes(8)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (dicom(), "a DICOM file, which holds images, not raw data"),
        (nifti(b"n+1\0"), "a NIfTI file"),
        (nifti(b"ni1\0"), "a NIfTI header"),
        (struct.pack("<i", 540) + b"n+2\0" + bytes(600), "a NIfTI file"),
        (gzip.compress(nifti(b"n+1\0"), mtime=0), "a gzip file, which is packed: unpack it first"),
        (png(), "a PNG file"),
        (b"\xff\xd8\xff\xe0" + bytes(30), "a JPEG file"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(128), "a MATLAB file: save its k-space"),
        (b"", "an empty file"),
        (b"subject,age\n1,40\n", "a file of unknown kind; mrgen reads .*fastMRI HDF5"),
        (zlib.compress(b"x" * 500), "a file of unknown kind"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, match):
    path = tmp_path / "scan"
    path.write_bytes(content)
    refuse(path, match)


def test_what_is_read_is_listed(tmp_path):
    (tmp_path / "scan.raw").write_bytes(b"\1\2\3")
    for name in READERS:
        refuse(tmp_path / "scan.raw", name.replace("(", r"\(").replace(")", r"\)"))


def test_real_files_that_are_no_scans(tmp_path, scans):
    np.save(tmp_path / "array.npy", np.ones(3))
    refuse(tmp_path / "array.npy", "a single NumPy array: save it with numpy.savez")
    with tarfile.open(tmp_path / "scan.tar", "w") as archive:
        archive.add(tmp_path / "array.npy", "array.npy")
    refuse(tmp_path / "scan.tar", "a tar file")
    refuse(scans.parent / "dicom" / "mr_dicom_samples.tar.xz", "an xz file")
    refuse(scans.parent / "train" / "head_t1_volume.npz", "no array 'kspace' .found: vol")


def test_hdf5_files_of_other_kinds_list_what_they_hold(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = np.ones(3)
        file.create_group("group")["data"] = 1
    refuse(tmp_path / "other.h5", "neither 'kspace' .* nor a group .*, but group, images: convert it")
    with h5py.File(tmp_path / "empty.h5", "w", userblock_size=1024):
        pass
    refuse(tmp_path / "empty.h5", "but nothing")


def test_paths_that_are_no_file_are_refused(tmp_path, monkeypatch):
    refuse(Path("."), r"\.: is a folder")
    refuse(Path("/"), "/: is a folder")
    (tmp_path / "secret.h5").touch()
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    refuse(tmp_path / "secret.h5", "you may not read this file")
    refuse(tmp_path, "is a folder, expected a scan: name the files in it")
    refuse(tmp_path / "none.h5", "there is no such file")
    refuse(tmp_path / "none.hdr", "there is no such file")
    refuse(tmp_path / "none.cfl", "there is no such file")
