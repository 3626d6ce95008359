"""Files of the newer generation are written by twixtools, whose map_twix is the reference for the measured one."""

from __future__ import annotations

import os
import pickle
import sys
from contextlib import redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import reading
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import make_kspace
from test_damaged_files import survive

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop, fft2c, ifft2c
from mrgen.scans.twix import open_twix

twixtools = pytest.importorskip("twixtools", reason="Siemens twix files need the package twixtools")
mdb, mdh_def = twixtools.mdb, twixtools.mdb.mdh_def
pytestmark = pytest.mark.filterwarnings("error")
refuse = partial(reading.refuse, open_twix)
read_all = partial(reading.read_all, open_twix)
IDENTITY = (1, 0, 0, 0)  # quaternion


def protocol(**values):
    """A protocol with the numbers of 3 x 32 x 24 k-space, or those in `values`, where `_` stands for a dot."""
    numbers = {
        "sKSpace.lBaseResolution": 16,
        "sKSpace.lPhaseEncodingLines": 24,
        "sKSpace.ucDimension": "0x2",
        "sSliceArray.asSlice[0].dReadoutFOV": 160.0,
        "sSliceArray.asSlice[0].dPhaseFOV": 240.0,
        "sSliceArray.asSlice[0].dThickness": 4.0,
        "sRXSPEC.alDwellTime[0]": 5000,
        **{name.replace("_", "."): value for name, value in values.items()},
    }
    lines = "".join(f"{name}\t = \t{value}\n" for name, value in numbers.items())
    text = (
        '<ParamString."tPatientName"> { "Doe^Jane" }\n<ParamDouble."flReadoutOSFactor"> { <Precision> 6 2.000000 }\n'
        f'### ASCCONV BEGIN ###\n{lines}tPatientID = "Q4711Z"\n### ASCCONV END ###\n'
    ).encode()
    return np.array([10240, 1], "<u4").tobytes() + text.ljust(10240 - 8, b"\0")


def readout(
    samples, line=0, *, flags=(), centre=(None, 12, 0), cut=(0, 0), position=(0, 0, 0), quaternion=IDENTITY, **counters
):
    """One readout (coil, sample); `centre` is that along the samples, lines and partitions."""
    one = mdb.Mdb_local(np.ascontiguousarray(samples, np.complex64))
    head = one.mdh
    head.CenterCol = samples.shape[1] // 2 if centre[0] is None else centre[0]
    head.CenterLin, head.CenterPar = centre[1:]
    head.CutOff.Pre, head.CutOff.Post = cut
    head.Counter.Lin = line
    for name, value in counters.items():
        setattr(head.Counter, name, value)
    place = head.SliceData.SlicePos
    place.Sag, place.Cor, place.Tra = position
    head.SliceData.Quaternion[:] = quaternion
    for flag in flags:
        one.add_flag(flag)
    return one


def lines_of(kspace, lines=None, **fields):
    """A readout for each of `lines` (all) of k-space (coil, ky, kx)."""
    return [readout(kspace[..., i], i, **fields) for i in (range(kspace.shape[-1]) if lines is None else lines)]


def synchronised(length=320):
    """A block of physiological data between readouts."""
    one = mdb.Mdb_local()
    one.add_flag("SYNCDATA")
    mdh_def.set_dma_len(one.mdh, length)
    one._Mdb_local__data = np.zeros(length - 192, "u1")
    return one


def save(path, *measurements):
    """Write (readouts, protocol) measurements as software VD/VE does."""
    path.unlink(missing_ok=True)
    scans = [{"hdr_str": np.frombuffer(text, "S1"), "mdb": list(readouts)} for readouts, text in measurements]
    with redirect_stdout(None):
        twixtools.write_twix(scans, path)
    return path


def save_old(path, readouts, text):
    """Write one measurement as software VB does: a header before the samples of each coil."""
    content = text
    for one in [*readouts, None]:
        head = mdh_def.VB17_header()
        if one is None:
            mdh_def.add_flag(head, "ACQEND")
            content += bytes(head)
            continue
        for name in ("EvalInfoMask", "SamplesInScan", "UsedChannels", "Counter", "CutOff", "CenterCol", "CenterLin"):
            setattr(head, name, getattr(one.mdh, name))
        head.CenterPar, head.SliceData = one.mdh.CenterPar, one.mdh.SliceData
        content += b"".join(bytes(head) + coil.tobytes() for coil in one.data)
    path.write_bytes(content)
    return path


@pytest.fixture
def write(tmp_path):
    """write(readouts, protocol) writes a file of one measurement and returns its path."""
    return lambda readouts, text=None: save(tmp_path / "meas.dat", (readouts, text or protocol()))


@pytest.fixture
def kspace(phantom):
    """(coil, ky, kx) = (3, 32, 24)."""
    return phantom(coils=3, shape=(32, 24), noise=0.05)[0]


def cropped(kspace):
    """Without the oversampling of the readout."""
    return fft2c(centre_crop(ifft2c(kspace), (kspace.shape[-2] // 2, kspace.shape[-1])))


@pytest.mark.parametrize("old", [False, True])
def test_lines_come_back_in_their_places_in_both_generations(write, kspace, tmp_path, capsys, old):
    readouts = lines_of(kspace, np.random.default_rng(0).permutation(24))
    path = save_old(tmp_path / "old.dat", readouts, protocol()) if old else write(readouts)
    scan = open_twix(path)
    assert capsys.readouterr() == ("", "")
    assert (scan.format, scan.shape, scan.header) == ("Siemens twix", (1, 3, 16, 24), None)
    assert (scan.mask, scan.padding, scan.crop, scan.noise, scan.remarks) == (None, (0, 0), None, None, ())
    torch.testing.assert_close(scan.read_slice(0), cropped(kspace))
    with pytest.raises(IndexError):
        scan.read_slice(1)


def test_without_oversampling_nothing_is_cropped(write, kspace):
    text = protocol(sKSpace_lBaseResolution=32).replace(b"6 2.000000", b"6 1.000000")
    assert torch.equal(open_twix(write(lines_of(kspace), text)).read_slice(0), kspace)


def test_reversed_and_cut_readouts_and_partial_fourier(write, kspace):
    longer = torch.nn.functional.pad(kspace, (0, 0, 4, 2), value=99)
    readouts = [
        readout(longer[..., i].flip(1), i - 6, flags=["REFLECT"], centre=(18, 6, 0), cut=(2, 4))
        if i % 2
        else readout(longer[..., i], i - 6, centre=(20, 6, 0), cut=(4, 2))
        for i in range(6, 24)
    ]
    scan = open_twix(write(readouts))
    kspace[..., :6] = 0
    torch.testing.assert_close(scan.read_slice(0), cropped(kspace))
    assert (scan.mask, scan.padding) == (None, (6, 0))
    assert "(partial Fourier)" in scan.remarks[0]


def test_lines_beyond_those_of_the_protocol_widen_the_matrix(write, kspace):
    """Every third of 22 lines, of which the protocol knows 20, with the centre of k-space at line 9."""
    text = protocol(sKSpace_lPhaseEncodingLines=20)
    measured = [readout(kspace[..., i + 3], i, centre=(None, 9, 0)) for i in range(0, 22, 3) if i + 3 < 24]
    scan = open_twix(write(measured, text))
    assert scan.shape[-1] == 20
    measured = [readout(kspace[..., i], i) for i in range(0, 24, 3)]
    scan = open_twix(write(measured, text))
    assert (scan.shape[-1], scan.padding) == (24, (0, 2))
    torch.testing.assert_close(scan.read_slice(0), cropped(kspace * scan.mask))
    assert scan.mask.nonzero().flatten().tolist() == list(range(0, 24, 3))
    assert scan.geometry.spacing == (10, 10)


def test_phase_correction_and_other_blocks_are_left_out(write, kspace):
    names = ["PHASCOR", "RTFEEDBACK", "HPFEEDBACK", "PHASESTABSCAN", "REFPHASESTABSCAN", "RETRO_DUMMYSCAN"]
    others = [readout(100 * kspace[:, :, 3], 3, flags=[name]) for name in names]
    scan = open_twix(write([*others, synchronised(), *lines_of(kspace)]))
    torch.testing.assert_close(scan.read_slice(0), cropped(kspace))
    assert scan.remarks == ("6 phase-correction, feedback and dummy readouts are left out.",)


def test_averages_slices_and_repetitions(write, phantom):
    kspace = phantom(slices=12, coils=2, shape=(32, 24), noise=0.3).unflatten(
        0, (2, 3, 2)
    )  # repetition, slice, average
    depth = [0.0, -8.0, 8.0]
    readouts = [
        readout(kspace[r, s, a, ..., i], i, Rep=r, Sli=s, Ave=a, position=(1, 2, depth[s]))
        for r, s, a, i in np.ndindex(2, 3, 2, 24)
    ]
    scan = open_twix(write(readouts))
    assert scan.slices == 6
    for i, (r, s) in enumerate((r, s) for r in range(2) for s in (1, 0, 2)):
        torch.testing.assert_close(scan.read_slice(i), cropped(kspace[r, s].mean(0)))
        assert scan.geometry.positions[i] == (1, 2, depth[s])
    assert scan.remarks[0] == "6 images: repetition (2), slice (3); the last varies fastest."


def test_directions_come_from_the_quaternion(write, kspace):
    quaternion = np.array([0.5, -0.1, 0.7, 0.3]) / np.linalg.norm([0.5, -0.1, 0.7, 0.3])
    scan = open_twix(write(lines_of(kspace, quaternion=quaternion, position=(3, -4, 5))))
    phase, across, read = scan.geometry.phase, scan.geometry.normal, scan.geometry.readout
    rotation = twixtools.geometry.quat_to_rotmat(*quaternion)
    np.testing.assert_allclose(np.stack([phase, read, across], axis=1), rotation, atol=1e-6)
    assert (scan.geometry.spacing, scan.geometry.thickness) == ((10, 10), 4)
    assert scan.geometry.positions == ((3, -4, 5),)


def test_partitions_become_slices(write, phantom):
    slices = phantom(slices=6, coils=2, shape=(32, 24), noise=0.2) * torch.arange(1, 7)[:, None, None, None]
    z = torch.arange(6) - 3
    partitions = torch.einsum("pz,z...->p...", torch.exp(-2j * torch.pi * torch.outer(z, z) / 6) / 6**0.5, slices)
    readouts = [one for p in range(6) for one in lines_of(partitions[p], Par=p, centre=(None, 12, 3))]
    text = protocol(
        sKSpace_ucDimension=4,
        sKSpace_lPartitions=6,
        sKSpace_lImagesPerSlab=4,
        sKSpace_dSliceOversamplingForDialog=0.5,
        **{"sSliceArray.asSlice[0].dThickness": 20.0},
    )
    scan = open_twix(write(readouts, text))
    assert scan.slices == 4
    for i in range(4):
        torch.testing.assert_close(scan.read_slice(i), cropped(slices[i + 1]), rtol=1e-5, atol=1e-5)
    assert scan.geometry.thickness == 5
    assert [p[2] for p in scan.geometry.positions] == [-10, -5, 0, 5]


def test_calibration_lines_embedded_and_apart(write, kspace):
    lattice, centre = range(0, 24, 3), range(8, 16)
    imaging = [readout(kspace[..., i], i, flags=["PATREFANDIMASCAN"] if i in centre else []) for i in lattice]
    extra = [readout(kspace[..., i], i, flags=["PATREFSCAN"]) for i in centre if i not in lattice]
    scan = open_twix(write(imaging + extra, protocol(sPat_ucRefScanMode=2)))
    assert scan.mask.nonzero().flatten().tolist() == sorted({*lattice, *centre})
    torch.testing.assert_close(scan.read_slice(0), cropped(kspace * scan.mask))
    assert scan.read_calibration is None
    apart = [readout(3 * kspace[..., i], i, flags=["PATREFSCAN"]) for i in centre]
    scan = open_twix(write(lines_of(kspace, lattice) + apart, protocol(sPat_ucRefScanMode=4)))
    assert scan.mask.nonzero().flatten().tolist() == list(lattice)
    torch.testing.assert_close(scan.read_calibration(0), 3 * cropped(kspace)[..., 8:16])


@pytest.mark.parametrize(("name", "dwell"), [(None, 76800 // 256 / 10), ("AdjCoilSens", 5.0)])
def test_the_noise_scan_is_scaled_to_the_images(tmp_path, kspace, name, dwell):
    """In the measurement itself, or in an adjustment before it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 256, dtype=torch.complex64, generator=generator)
    images = lines_of(kspace)
    readouts = [readout(noise, flags=["NOISEADJSCAN"])]
    if name is None:
        path = save(tmp_path / "meas.dat", (readouts + images, protocol()))
    else:
        adjustment = protocol(tProtocolName=f'"{name}"')
        path = save(tmp_path / "meas.dat", (readouts + lines_of(9 * kspace), adjustment), (images, protocol()))
    scan = open_twix(path)
    torch.testing.assert_close(scan.noise, noise * (dwell / 5.0 / 0.793) ** 0.5)
    torch.testing.assert_close(scan.read_slice(0), cropped(kspace))


def test_the_noise_of_the_old_generation_has_its_own_dwell_time(tmp_path, kspace):
    noise = torch.ones(3, 256, dtype=torch.complex64)
    readouts = [readout(noise, flags=["NOISEADJSCAN"]), *lines_of(kspace)]
    scan = open_twix(save_old(tmp_path / "old.dat", readouts, protocol()))
    torch.testing.assert_close(scan.noise, noise * (1e6 / 256 / 130 / 5.0 / 0.793) ** 0.5)


def test_nothing_that_identifies_a_person_stays_in_the_scan(write, kspace):
    scan = open_twix(write(lines_of(kspace)))
    for secret in ("Doe", "Q4711Z"):
        assert secret not in repr(scan) + str(pickle.dumps(scan))


def test_reading_leaks_no_file_handle(write, kspace):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc/self/fd on this system")
    path = write(lines_of(kspace))
    open_twix(path).read_slice(0)
    before = len(os.listdir(folder))
    scans = [open_twix(path) for _ in range(20)]
    for one in scans:
        one.read_slice(0)
    assert len(os.listdir(folder)) == before


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (protocol(sKSpace_ucTrajectory=2), "the trajectory is 'radial'"),
        (protocol(sFastImaging_lEPIFactor=64), "the trajectory is 'epi'"),
        (protocol().replace(b"### ASCCONV END", b'"alRegridMode"> { 2 2 }'), "the trajectory is 'epi'"),
        (protocol(sSliceAcceleration_lMultiBandFactor=2), "multi-band"),
        (protocol(sKSpace_lBaseResolution=0), "no sKSpace.lBaseResolution"),
        (protocol(sKSpace_lBaseResolution="1e9"), "sKSpace.lBaseResolution = 1e9, expected a number from 0 to 8192"),
        (protocol(sKSpace_lPhaseEncodingLines=-4), "lPhaseEncodingLines = -4"),
        (protocol(sKSpace_lPhaseEncodingLines=18), "lines -12 to 11 .* matrix of 18"),
        (protocol(sKSpace_lBaseResolution=8), "32 samples .* does not fit in the header's readout matrix of 16"),
    ],
)
def test_protocols_that_do_not_fit_are_refused(write, kspace, text, match):
    refuse(write(lines_of(kspace), text), match)


def test_files_that_are_no_scan_are_refused(write, kspace, tmp_path):
    refuse(tmp_path / "none.dat", "no such file")
    for content, match in (
        (b"", "empty"),
        (b"x", "shorter"),
        (b"garbage " * 99, "protocol of"),
        (bytes(9999), "cut off"),
    ):
        (tmp_path / "bad.dat").write_bytes(content)
        refuse(tmp_path / "bad.dat", match)
    refuse(write([readout(torch.ones(3, 64), flags=["NOISEADJSCAN"])]), "no imaging readouts")
    refuse(write(lines_of(kspace * 0)), "slice 0 is all zeros")
    refuse(write(lines_of(kspace * torch.nan)), "slice 0 holds NaN")
    path = write([synchronised(), *lines_of(kspace)])
    content = bytearray(path.read_bytes())
    begin = 10240 + 10240  # table of measurements and protocol
    content[begin : begin + 4] = bytes(4)  # a block of no length, at which twixtools would stay for ever
    path.write_bytes(content)
    refuse(path, "readout 0 .byte 20480. is damaged")


def test_a_file_that_is_gone_or_cut_off_after_opening(write, kspace):
    path = write(lines_of(kspace))
    scan = open_twix(path)
    path.write_bytes(path.read_bytes()[:25000])
    with pytest.raises(MrgenError, match=r"^meas.dat: the file ends within a readout"):
        scan.read_slice(0)
    path.unlink()
    with pytest.raises(MrgenError, match=r"^meas.dat: cannot be read"):
        scan.read_slice(0)


def test_the_missing_package_is_named(write, kspace, monkeypatch):
    path = write(lines_of(kspace))
    monkeypatch.setitem(sys.modules, "twixtools", None)
    refuse(path, r"pip install 'mrgen\[twix\]'")


def test_a_measured_scan_equals_what_twixtools_reconstructs(scans):
    """twixtools crops with unscaled transforms, which leaves k-space a factor sqrt(2) smaller than orthonormal ones."""
    path = scans / "phantom_2ch_siemens_twix_gre.dat"
    mapped = twixtools.map_twix(twixtools.read_twix(str(path), verbose=False))[-1]["image"]
    mapped.flags["remove_os"] = True
    expected = 2**0.5 * torch.from_numpy(mapped[:].squeeze()).permute(1, 2, 0)  # (coil, readout, line)
    scan = open_twix(path)
    assert (scan.shape, scan.mask, scan.padding, scan.noise) == ((1, 2, 160, 160), None, (0, 0), None)
    kspace = scan.read_slice(0)
    torch.testing.assert_close(kspace, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    rss, theirs = (ifft2c(k).abs().square().sum(0).sqrt() for k in (kspace, expected))
    torch.testing.assert_close(rss, theirs, rtol=1e-4, atol=1e-5 * float(theirs.max()))
    assert (scan.geometry.spacing, scan.geometry.thickness) == ((1.25, 1.25), 4)
    normal = twixtools.read_twix(str(path), verbose=False)[-1]["geometry"][0].normal
    np.testing.assert_allclose(scan.geometry.normal, normal, atol=1e-6)
    assert float(rss[100:140, 90:130].mean()) > 5 * float(rss[:10, :10].mean())  # inside and outside the phantom


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


@cache
def good(folder, old):
    """The bytes of a small file with a noise scan, calibration lines apart, two slices and two averages."""
    kspace = make_kspace(slices=2, coils=2, shape=(16, 16))
    readouts = [readout(torch.ones(2, 20) + 1j, flags=["NOISEADJSCAN"])]
    for s in range(2):
        fields = {"Sli": s, "position": (0, 0, 4 * s), "centre": (None, 8, 0)}
        readouts += lines_of(kspace[s], range(5, 11), flags=["PATREFSCAN"], **fields)
        readouts += [one for a in range(2) for one in lines_of(kspace[s], range(0, 16, 2), Ave=a, **fields)]
    text = protocol(sKSpace_lPhaseEncodingLines=16).replace(b"6 2.000000", b"6 1.000000")
    path = folder / "good.dat"
    save_old(path, readouts, text) if old else save(path, (readouts, text))
    assert len(read_all(path)) == 4
    return path.read_bytes()


@reading.fuzz
@given(old=st.booleans(), data=st.data())
def test_truncated_files_are_refused_or_remarked_upon(folder, old, data):
    content = good(folder, old)
    length = data.draw(st.integers(0, len(content) - 1), "length")
    (folder / "cut.dat").write_bytes(content[:length])
    survive(folder / "cut.dat")
    with suppress(MrgenError):
        # what is cut off is known where the table of measurements tells lengths, but for what fills up 512 bytes
        remarks = open_twix(folder / "cut.dat").remarks
        assert "it was stopped, or the file is cut off" in remarks[0] if old else len(content) - length < 512


@reading.fuzz
@given(old=st.booleans(), data=st.data())
def test_flipped_bytes_never_crash(folder, old, data):
    content = bytearray(good(folder, old))
    text = content.index(b"ASCCONV BEGIN")
    places = st.integers(0, 127) | st.integers(text, text + 500) | st.integers(text + 9000, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 12), "flips")):
        content[data.draw(places, "place")] = data.draw(st.integers(0, 255), "value")
    (folder / "flipped.dat").write_bytes(content)
    survive(folder / "flipped.dat")


@reading.fuzz
@given(
    old=st.booleans(),
    edits=st.lists(
        st.tuples(
            st.sampled_from(
                ["EvalInfoMask", "SamplesInScan", "UsedChannels", "Counter", "CutOff", "CenterCol", "CenterLin"]
            ),
            st.integers(0, 44),
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_absurd_heads_never_crash(folder, old, edits):
    content = bytearray(good(folder, old))
    head = np.dtype(mdh_def.VB17_header if old else mdh_def.Scan_header)
    first = 10240 * (1 if old else 2)
    noise, step = (2 * (128 + 160), 2 * (128 + 128)) if old else (192 + 2 * (32 + 160), 192 + 2 * (32 + 128))
    for name, row, value in edits:
        at = first + (noise + (row - 1) * step if row else 0) + head.fields[name][1]
        content[at : at + len(value)] = value
    (folder / "heads.dat").write_bytes(content)
    survive(folder / "heads.dat")
