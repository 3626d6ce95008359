from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reading
import torch
from reading import slices_of, write_cfl

from mrgen.physics.fourier import ifft2c
from mrgen.scans.cfl import open_cfl

refuse = partial(reading.refuse, open_cfl)


def test_slices_come_back_with_their_axes(tmp_path, phantom):
    kspace = phantom(slices=3, coils=2, shape=(40, 32))
    path = write_cfl(tmp_path / "scan", kspace, slices_of(2, 40, 32, 3))
    for name in ("scan", "scan.cfl", "scan.hdr"):
        scan = open_cfl(tmp_path / name)
        assert scan.shape == (3, 2, 40, 32)
        assert (scan.path, scan.format, scan.mask, scan.remarks) == (str(path), "BART cfl", None, ())
        for i in range(3):
            assert torch.equal(scan.read_slice(i), kspace[i])
    with pytest.raises(IndexError):
        scan.read_slice(3)


@pytest.mark.parametrize("sizes", [(1, 40, 32, 2), (40, 1, 32, 2), (40, 32, 1, 2), (40, 32, 1, 2, 1, 1)])
def test_a_slice_lies_along_any_two_of_the_first_dimensions(tmp_path, phantom, sizes):
    kspace = phantom(coils=2, shape=(40, 32))
    scan = open_cfl(write_cfl(tmp_path / "scan", kspace, sizes))
    assert torch.equal(scan.read_slice(0), kspace[0])


def test_sampling_is_told_from_the_zeros(tmp_path, phantom):
    kspace = phantom(slices=2, coils=2, shape=(40, 32))
    lines = (torch.arange(32) % 4 == 0) | ((torch.arange(32) - 16).abs() < 4)
    points = torch.rand(40, 32, generator=torch.Generator().manual_seed(0)) < 0.4
    for mask in (lines, points):
        scan = open_cfl(write_cfl(tmp_path / "scan", kspace * mask, slices_of(2, 40, 32, 2)))
        assert torch.equal(scan.mask, mask.float())
        assert torch.equal(scan.read_slice(1), kspace[1] * mask)


@pytest.fixture
def bart(tmp_path):
    if shutil.which("bart") is None:
        pytest.skip("BART is not installed")

    def run(*arguments: object) -> None:
        subprocess.run(["bart", *map(str, arguments)], cwd=tmp_path, check=True, capture_output=True, timeout=60)

    return run


def test_bart_agrees_on_axes_and_transform(bart, tmp_path):
    bart("phantom", "-x", 48, "-s", 3, "-k", "full")
    bart("resize", "-c", 1, 36, "full", "kspace")
    bart("fft", "-iu", 3, "kspace", "images")
    images = np.fromfile(tmp_path / "images.cfl", "<c8").reshape(48, 36, 3, order="F")
    scan = open_cfl(tmp_path / "kspace")
    assert scan.shape == (1, 3, 48, 36)
    expected = torch.from_numpy(images).movedim(-1, 0)
    error = (ifft2c(scan.read_slice(0)) - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-6


def test_a_volume_is_read_in_sections_as_the_refusal_says(bart, tmp_path):
    bart("phantom", "-3", "-x", 24, "-s", 2, "-k", "volume")
    bart("poisson", "-Y", 24, "-Z", 24, "-y", 1.5, "-z", 1.5, "-C", 8, "mask")
    bart("fmac", "volume", "mask", "kspace")
    refuse(tmp_path / "kspace.cfl", r"24 x 24 x 24 along READ, PHS1 and PHS2, .*`bart fft -iu 1`.*transpose 0 13")
    bart("fft", "-iu", 1, "kspace", "hybrid")
    bart("transpose", 0, 13, "hybrid", "sections")
    scan = open_cfl(tmp_path / "sections")
    assert scan.shape == (24, 2, 24, 24)
    sampled = np.fromfile(tmp_path / "mask.cfl", "<c8").reshape(24, 24, order="F") != 0
    assert torch.equal(scan.mask, torch.from_numpy(sampled).float())
    hybrid = np.fromfile(tmp_path / "hybrid.cfl", "<c8").reshape(24, 24, 24, 2, order="F")
    assert torch.equal(scan.read_slice(7), torch.from_numpy(hybrid[7]).movedim(-1, 0))


def test_broken_pairs_are_refused(tmp_path, phantom):
    kspace, sizes = phantom(coils=2, shape=(40, 32)), [40, 32, 1, 2]
    path = write_cfl(tmp_path / "scan", kspace, sizes)
    header = path.with_suffix(".hdr")
    path.write_bytes(path.read_bytes()[:-1])
    refuse(path, "has 20479 bytes, its header asks for 20480")
    path.write_bytes(path.read_bytes() + bytes(9))
    refuse(path, "has 20488 bytes, its header asks for 20480")
    path.unlink()
    refuse(path, "no such file")
    path = write_cfl(tmp_path / "scan", kspace, sizes)
    header.unlink()
    refuse(path, "scan.hdr: there is no such file")
    refuse(tmp_path, r"\.cfl: there is no such file")
    for text in ("", "# Dimensions\n", "forty two", "40 32 1 -2", "40 0 1 2", "40.0 32 1 2", "9" * 400, "\0" * 99):
        header.write_text(text)
        refuse(path, "no line of dimensions")
    header.write_text("40 32 1 2" + " 1" * 13)
    refuse(path, "17 dimensions, expected at most 16")
    header.write_text("16 160 1 1000000")
    refuse(path, "more than 1 GiB")
    header.write_text("2560 1 1 1")
    refuse(path, "2560 x 1 samples")


@pytest.mark.parametrize(("dimension", "name"), [(4, "MAPS"), (5, "TE"), (10, "TIME"), (14, "AVG"), (15, "BATCH")])
def test_other_dimensions_are_refused_by_name(tmp_path, phantom, dimension, name):
    sizes = slices_of(2, 40, 32, 1)
    sizes[dimension] = 3
    path = write_cfl(tmp_path / "scan", phantom(slices=3, coils=2, shape=(40, 32)), sizes)
    refuse(path, rf"dimension {dimension} \({name}\) has 3 entries, expected 1: .*bart slice")


def test_a_file_cut_after_opening_is_refused(tmp_path, phantom):
    path = write_cfl(tmp_path / "scan", phantom(slices=2, coils=2, shape=(40, 32)), slices_of(2, 40, 32, 2))
    scan = open_cfl(path)
    path.write_bytes(path.read_bytes()[:30000])
    reading.refuse(lambda _: scan, path, "slice 1 is cut short")


@pytest.mark.parametrize(("value", "match"), [(np.nan, "slice 0 of kspace holds NaN"), (0, "slice 1 .* all zeros")])
def test_unusable_values_are_refused(tmp_path, phantom, value, match):
    kspace = phantom(slices=2, coils=2, shape=(40, 32))
    kspace[0 if value else 1] = value
    refuse(write_cfl(Path(tmp_path / "scan"), kspace, slices_of(2, 40, 32, 2)), match)
