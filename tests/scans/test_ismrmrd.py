"""Files are written with the ismrmrd package, which shares no code with the reader."""

from __future__ import annotations

import os
import pickle
import re
import resource
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import reading
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_kspace
from test_damaged_files import survive

from mrgen.errors import MrgenError
from mrgen.physics.espirit import espirit_maps
from mrgen.physics.fourier import centre_crop, fft2c, ifft2c
from mrgen.physics.noise import covariance, whiten, whitening_matrix
from mrgen.posterior.baselines import cg_sense, zero_filled
from mrgen.scans.ismrmrd import _Samples, open_ismrmrd
from mrgen.scans.scan import Slice

ismrmrd = pytest.importorskip("ismrmrd", reason="writing ISMRMRD files needs the package ismrmrd")

pytestmark = pytest.mark.filterwarnings("error")
refuse = partial(reading.refuse, open_ismrmrd)
read_all = partial(reading.read_all, open_ismrmrd)
CALIBRATION, BOTH = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
NOISE, REVERSE = ismrmrd.ACQ_IS_NOISE_MEASUREMENT, ismrmrd.ACQ_IS_REVERSE
COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set", "segment")


def xml(enc, rec=None, *, fov=None, rec_fov=None, centre=None, last=None, trajectory="cartesian", more="", after=""):
    """A header; sizes and fields of view are (readout, phase, partition), `more` goes into its encoding."""
    enc, rec = (*enc, 1)[:3], (*(rec or enc), 1)[:3]
    fov, rec_fov = fov or enc, rec_fov or fov or rec

    def space(name, n, mm):
        sizes = [
            f"<{tag}><x>{v[0]}</x><y>{v[1]}</y><z>{v[2]}</z></{tag}>"
            for tag, v in (("matrixSize", n), ("fieldOfView_mm", mm))
        ]
        return f"<{name}>{''.join(sizes)}</{name}>"

    centre, last = enc[1] // 2 if centre is None else centre, enc[1] - 1 if last is None else last
    limits = f"<minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>"
    depth = f"<minimum>0</minimum><maximum>{enc[2] - 1}</maximum><center>{enc[2] // 2}</center>"
    return (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><subjectInformation><patientName>Doe^Jane</patientName>'
        "<patientID>Q4711Z</patientID></subjectInformation><acquisitionSystemInformation>"
        "<systemFieldStrength_T>3.0</systemFieldStrength_T><relativeReceiverNoiseBandwidth>0.8"
        "</relativeReceiverNoiseBandwidth><institutionName>Somewhere</institutionName></acquisitionSystemInformation>"
        f"<encoding>{space('encodedSpace', enc, fov)}{space('reconSpace', rec, rec_fov)}<encodingLimits>"
        f"<kspace_encoding_step_1>{limits}</kspace_encoding_step_1><kspace_encoding_step_2>{depth}"
        f"</kspace_encoding_step_2></encodingLimits><trajectory>{trajectory}</trajectory>{more}</encoding>{after}"
        "</ismrmrdHeader>"
    )


def mode(name):
    return (
        "<parallelImaging><accelerationFactor><kspace_encoding_step_1>3</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
        f"<calibrationMode>{name}</calibrationMode></parallelImaging>"
    )


def readout(
    samples, line=0, *, partition=0, flags=(), echo=None, dwell=5.0, pre=0, post=0, encoding=0, at=None, **counters
):
    """One readout (coil, sample); `at` is (position, readout, phase, slice direction)."""
    samples = np.ascontiguousarray(samples, np.complex64)
    one = ismrmrd.Acquisition.from_array(samples)
    one.center_sample = samples.shape[1] // 2 if echo is None else echo
    one.sample_time_us, one.discard_pre, one.discard_post, one.encoding_space_ref = dwell, pre, post, encoding
    one.idx.kspace_encode_step_1, one.idx.kspace_encode_step_2 = line, partition
    for name, value in counters.items():
        setattr(one.idx, name, value)
    for flag in flags:
        one.set_flag(flag)
    place = at or ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    for name, vector in zip(("position", "read_dir", "phase_dir", "slice_dir"), place, strict=True):
        getattr(one, name)[:] = vector
    return one


def lines_of(kspace, lines=None, **fields):
    """A readout for each of `lines` (all) of k-space (coil, ky, kx)."""
    return [readout(kspace[..., i], i, **fields) for i in (range(kspace.shape[-1]) if lines is None else lines)]


def save(path, readouts, header):
    with ismrmrd.Dataset(str(path), mode="w") as file:
        file.write_xml_header(header)
        for one in readouts:
            file.append_acquisition(one)
    return path


@pytest.fixture
def write(tmp_path):
    """write(readouts, header) writes an ISMRMRD file and returns its path."""
    return partial(save, tmp_path / "scan.h5")


@pytest.fixture
def kspace(phantom):
    """(coil, ky, kx) = (3, 32, 24)."""
    return phantom(coils=3, shape=(32, 24), noise=0.05)[0]


def test_lines_come_back_in_their_places_whatever_their_order(write, kspace):
    readouts = lines_of(kspace, np.random.default_rng(0).permutation(24))
    scan = open_ismrmrd(write(readouts, xml((32, 24))))
    assert (scan.format, scan.shape, scan.mask, scan.crop, scan.padding) == (
        "ISMRMRD",
        (1, 3, 32, 24),
        None,
        None,
        (0, 0),
    )
    assert (scan.noise, scan.read_calibration, scan.remarks) == (None, None, ())
    assert scan.read_slice(0).dtype == torch.complex64
    assert torch.equal(scan.read_slice(0), kspace)
    with pytest.raises(IndexError):
        scan.read_slice(1)


def test_the_oversampled_readout_is_cropped_in_image_space(write, kspace):
    scan = open_ismrmrd(write(lines_of(kspace), xml((32, 24), (16, 20), fov=(320, 240, 5), rec_fov=(160, 200, 5))))
    assert (scan.shape, scan.crop) == ((1, 3, 16, 24), (16, 20))
    torch.testing.assert_close(ifft2c(scan.read_slice(0)), centre_crop(ifft2c(kspace), (16, 24)))
    assert (scan.geometry.spacing, scan.geometry.thickness) == ((10, 10), 5)


def test_embedded_calibration_lines_are_part_of_the_image(write, kspace):
    lattice, centre = set(range(0, 24, 3)), set(range(8, 16))
    flags = {i: [BOTH] if i in lattice else [CALIBRATION] for i in centre}
    readouts = [readout(kspace[..., i], i, flags=flags.get(i, ())) for i in sorted(lattice | centre)]
    scan = open_ismrmrd(write(readouts, xml((32, 24), more=mode("embedded"))))
    assert scan.mask.nonzero().flatten().tolist() == sorted(lattice | centre)
    assert scan.read_calibration is None
    assert torch.equal(scan.read_slice(0), kspace * scan.mask)


def test_lines_with_both_calibration_flags_are_part_of_the_image(write, kspace):
    readouts = [readout(kspace[..., i], i, flags=[CALIBRATION, BOTH] if 8 <= i < 16 else ()) for i in range(24)]
    scan = open_ismrmrd(write(readouts, xml((32, 24))))
    assert (scan.mask, scan.read_calibration) == (None, None)
    assert torch.equal(scan.read_slice(0), kspace)


@pytest.mark.parametrize("header_mode", ["separate", None])
def test_calibration_lines_measured_apart_stay_apart(write, kspace, header_mode):
    apart = [readout(2 * kspace[..., i], i, flags=[CALIBRATION]) for i in range(7, 16)]
    again = [readout(9 * kspace[..., i], i, flags=[CALIBRATION], repetition=1) for i in range(7, 16)]
    images = [one for r in range(2) for one in lines_of(kspace, range(0, 24, 3), repetition=r)]
    header = xml(
        (32, 24), (16, 24), fov=(64, 48, 5), rec_fov=(32, 48, 5), more=mode(header_mode) if header_mode else ""
    )
    scan = open_ismrmrd(write([*again, *apart, *images], header))
    assert scan.mask.nonzero().flatten().tolist() == list(range(0, 24, 3))
    expected = fft2c(centre_crop(ifft2c(2 * kspace), (16, 24)))
    for i in range(2):  # lines -5 .. 3 were measured: -4 .. 3 lie symmetrically; the first repetition is taken
        torch.testing.assert_close(scan.read_calibration(i), expected[..., 8:16])
    assert "Coil maps come from calibration lines measured apart." in scan.remarks


@pytest.mark.parametrize(("lines", "block"), [(range(9, 14), (10, 14)), (range(10, 20), (10, 15))])
def test_calibration_blocks_are_as_large_as_they_can_be_around_the_centre(write, kspace, lines, block):
    apart = [readout(kspace[:, 0:28, i], i, flags=[CALIBRATION], echo=16) for i in lines]
    scan = open_ismrmrd(write([*apart, *lines_of(kspace, range(0, 24, 3))], xml((32, 24))))
    assert torch.equal(scan.read_calibration(0), kspace[:, 16 - 12 : 16 + 12, slice(*block)])


def test_calibration_lines_that_do_not_fill_a_block_are_not_used(write, kspace):
    apart = [readout(kspace[:, 14:18, i], i, flags=[CALIBRATION], echo=2) for i in range(9, 14)]
    scan = open_ismrmrd(write([*apart, *lines_of(kspace, range(0, 24, 3))], xml((32, 24))))
    assert scan.read_calibration is None
    assert "The calibration lines do not cover" in scan.remarks[-1]


def test_the_noise_scan_is_scaled_to_the_noise_of_the_images(write):
    """Noise of covariance C per us of dwell time and unit bandwidth; images are the mean of two readouts."""
    generator = torch.Generator().manual_seed(1)
    root = torch.tensor([[3.0, 0, 0], [1 + 1j, 2, 0], [0.5j, -1, 1]], dtype=torch.complex64)

    def noise(n, dwell, power=1.0):
        return root @ torch.randn(3, n, dtype=torch.complex64, generator=generator) * (power / dwell) ** 0.5

    readouts = [readout(noise(512, 20.0, power=0.8), flags=[NOISE], dwell=20.0) for _ in range(40)]
    readouts += [readout(noise(128, 2.5), i, dwell=2.5, average=a) for i in range(96) for a in range(2)]
    scan = open_ismrmrd(write(readouts, xml((128, 96), (64, 96), fov=(128, 96, 5), rec_fov=(64, 96, 5))))
    assert scan.noise.shape == (3, 40 * 512)
    expected = root @ root.conj().T / 2.5 / 2
    for samples in (scan.noise, scan.read_slice(0).flatten(1)):
        torch.testing.assert_close(covariance(samples), expected, rtol=0.04, atol=0.08)
    first = np.asarray(readouts[0].data)
    np.testing.assert_allclose(scan.noise[:, :512], first * np.sqrt(20 / 2.5 / 0.8 / 2), rtol=1e-6)
    assert "Each line was measured 2 times: their mean is used." in scan.remarks


def test_noise_scans_that_do_not_fit_are_not_used(write, kspace):
    for samples, coils in ((512, 2), (5, 3)):
        noise = readout(torch.ones(coils, samples), flags=[NOISE])
        scan = open_ismrmrd(write([noise, *lines_of(kspace)], xml((32, 24))))
        assert scan.noise is None
        assert "it is not used" in scan.remarks[0]
    noise = readout(torch.ones(3, 50), flags=[NOISE], dwell=0)
    scan = open_ismrmrd(write([noise, *lines_of(kspace)], xml((32, 24))))
    assert torch.equal(scan.noise, torch.ones(3, 50, dtype=torch.complex64))
    assert "Dwell times are unknown" in scan.remarks[0]


def test_averages_are_averaged(write, phantom):
    kspace = torch.stack([phantom(coils=2, shape=(16, 16), noise=0)[0] * (i + 1) for i in range(3)])
    readouts = [one for a in range(3) for one in lines_of(kspace[a], average=a)]
    scan = open_ismrmrd(write(readouts, xml((16, 16))))
    assert scan.slices == 1
    torch.testing.assert_close(scan.read_slice(0), kspace.mean(0))


def test_slices_are_ordered_as_they_lie(write, phantom):
    kspace = phantom(slices=4, coils=2, shape=(16, 16), noise=0.1)
    depth = [10.0, -20.0, 0.0, -10.0]
    axes = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    at = [((np.array([1, 2, 3]) + z * axes[2]), *axes) for z in depth]
    readouts = [readout(kspace[s, ..., i], i, slice=s, at=at[s]) for i in range(16) for s in (2, 0, 3, 1)]
    scan = open_ismrmrd(write(readouts, xml((16, 16), fov=(200, 160, 4))))
    order = np.argsort(depth)
    for i, s in enumerate(order):
        assert torch.equal(scan.read_slice(i), kspace[s])
        np.testing.assert_allclose(scan.geometry.positions[i], at[s][0], rtol=1e-6)
    found = scan.geometry.readout, scan.geometry.phase, scan.geometry.normal
    np.testing.assert_allclose(found, axes, rtol=1e-6)
    assert (scan.geometry.spacing, scan.geometry.thickness, scan.geometry.complete) == ((12.5, 10), 4, True)
    assert "Slices are ordered as they lie, not as they are numbered." in scan.remarks


def test_geometry_that_the_file_does_not_tell_is_left_out(write, phantom):
    kspace = phantom(slices=2, coils=2, shape=(16, 16))
    same = [one for s in range(2) for one in lines_of(kspace[s], slice=s)]
    scan = open_ismrmrd(write(same, xml((16, 16))))
    assert (scan.geometry.positions, scan.geometry.readout, scan.geometry.complete) == (None, None, False)
    assert "The file does not tell where the slices lie." in scan.remarks
    tilted = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)), ((0, 0, 9), (0, 1, 0), (0, 0, 1), (1, 0, 0))
    crossed = [one for s in range(2) for one in lines_of(kspace[s], slice=s, at=tilted[s])]
    scan = open_ismrmrd(write(crossed, xml((16, 16), fov=(0, 0, 0))))
    assert (scan.geometry.spacing, scan.geometry.thickness, scan.geometry.normal) == (None, None, None)
    assert scan.geometry.positions == ((0, 0, 0), (0, 0, 9))


def test_every_repetition_contrast_phase_and_set_is_an_image(write, phantom):
    kspace = phantom(slices=16, coils=2, shape=(16, 16), noise=0.1).unflatten(0, (2, 2, 2, 2))
    counts = [dict(zip(("repetition", "set", "contrast", "slice"), i, strict=True)) for i in np.ndindex(2, 2, 2, 2)]
    readouts = [
        readout(kspace[tuple(c.values())][..., i], i, at=((0, 0, 5 * c["slice"]), (1, 0, 0), (0, 1, 0), (0, 0, 1)), **c)
        for i in range(16)
        for c in reversed(counts)
    ]
    scan = open_ismrmrd(write(readouts, xml((16, 16))))
    for i, image in enumerate(kspace.flatten(0, 3)):
        assert torch.equal(scan.read_slice(i), image)
    assert scan.remarks == ("16 images: repetition (2), set (2), contrast (2), slice (2); the last varies fastest.",)
    assert [p[2] for p in scan.geometry.positions] == [0, 5] * 8
    stopped = [
        one for one in readouts if not (one.idx.repetition == one.idx.set == 1 and one.idx.kspace_encode_step_1 > 8)
    ]
    scan = open_ismrmrd(write(stopped, xml((16, 16))))
    assert scan.slices == 12
    assert torch.equal(scan.read_slice(11), kspace[1, 0, 1, 1])
    assert "4 incomplete images, with fewer lines than others, are left out." in scan.remarks


def forward_z(slices):
    """Partitions of a volume (z, ...), by the matrix of the centred transform."""
    n = len(slices)
    z = torch.arange(n) - n // 2
    matrix = torch.exp(-2j * torch.pi * torch.outer(z, z) / n) / n**0.5
    return torch.einsum("pz,z...->p...", matrix, slices)


@pytest.mark.parametrize("n_z", [6, 7])
def test_partitions_of_a_volume_become_slices(write, phantom, n_z):
    slices = phantom(slices=n_z, coils=2, shape=(16, 16), noise=0.2) * torch.arange(1, n_z + 1)[:, None, None, None]
    readouts = [one for p, k in enumerate(forward_z(slices)) for one in lines_of(k, partition=p)]
    scan = open_ismrmrd(write(readouts, xml((16, 16, n_z), fov=(16, 16, 3.0 * n_z))))
    assert scan.slices == n_z
    for i in range(n_z):
        torch.testing.assert_close(scan.read_slice(i), slices[i], rtol=1e-5, atol=1e-5)
    assert scan.geometry.thickness == 3
    assert [p[2] for p in scan.geometry.positions] == [3.0 * (i - n_z // 2) for i in range(n_z)]
    assert scan.remarks == (f"The {n_z} partitions are Fourier transformed to slices; {n_z} are kept.",)
    wide = xml((16, 16, n_z), (16, 16, 4), fov=(16, 16, 3.0 * n_z), rec_fov=(16, 16, 12.0))
    scan = open_ismrmrd(write(readouts, wide))
    assert scan.slices == 4
    torch.testing.assert_close(scan.read_slice(1), slices[n_z // 2 - 1], rtol=1e-5, atol=1e-5)
    assert [p[2] for p in scan.geometry.positions] == [-6, -3, 0, 3]


def test_partial_fourier_along_partitions_is_zero_filled_and_quieter(write, phantom):
    partitions = forward_z(phantom(slices=8, coils=2, shape=(16, 16), noise=0.2))
    readouts = [one for p in range(2, 8) for one in lines_of(partitions[p], partition=p)]
    noise = torch.randn(2, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    scan = open_ismrmrd(write([readout(noise, flags=[NOISE], dwell=4.0), *readouts], xml((16, 16, 8))))
    partitions[:2] = 0
    expected = torch.einsum("pz,p...->z...", forward_z(torch.eye(8, dtype=torch.complex64)).conj(), partitions)
    for i in range(8):
        torch.testing.assert_close(scan.read_slice(i), expected[i], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scan.noise, noise * (4 / 5 / 0.8 * 6 / 8) ** 0.5)
    assert "(2 were not acquired: they are 0)" in scan.remarks[0]


def test_undersampled_partitions_are_refused(write, phantom):
    partitions = phantom(slices=8, coils=2, shape=(16, 16))
    header = xml((16, 16, 8))
    gaps = [one for p in (0, 2, 3, 4, 5, 6) for one in lines_of(partitions[p], partition=p)]
    refuse(write(gaps, header), "undersampled along its 8 partitions")
    shifted = [one for p in range(8) for one in lines_of(partitions[p], range(p % 2, 16, 2), partition=p)]
    refuse(write(shifted, header), "undersampled along its 8 partitions")
    refuse(write(lines_of(partitions[0], partition=4), header), "3-D encoding with 8 partitions, the data hold one")


def test_partial_fourier_leaves_the_matrix_and_tells_the_padding(write, kspace):
    readouts = [readout(kspace[..., i + 6], i) for i in range(18)]
    scan = open_ismrmrd(write(readouts, xml((32, 24), centre=6, last=17)))
    assert (scan.mask, scan.padding, scan.shape) == (None, (6, 0), (1, 3, 32, 24))
    assert torch.equal(scan.read_slice(0)[..., 6:], kspace[..., 6:])
    assert not scan.read_slice(0)[..., :6].any()
    assert scan.remarks[0].startswith("The first 6 and last 0 of 24 phase-encoding lines were not acquired (partial F")


def test_undersampled_lines_within_the_limits_are_no_padding(write, kspace):
    readouts = [readout(kspace[..., i + 6], i) for i in range(0, 18, 4)]  # columns 6, 10, ..., 22
    scan = open_ismrmrd(write(readouts, xml((32, 24), centre=6, last=17)))
    assert scan.mask.nonzero().flatten().tolist() == [6, 10, 14, 18, 22]
    assert scan.padding == (6, 0)


@pytest.mark.parametrize("backwards", [False, True])
def test_an_asymmetric_echo_is_zero_filled_in_front(write, kspace, backwards):
    short = kspace[:, 10:]
    flipped = {"flags": [REVERSE], "echo": 22 - 6}
    readouts = lines_of(short.flip(1), **flipped) if backwards else lines_of(short, echo=6)
    scan = open_ismrmrd(write(readouts, xml((32, 24))))
    assert torch.equal(scan.read_slice(0)[:, 10:], short)
    assert not scan.read_slice(0)[:, :10].any()
    assert scan.remarks == ("10 of 32 readout samples were not acquired (asymmetric echo): they are 0.",)


def test_reversed_readouts_are_turned_around(write, kspace):
    readouts = [
        readout(kspace[..., i].flip(1) if i % 2 else kspace[..., i], i, flags=[REVERSE] if i % 2 else ())
        for i in range(24)
    ]
    assert torch.equal(open_ismrmrd(write(readouts, xml((32, 24)))).read_slice(0), kspace)


def test_samples_to_discard_are_discarded(write, kspace):
    longer = torch.nn.functional.pad(kspace, (0, 0, 5, 3), value=99)
    for flags, data, pre, post, echo in (((), longer, 5, 3, 21), ([REVERSE], longer.flip(1), 3, 5, 19)):
        path = write(lines_of(data, pre=pre, post=post, echo=echo, flags=flags), xml((32, 24)))
        assert torch.equal(open_ismrmrd(path).read_slice(0), kspace)


def test_a_complete_readout_needs_no_echo(write, kspace):
    assert torch.equal(open_ismrmrd(write(lines_of(kspace, echo=0), xml((32, 24)))).read_slice(0), kspace)


def test_navigators_and_the_like_are_left_out(write, kspace):
    names = "NAVIGATION_DATA PHASECORR_DATA HPFEEDBACK_DATA DUMMYSCAN_DATA RTFEEDBACK_DATA PHASE_STABILIZATION"
    flags = [getattr(ismrmrd, f"ACQ_IS_{name}") for name in names.split()]
    others = [readout(1e3 * kspace[..., 3], 3, flags=[flag]) for flag in flags]
    surface = ismrmrd.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA
    scan = open_ismrmrd(write([*others, *lines_of(kspace, flags=[surface])], xml((32, 24))))
    assert torch.equal(scan.read_slice(0), kspace)
    assert scan.remarks == ("6 navigator, phase-correction, feedback and dummy readouts are left out.",)


def test_of_several_encodings_the_first_with_images_is_read(write, kspace):
    second = xml((16, 16)).partition("<encoding>")[2].partition("</encoding>")[0]
    other = lines_of(torch.ones(3, 16, 16), encoding=1)
    header = xml((32, 24), after=f"<encoding>{second}</encoding>")
    scan = open_ismrmrd(write([*other, *lines_of(kspace)], header))
    assert torch.equal(scan.read_slice(0), kspace)
    assert "Of 2 encodings only the first with images is read." in scan.remarks
    scan = open_ismrmrd(write([*other, *lines_of(kspace, flags=[ismrmrd.ACQ_IS_DUMMYSCAN_DATA])], header))
    assert scan.shape == (1, 3, 16, 16)
    refuse(write(lines_of(kspace, encoding=1), xml((32, 24))), "1 encodings, the data use number 1")


def test_only_the_readouts_of_the_slice_are_read(write, phantom, monkeypatch):
    kspace = phantom(slices=3, coils=2, shape=(16, 16))
    kspace[2] = torch.nan
    at = [((0, 0, 4 * s), (1, 0, 0), (0, 1, 0), (0, 0, 1)) for s in range(3)]
    path = write([readout(kspace[s, ..., i], i, slice=s, at=at[s]) for i in range(16) for s in range(3)], xml((16, 16)))
    rows, original = [], _Samples.__call__
    monkeypatch.setattr(_Samples, "__call__", lambda self, t: rows.extend(t["row"].tolist()) or original(self, t))
    scan = open_ismrmrd(path)
    assert rows == []
    assert torch.equal(scan.read_slice(1), kspace[1])
    assert rows == list(range(1, 48, 3))
    with pytest.raises(MrgenError, match="slice 2 holds NaN"):
        scan.read_slice(2)


def test_reading_leaks_no_file_handle(write, kspace):
    path = write([readout(torch.ones(3, 50), flags=[NOISE]), *lines_of(kspace)], xml((32, 24)))
    scan = open_ismrmrd(path)
    assert torch.equal(scan.read_slice(0), kspace)
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc/self/fd on this system")
    before = len(os.listdir(folder))
    scans = [open_ismrmrd(path) for _ in range(20)]
    for one in scans:
        one.read_slice(0)
    assert len(os.listdir(folder)) == before


def test_nothing_that_identifies_a_person_stays_in_the_scan(write, kspace):
    scan = open_ismrmrd(write(lines_of(kspace), xml((32, 24))))
    for secret in ("Doe", "Q4711Z", "Somewhere"):
        assert secret not in repr(scan) + scan.header + str(pickle.dumps(scan))


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (xml((32, 24), trajectory="radial"), "'radial', expected 'cartesian'"),
        (xml((32, 24), trajectory="epi"), "'epi' .echo-planar readouts have to be regridded"),
        (xml((64, 24), fov=(64, 24, 1)).replace("<center>12", "<center>3"), "lines -3 to 20 .* matrix of 24"),
        (xml((32, 16)), "lines -8 to 15 .* matrix of 16"),
        (xml((30, 24)), "32 samples .* does not fit in the header's readout matrix of 30"),
        (xml((32, 24 * 65)), "24 lines were measured of the header's matrix of 1560"),
        (xml((65535, 24)), "readouts have up to 32 samples, the header's readout matrix 65535"),
        (xml((32, 65535)), "24 lines were measured"),
        (xml((32, 24)).replace("<x>32</x>", "<x>1e9</x>"), "matrixSize/x = 1e.09"),
        ("<a><b></a>", "not valid XML"),
    ],
)
def test_headers_that_do_not_fit_the_data_are_refused(write, kspace, header, match):
    refuse(write(lines_of(kspace), header), match)


def test_readouts_that_make_no_scan_are_refused(write, kspace, tmp_path):
    header = xml((32, 24))
    refuse(write([readout(torch.ones(3, 50), flags=[NOISE])], header), "no imaging readouts")
    refuse(write([*lines_of(kspace), *lines_of(kspace[:2], slice=1)], header), "2 to 3 coils")
    two = [*lines_of(kspace, range(0, 24, 2)), *lines_of(kspace, range(1, 24, 2), repetition=1)]
    refuse(write(two, header), "the images sample different lines")
    refuse(write(lines_of(kspace * 0), header), "slice 0 is all zeros")
    refuse(write([readout(torch.full((3, 50), torch.inf), flags=[NOISE]), *lines_of(kspace)], header), "the noise scan")
    refuse(tmp_path / "none.h5", "no such file")
    (tmp_path / "text.h5").write_text("not HDF5" * 100)
    refuse(tmp_path / "text.h5", "not a readable HDF5 file")


@pytest.fixture(scope="module")
def phantom_3t():
    path = Path(__file__).parents[2].parent / "shared/data/scans/phantom_14ch_prospective_R3_ismrmrd.h5"
    if not path.is_file():
        pytest.skip("no folder ../shared/data/scans with measured data beside the repository")
    return path


def test_a_measured_scan_equals_what_the_ismrmrd_package_reads(phantom_3t):
    scan = open_ismrmrd(phantom_3t)
    expected = np.zeros((14, 384, 144), np.complex64)
    with ismrmrd.Dataset(str(phantom_3t), mode="r") as file:
        for i in range(1, file.number_of_acquisitions()):
            one = file.read_acquisition(i)
            expected[..., one.idx.kspace_encode_step_1 - 54 + 72] = one.data
        noise = file.read_acquisition(0)
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(expected, 1), axis=1, norm="ortho"), 1)[:, 96:288]
    expected = np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, 1), axis=1, norm="ortho"), 1)
    np.testing.assert_allclose(scan.read_slice(0), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(scan.noise, noise.data * np.sqrt(20 / 2.4 / 0.793), rtol=1e-5)
    lattice = [*range(18, 49, 3), *range(49, 97), *range(99, 124, 3)]
    assert scan.mask.nonzero().flatten().tolist() == lattice
    assert (scan.shape, scan.padding) == ((1, 14, 192, 144), (18, 20))
    assert scan.geometry.spacing == (280 / 192, 210 / 144)
    np.testing.assert_allclose(scan.geometry.positions[0], noise.position)


def test_a_prospectively_accelerated_scan_is_reconstructed_without_aliasing(phantom_3t):
    """CG-SENSE from every third line predicts the calibration lines between them, and leaves the background empty."""
    scan = open_ismrmrd(phantom_3t)
    y = whiten(scan.read_slice(0), whitening_matrix(covariance(scan.noise)))
    maps = espirit_maps(y[None, :, 72:120, 60:84], (192, 144), 1.0)[0][0]
    third = torch.zeros(144)
    third[18:124:3] = 1
    slice_ = Slice(kspace=y * third, mask=third, maps=maps, sigma0=1.0, scale=1.0, reference=None)
    x = cg_sense(slice_, 1e-3, 15)

    held_out = scan.mask - third
    error = (held_out * (fft2c(maps * x) - y)).norm() / (held_out * y).norm()
    aliased = (held_out * (fft2c(maps * zero_filled(slice_)) - y)).norm() / (held_out * y).norm()
    assert error < 0.1 < 0.7 < aliased

    low = ifft2c(y[..., 49:97]).abs().square().sum(0).sqrt()
    low = torch.nn.functional.interpolate(low[None, None], size=(192, 144))[0, 0] / low.max()
    ghosts = ((low.roll(48, 1) > 0.1) | (low.roll(-48, 1) > 0.1)) & (low < 0.03)
    inside = low > 0.1
    for image, least, most in ((zero_filled(slice_), 0.3, 1.0), (x, 0.0, 0.05)):
        assert least < float(image.abs()[ghosts].mean() / image.abs()[inside].mean()) < most

    outer = third.bool() & ((torch.arange(144) - 72).abs() > 30)  # where the maps' errors are below the noise
    residual = (slice_.operator().forward(x) - slice_.kspace)[..., outer]
    assert float(residual.abs().square().mean().sqrt()) == pytest.approx(1, abs=0.2)


@contextmanager
def little_memory(more=2**30):
    """No more than `more` bytes can be allocated inside."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@cache
def good(folder):
    """The bytes of a small file with a noise scan, calibration lines apart, two slices and two averages."""
    kspace = make_kspace(slices=2, coils=2, shape=(16, 16))
    readouts = [readout(torch.randn(2, 20), flags=[NOISE])]
    at = [((0, 0, 4 * s), (1, 0, 0), (0, 1, 0), (0, 0, 1)) for s in range(2)]
    for s in range(2):
        readouts += lines_of(kspace[s], range(5, 11), flags=[CALIBRATION], slice=s, at=at[s])
        readouts += [
            one for a in range(2) for one in lines_of(kspace[s], range(0, 16, 2), slice=s, average=a, at=at[s])
        ]
    path = save(folder / "good.h5", readouts, xml((16, 16), more=mode("separate")))
    assert len(read_all(path)) == 4
    return path.read_bytes()


def survives(path):
    with little_memory():
        survive(path)


@reading.fuzz
@given(data=st.data())
@pytest.mark.damage
def test_truncated_files_are_refused(folder, data):
    (folder / "cut.h5").write_bytes(good(folder)[: data.draw(st.integers(0, len(good(folder)) - 1), "length")])
    refuse(folder / "cut.h5", ": ")


@reading.fuzz
@given(data=st.data())
@pytest.mark.damage
def test_flipped_bytes_never_crash(folder, data):
    content = bytearray(good(folder))
    near = st.integers(0, min(len(content), 8192) - 1)  # where the metadata are
    for _ in range(data.draw(st.integers(1, 12), "flips")):
        content[data.draw(near | st.integers(0, len(content) - 1), "place")] = data.draw(st.integers(0, 255), "value")
    (folder / "flipped.h5").write_bytes(content)
    survives(folder / "flipped.h5")


FIELDS = ["flags", "number_of_samples", "active_channels", "discard_pre", "discard_post", "center_sample"]
FIELDS += ["encoding_space_ref", "kspace_encode_step_1", "kspace_encode_step_2", *COUNTERS]
VECTORS = ["sample_time_us", "position", "read_dir", "phase_dir", "slice_dir"]


@reading.fuzz
@given(
    edits=st.lists(
        st.tuples(
            st.sampled_from(FIELDS + VECTORS),
            st.sampled_from([0, 1, 2, 15, 16, 17, 255, 32768, 65535, 2**19, 2**20, 2**32 - 1]),
            st.sampled_from([np.nan, np.inf, -1.0, 0.0, 1e-38, 1e38]),
            st.integers(0, 44),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
@pytest.mark.damage
def test_absurd_heads_never_crash(folder, edits):
    (folder / "heads.h5").write_bytes(good(folder))
    with h5py.File(folder / "heads.h5", "r+") as file:
        readouts = file["dataset/data"][:]
        for name, count, number, row, all_rows in edits:
            head = readouts["head"]["idx"] if name in readouts["head"]["idx"].dtype.names else readouts["head"]
            value = number if name in VECTORS else count % 2 ** (8 * head[name].dtype.itemsize)
            head[name][slice(None) if all_rows else row] = value
        file["dataset/data"][:] = readouts
    survives(folder / "heads.h5")


@reading.fuzz
@given(
    name=st.sampled_from(["matrixSize", "fieldOfView_mm", "center", "maximum", "relativeReceiverNoiseBandwidth"]),
    axis=st.sampled_from("xyz"),
    text=st.sampled_from(
        ["-1", "0", "1", "15", "17", "64", "65535", "1e9", "nan", "inf", "1e-300", "", "many", "9" * 5000]
    ),
)
@pytest.mark.damage
def test_absurd_headers_never_crash(folder, name, axis, text):
    header = xml((16, 16), more=mode("separate"))
    number = rf"(<{name}>[^/]*?<{axis}>)[\d.]+" if f"<{name}><x>" in header else rf"(<{name}>)[\d.]+"
    (folder / "header.h5").write_bytes(good(folder))
    with h5py.File(folder / "header.h5", "r+") as file:
        file["dataset/xml"][0] = re.sub(number, lambda found: found[1] + text, header)
    survives(folder / "header.h5")


@reading.fuzz
@given(
    name=st.sampled_from(["xml", "data", "head", "idx", "flags", "position", "samples"]),
    kind=st.sampled_from(["missing", "i8", "f4", "S3", "c8", "group", "empty", "two axes", "nan", "short", "zeros"]),
)
@pytest.mark.damage
def test_wrong_types_and_missing_parts_never_crash(folder, name, kind):
    (folder / "parts.h5").write_bytes(good(folder))
    with h5py.File(folder / "parts.h5", "r+") as file:
        group = file["dataset"]
        readouts = group["data"][:]
        if name in ("xml", "data"):
            kept = group[name][:]
            del group[name]
            if kind == "group":
                group.create_group(name)
            elif kind == "empty":
                group[name] = h5py.Empty("f4")
            elif kind == "two axes":
                group.create_dataset(name, data=np.stack([kept, kept]), dtype=kept.dtype)
            elif kind == "zeros":
                group.create_dataset(name, (2**40,), kept.dtype, chunks=(1,))
            elif kind != "missing":
                group[name] = np.ones(45, kind if kind in ("i8", "f4", "S3", "c8") else "f8")
        elif name == "samples":
            wrong = {"nan": np.full(64, np.nan, "f4"), "short": np.ones(7, "f4"), "zeros": np.zeros(64, "f4")}
            for i in range(0, 45, 3):
                readouts["data"][i] = wrong.get(kind, np.ones(0, "f4"))
            group["data"][:] = readouts
        else:
            dtype = changed(group["data"].dtype, name, kind)
            del group["data"]
            readouts = np.zeros(45, dtype)
            for i in range(45):
                readouts["data"][i], readouts["traj"][i] = np.ones(64, "f4"), np.ones(0, "f4")
            group.create_dataset("data", data=readouts)
    survives(folder / "parts.h5")


def changed(dtype, name, kind):
    """The type of a readout with the field `name` of another type, or without it."""
    fields = []
    for field in dtype.names:
        inner = dtype[field]
        if field == name and kind == "missing":
            continue
        if field == name and inner.fields is None:
            shape = (2,) if kind == "two axes" else ()
            inner = np.dtype((kind if kind in ("i8", "f4", "S3") else "u1", shape))
        elif inner.fields is not None:
            inner = changed(inner, name, kind)
        fields.append((field, inner))
    return np.dtype(fields)
