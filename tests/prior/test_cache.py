"""Prepared slices on disk: they come back to the bit, whole or not at all, to whoever reads them however."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest
import torch
from children import Child
from torch.utils.data import DataLoader

from mrgen.errors import MrgenError
from mrgen.prior.cache import CachedScan, Entry, alone, cache_file, made_from, read_slices, write_scan
from mrgen.scans.scan import Slice

COILS, SHAPE, SIDE = 3, (24, 20), 15  # rows from SIDE on are beside the object
MANIFEST = {"input": {"name": "a.h5"}, "left_out": {"1": "noise only"}}


def prepared(seed: int, points: bool = False) -> Slice:
    g = torch.Generator().manual_seed(seed)
    mask = (torch.rand(SHAPE if points else SHAPE[1:], generator=g) < 0.4).float()
    kspace, maps = (torch.randn(COILS, *SHAPE, dtype=torch.complex64, generator=g) for _ in range(2))
    maps[:, SIDE:] = 0
    return Slice(kspace * mask, mask, maps, 0.1 + 1e-9 * seed, 2.0 + seed, None, "noise scan")


def entries(count: int = 3, points: bool = False) -> Iterator[Entry]:
    for n in range(count):
        yield Entry(2 * n, None if n == 1 else 2.0 + n, prepared(n, points))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_scan(tmp_path / "a.h5", entries(), MANIFEST)
    return tmp_path / "a.h5"


def same(a: Slice, b: Slice) -> bool:
    arrays = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("kspace", "mask", "maps"))
    return arrays and (a.sigma0, a.scale, a.reference, a.noise_from) == (b.sigma0, b.scale, b.reference, b.noise_from)


@pytest.mark.parametrize("points", [False, True])
def test_slices_come_back_to_the_bit(tmp_path: Path, points: bool) -> None:
    write_scan(tmp_path / "a.h5", entries(points=points), MANIFEST)
    scan = CachedScan.open(tmp_path / "a.h5")
    assert len(scan) == 3
    assert scan.shape == (COILS, *SHAPE)
    assert scan.index == [0, 2, 4]
    assert scan.acceleration == [2.0, None, 4.0]
    assert scan.left_out == {"1": "noise only"}
    for n in (2, 0, 1):
        assert same(scan.read(n), prepared(n, points))
    used = torch.ones(2, 2, COILS + 1, *SHAPE, dtype=torch.complex64)  # of an earlier batch, with more coils
    read_slices([(scan, 1), (scan, 0)], *used)
    for name, arrays in zip(("kspace", "maps"), used, strict=True):
        assert torch.equal(arrays[:, :COILS], torch.stack([getattr(prepared(n, points), name) for n in (1, 0)]))
        assert not arrays[:, COILS:].any()
    assert os.listdir(tmp_path) == ["a.h5"]


def test_only_what_was_sampled_is_stored_a_slice_a_chunk(file: Path) -> None:
    with h5py.File(file) as h5:
        arrays = {"samples", "support", "maps"}
        assert set(h5) == arrays | {"mask", "index", "acceleration", "sigma0", "scale", "noise_from"}
        assert [h5["samples"][str(n)].shape for n in range(3)] == [
            (COILS, SHAPE[0], int(prepared(n).mask.sum())) for n in range(3)
        ]
        assert [h5["maps"][str(n)].shape for n in range(3)] == [(COILS, SIDE * SHAPE[1])] * 3
        assert json.loads(h5.attrs["manifest"]) == MANIFEST
        assert list(h5.attrs) == ["manifest"]


def test_a_file_is_named_by_what_it_is_made_from(tmp_path: Path) -> None:
    scan = tmp_path / "head 1.h5"
    scan.write_bytes(b"123")
    os.utime(scan, ns=(5, 7))
    source = made_from(scan, {"seed": 0})
    assert source["input"] == {"name": "head 1.h5", "bytes": 3, "modified_ns": 7}
    names = {cache_file(tmp_path, source).name, cache_file(tmp_path, made_from(scan, None)).name}
    names.add(cache_file(tmp_path, made_from(scan, {"seed": 1})).name)
    assert cache_file(tmp_path, made_from(scan, {"seed": 0})).name in names
    os.utime(scan, ns=(6, 8))
    names.add(cache_file(tmp_path, made_from(scan, {"seed": 0})).name)
    scan.write_bytes(b"1234")
    os.utime(scan, ns=(6, 8))
    names.add(cache_file(tmp_path, made_from(scan, {"seed": 0})).name)
    assert len(names) == 5
    assert all(name.startswith("head 1-") for name in names)


def test_an_interruption_leaves_nothing_and_an_old_file_whole(file: Path) -> None:
    before = file.read_bytes()

    def interrupted() -> Iterator[Entry]:
        yield from entries(2)
        raise KeyboardInterrupt

    for target in (file, file.with_name("new.h5")):
        with pytest.raises(KeyboardInterrupt):
            write_scan(target, interrupted(), MANIFEST)
    assert os.listdir(file.parent) == ["a.h5"]
    assert file.read_bytes() == before
    file.with_name("a.h5.partial").write_bytes(before[:1000])  # what `kill -9` leaves
    write_scan(file, entries(1), MANIFEST)
    assert len(CachedScan.open(file)) == 1
    assert os.listdir(file.parent) == ["a.h5"]


def test_no_slices_make_no_file(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.h5", iter(()), MANIFEST)
    assert os.listdir(tmp_path) == []


FULL_DISK = """
import os, resource, signal, sys
from pathlib import Path
import torch
from mrgen.errors import MrgenError
from mrgen.prior.cache import Entry, write_scan
from mrgen.scans.scan import Slice

arrays = torch.ones(2, 3, 24, 20, dtype=torch.complex64)
slice_ = Slice(arrays[0], torch.ones(20), arrays[1], 0.1, 1.0, None)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # of a file, in bytes: as a full disk, an OSError
try:
    write_scan(Path(sys.argv[1]) / "a.h5", [Entry(0, 2.0, slice_)], {})
except MrgenError as error:
    print(error, flush=True)
os._exit(0)  # libhdf5 may crash when it closes what it could not write
"""


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, start: Callable[..., Child]) -> None:
    said = start("-c", FULL_DISK, tmp_path).communicate(timeout=60)
    last = said.splitlines()[-1]  # libhdf5 may have complained before
    assert "cannot write to the cache" in last
    assert ": make room there" in last
    assert os.listdir(tmp_path) == []


def test_a_damaged_file_is_named(file: Path) -> None:
    scan, whole = CachedScan.open(file), file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"text " * 1000):
        file.write_bytes(damaged)
        for read in (lambda: CachedScan.open(file), lambda: scan.read(2)):
            with pytest.raises(MrgenError, match=r"a\.h5 cannot be read .*: delete it, and it is prepared again"):
                read()
    with h5py.File(file, "w") as h5:
        h5["maps"] = [1.0]
    with pytest.raises(MrgenError, match="cannot be read"):
        CachedScan.open(file)


class Slices:
    """For a DataLoader."""

    def __init__(self, scan: CachedScan) -> None:
        self.scan = scan

    def __len__(self) -> int:
        return len(self.scan)

    def __getitem__(self, n: int) -> Slice:
        return self.scan.read(n)


def test_nothing_stays_open_and_forks_may_read(file: Path) -> None:
    slices = Slices(CachedScan.open(file))
    files = len(os.listdir("/proc/self/fd"))
    here = [slices[n] for n in range(3)]
    assert len(os.listdir("/proc/self/fd")) == files
    loader = DataLoader(slices, batch_size=None, num_workers=2, multiprocessing_context="fork")  # type: ignore[arg-type,var-annotated]
    for one, two in zip(here, loader, strict=True):
        assert same(one, two)


HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_holds_between_processes_and_dies_with_its_own(tmp_path: Path, start: Callable[..., Child]) -> None:
    file = tmp_path / "new" / "a.h5"
    with alone(file, 0) as nobody_else:
        assert nobody_else
        assert os.listdir(file.parent) == ["a.h5.lock"]
    other = start("-c", HOLD, f"{file}.lock")
    assert other.stdout.readline() == "held\n"
    with alone(file, 0) as nobody_else:
        assert not nobody_else
    with alone(file, 0.2) as nobody_else:
        assert not nobody_else
    with alone(file.with_name("b.h5"), 0) as nobody_else:
        assert nobody_else
    os.kill(other.pid, signal.SIGKILL)
    with alone(file, 30) as nobody_else:
        assert nobody_else
    assert os.listdir(file.parent) == []
    with pytest.raises(KeyError), alone(file, 0):
        raise KeyError
    with alone(file, 0) as nobody_else:
        assert nobody_else


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MrgenError, match="cannot write to the cache"), alone(tmp_path / "file" / "a.h5", 0):
        pass
