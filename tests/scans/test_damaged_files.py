"""Damaged files that hypothesis makes up give one line that says what is wrong, or a Scan that keeps its promises."""

from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from reading import fuzz, refuse, slices_of, write_cfl
from synthetic import make_header, make_kspace

from mrgen.errors import MrgenError
from mrgen.scans.open import open_scan
from mrgen.scans.scan import Scan

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.damage]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def promises(scan: Scan) -> None:
    slices, coils, n_y, n_x = scan.shape
    assert scan.mask is None or scan.mask.shape in ((n_x,), (n_y, n_x))
    assert scan.mask is None or set(scan.mask.unique().tolist()) == {0.0, 1.0}
    assert 0 <= sum(scan.padding) < n_x
    assert scan.noise is None or (len(scan.noise) == coils and torch.isfinite(scan.noise.abs()).all())
    for index in {0, slices // 2, slices - 1}:
        kspace = scan.read_slice(index)
        assert kspace.shape == (coils, n_y, n_x)
        assert kspace.dtype == torch.complex64
        arrays = [kspace, *([scan.read_calibration(index)] if scan.read_calibration else [])]
        assert all(torch.isfinite(array.abs()).all() and array.any() for array in arrays)
        assert scan.mask is None or not (kspace * (1 - scan.mask)).any()


def survive(path: Path) -> None:
    """The file gives a MrgenError of one line, or a Scan that keeps what its type promises."""
    try:
        promises(open_scan(path))
    except MrgenError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert len(message) < 500


def bytes_of(path: Path) -> bytes:
    content = path.read_bytes()
    path.unlink()
    return content


@cache
def good_files(folder: Path) -> dict[str, bytes]:
    """Small valid files to damage, by name."""
    kspace = make_kspace(slices=2, coils=2, shape=(20, 18)).numpy()
    lines = (np.arange(18) % 2 == 0) | (abs(np.arange(18) - 9) < 3)
    files = {}
    for name, options in (
        ("plain", {}),
        ("packed", {"chunks": (1, 2, 20, 18), "compression": "gzip", "shuffle": True}),
    ):
        with h5py.File(folder / "a.h5", "w") as file:
            file.create_dataset("kspace", data=kspace * lines, **options)
            file["mask"] = lines
            file["ismrmrd_header"] = make_header((20, 18), rec=(16, 16))
            file.attrs["acquisition"] = "AXT2"
        files[f"{name}.h5"] = bytes_of(folder / "a.h5")
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        file["kspace"] = np.stack([kspace * lines, kspace * ~lines])
        file["calibration_data"] = kspace[..., 5:13]
        file["ismrmrd_header"] = make_header((20, 24), limits=(9, 17))
    files["averages.h5"] = bytes_of(folder / "a.h5")
    noise, centre = kspace[0, :, 0, :], kspace[..., 4:16, 4:14]
    for name, save in (("plain", np.savez), ("packed", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, kspace=kspace, mask=lines, noise=noise, calibration=centre)
        files[f"{name}.npz"] = buffer.getvalue()
    write_cfl(folder / "a", kspace, slices_of(2, 20, 18, 2))
    files["data.cfl"], files["data.hdr"] = bytes_of(folder / "a.cfl"), bytes_of(folder / "a.hdr")
    return files


def damaged(folder: Path, name: str, content: bytes) -> Path:
    """`content` in place of the good file `name`, beside the other half of a pair."""
    if name.startswith("data."):
        for half in ("data.cfl", "data.hdr"):
            (folder / half).write_bytes(good_files(folder)[half])
    (folder / name).write_bytes(content)
    return folder / name


NAMES = ["plain.h5", "packed.h5", "averages.h5", "plain.npz", "packed.npz", "data.cfl", "data.hdr"]
names = st.sampled_from(NAMES)


def test_the_files_to_damage_are_good(folder):
    assert sorted(good_files(folder)) == sorted(NAMES)
    for name in NAMES:
        scan = open_scan(damaged(folder, name, good_files(folder)[name]))
        assert scan.read_slice(1).any()


@fuzz
@given(name=names, data=st.data())
def test_truncated_files_are_refused(folder, name, data):
    content = good_files(folder)[name]
    path = damaged(folder, name, content[: data.draw(st.integers(0, len(content) - 1), "length")])
    if name == "data.hdr":
        survive(path)  # comments at the end may well be missing
    else:
        refuse(open_scan, path, ": ")


@fuzz
@given(name=names, data=st.data())
def test_flipped_bytes_never_crash(folder, name, data):
    content = bytearray(good_files(folder)[name])
    near = st.integers(0, min(len(content), 4096) - 1)  # where the metadata are
    for _ in range(data.draw(st.integers(1, 12), "flips")):
        place = data.draw(near | st.integers(0, len(content) - 1), "place")
        content[place] = data.draw(st.integers(0, 255), "value")
    survive(damaged(folder, name, bytes(content)))


JUNK = ["-1", "0", "nan", "inf", "1e999", "1e30", "9" * 5000, "", "0x10", "ten", "&#0;", "65535", "16.5", "\u0663"]
HOSTILE = [
    "<!DOCTYPE a [<!ENTITY x 'xxxxxxxxxx'><!ENTITY y '&x;&x;&x;&x;&x;&x;&x;&x;'>]><a>&y;</a>",
    "<!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
    "<a>" * 20000 + "</a>" * 20000,
    "<ismrmrdHeader" + "".join(f" a{i}='1'" for i in range(1000)) + "/>",
    "\x00\x01\x02",
    "<?xml version='1.0' encoding='utf-16'?><a/>",
    "<a xmlns:b='c'><b:encoding/><encoding b:d='1' e='2'/></a>",
    "x" * 100_000,
]


@fuzz
@given(data=st.data(), averages=st.booleans())
def test_hostile_headers_never_crash(folder, data, averages):
    xml = make_header((20, 18), rec=(16, 16))
    if data.draw(st.booleans(), "hostile"):
        xml = data.draw(st.sampled_from(HOSTILE))
        if data.draw(st.booleans(), "inside"):
            xml = make_header((20, 18)).replace("</encoding>", xml + "</encoding>")
    else:
        for _ in range(data.draw(st.integers(1, 4), "edits")):
            first = data.draw(st.integers(0, len(xml) - 1), "first")
            last = first + data.draw(st.integers(0, 30), "length")
            text = data.draw(st.sampled_from(JUNK) | st.text(max_size=8), "text")
            xml = xml[:first] + text + xml[last:]
    with h5py.File(folder / "header.h5", "w") as file:
        kspace = make_kspace(coils=2, shape=(20, 18)).numpy()
        file["kspace"] = kspace[None] if averages else kspace
        if averages:
            file["calibration_data"] = kspace
        file["ismrmrd_header"] = np.void(xml.encode(errors="replace")) if "\0" in xml else xml.encode(errors="replace")
    survive(folder / "header.h5")


DTYPES = ["c8", "c16", ">c8", "f4", "i2", "S3", "?", "u8", "f2"]
VALUES = [0, 1, np.nan, np.inf, -np.inf, 1e38, 1e-38, 1e16, 1e-16]


@fuzz
@given(
    shape=st.lists(st.integers(0, 3) | st.integers(15, 24), max_size=6).filter(lambda n: np.prod(n) < 10_000),
    dtype=st.sampled_from(DTYPES),
    value=st.sampled_from(VALUES),
    where=st.floats(0, 1),
    key=st.sampled_from(["kspace", "mask", "calibration_data", "calibration", "noise", "ismrmrd_header"]),
    kind=st.sampled_from(["h5", "npz", "cfl"]),
)
def test_wrong_shapes_types_and_values_never_crash(folder, shape, dtype, value, where, key, kind):
    array = np.random.default_rng(0).normal(size=(*shape, 2)) @ [1, 1j]
    flat = array.reshape(-1)
    flat[: round(where * flat.size)] = value
    assume(dtype != "S3" or kind != "cfl")
    with np.errstate(all="ignore"):
        array = (array if dtype[-2:] in ("c8", "16") else array.real).astype(dtype)
    path = folder / f"wrong.{kind}"
    arrays = {"kspace": make_kspace(slices=2, coils=2, shape=(20, 18)).numpy(), key: array}
    if kind == "h5":
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    elif kind == "npz":
        np.savez(path, **arrays)
    else:
        array.astype("<c8").reshape(-1, order="F").tofile(path)
        path.with_suffix(".hdr").write_text(" ".join(map(str, shape)))
    survive(path)


OBJECTS = ["kspace", "mask", "calibration_data", "ismrmrd_header", "data", "xml", "\n\x1b[2J", "n" * 5000]


@fuzz
@given(
    keys=st.lists(
        st.sampled_from(["kspace", "mask", "calibration_data", "ismrmrd_header", "data", "xml"]), unique=True
    ),
    kind=st.sampled_from(["group", "dangling", "external", "itself", "text", "empty"]),
    kept=st.booleans(),
)
def test_missing_and_misplaced_objects_never_crash(folder, keys, kind, kept):
    with h5py.File(folder / "objects.h5", "w") as file:
        if kept:
            file["kspace"] = make_kspace(coils=2, shape=(20, 18)).numpy()
        for key in keys:
            if key in file:
                del file[key]
            if kind == "group":
                file.create_group(key)["data"] = 1
            elif kind == "dangling":
                file[key] = h5py.SoftLink("/nowhere")
            elif kind == "external":
                file[key] = h5py.ExternalLink("nowhere.h5", "/kspace")
            elif kind == "itself":
                file[key] = h5py.SoftLink(f"/{key}")
            elif kind == "text":
                file[key] = "text"
            else:
                file[key] = h5py.Empty("f4")
    survive(folder / "objects.h5")


@fuzz
@given(
    sizes=st.lists(st.sampled_from([1, 2, 16, 64, 1024, 2**20, 2**31, 2**62]), min_size=3, max_size=5),
    kind=st.sampled_from(["h5", "npz", "cfl"]),
)
def test_absurd_sizes_never_crash(folder, sizes, kind):
    path = folder / f"absurd.{kind}"
    if kind == "h5":
        with h5py.File(path, "w") as file:
            limited = [min(n, 2**31) for n in sizes]
            space = h5py.h5s.create_simple(tuple(limited))
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk(tuple(min(n, 16) for n in limited))
            try:
                h5py.h5d.create(file.id, b"kspace", h5py.h5t.py_create(np.dtype("c8")), space, properties)
            except (ValueError, OSError):
                assume(False)  # beyond what HDF5 can describe
            if len(sizes) == 5:
                file["calibration_data"] = np.ones(1)
    elif kind == "npz":
        np.lib.format.write_array_header_1_0(
            buffer := io.BytesIO(), {"descr": "<c8", "fortran_order": len(sizes) % 2 == 0, "shape": tuple(sizes)}
        )
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("kspace.npy", buffer.getvalue())
            archive.filelist[0].file_size = min(int(np.prod([float(n) for n in sizes])) * 8 + 128, 2**63 - 1)
    else:
        path.write_bytes(bytes(64))
        path.with_suffix(".hdr").write_text(" ".join(map(str, sizes)))
    survive(path)
