"""Preparation into a cache: once, only what changed, shared between processes, and without what cannot be used."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import pytest
import torch
from children import Child
from torch import Tensor

import mrgen.prior.preparation as preparation
from mrgen.errors import MrgenError
from mrgen.physics.masks import sampling_probability
from mrgen.prior.cache import CachedScan, alone, cache_file, made_from
from mrgen.prior.data import Item, StoredItem, TrainingSet, item_of
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import prepare, undersampling_mask
from mrgen.settings import Protocol, Sampling

SHAPE = (48, 40)
PROTOCOL = Protocol(
    description="test", anatomy="phantom", sampling=Sampling(acceleration=(2.0, 3.0), center_fraction=0.2)
)
THIRDS = (torch.arange(40) % 3 == 0) | ((torch.arange(40) - 20).abs() < 4)


def changed(**sampling: object) -> Protocol:
    return PROTOCOL.model_copy(update={"sampling": PROTOCOL.sampling.model_copy(update=sampling)})


@pytest.fixture
def folder(write_scan: Callable[..., Path], phantom: Callable[..., Tensor]) -> Path:
    """Two fully sampled scans of 2 and 3 slices, and an undersampled one of 2."""
    for number in range(2):
        write_scan(f"scan{number}.h5", kspace=phantom(slices=2 + number, coils=4 + number, shape=SHAPE))
    path = write_scan("under.h5", kspace=phantom(slices=2, coils=4, shape=SHAPE) * THIRDS, mask=THIRDS)
    return path.parent


@pytest.fixture
def into(folder: Path) -> Callable[..., tuple[TrainingSet, int]]:
    """The set of `folder`, and how many slices were prepared for it."""

    def call(protocol: Protocol = PROTOCOL, cache: str = "cache") -> tuple[TrainingSet, int]:
        said: list[str] = []
        data = TrainingSet.from_folder(folder, protocol, folder / cache, said.append)
        return data, new(said)

    return call


def new(said: list[str]) -> int:
    line = next(line for line in said if line.startswith("prepared"))
    return int(line.split(",")[1].split()[0])


def scans(data: TrainingSet) -> list[CachedScan]:
    """In order, each once."""
    found = {item.scan.file: item.scan for item in data.items if isinstance(item, StoredItem)}
    assert sum(map(len, found.values())) == len(data.items) == len(data.shapes)
    return list(found.values())


def items(data: TrainingSet) -> list[Item]:
    return [item_of(s.read(n), data.items[0].sampling, s.acceleration[n]) for s in scans(data) for n in range(len(s))]


def files(data: TrainingSet) -> list[Path]:
    return [scan.file for scan in scans(data)]


def equal(one: TrainingSet, two: TrainingSet) -> bool:
    pairs = zip(items(one), items(two), strict=True)
    names = ("kspace", "mask", "maps", "weights")
    return one.fingerprint == two.fingerprint and all(
        a.sigma0 == b.sigma0 and all(torch.equal(getattr(a, n), getattr(b, n)) for n in names) for a, b in pairs
    )


def test_a_slice_is_prepared_once_with_one_mask(into) -> None:
    data, made = into()
    assert (made, len(data.shapes), set(data.shapes)) == (7, 7, {SHAPE})
    assert len({tuple(i.mask.tolist()) for i in items(data)}) > 3
    stamps = [f.stat().st_mtime_ns for f in files(data)]

    again, made = into()
    assert made == 0
    assert [f.stat().st_mtime_ns for f in files(again)] == stamps
    assert equal(again, data)
    elsewhere, made = into(cache="other")
    assert made == 7
    assert equal(elsewhere, data)
    assert sorted(os.listdir(files(data)[0].parent)) == sorted(f.name for f in files(data))


def test_a_complete_cache_needs_neither_locks_nor_the_scans_contents(into, monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = into()
    monkeypatch.setattr(preparation, "alone", None)
    monkeypatch.setattr(preparation, "open_scan", None)
    assert equal(into()[0], data)


def test_items_are_the_scans_slices_under_the_protocols_masks(into, folder) -> None:
    data, _ = into()
    accelerations = set()
    for stored, item in zip(data.items, items(data), strict=True):
        scan, n = stored.scan, stored.n
        raw = open_scan(folder / scan.manifest["input"]["name"])
        r, mask = scan.acceleration[n], None
        if raw.mask is None:
            mask = undersampling_mask(raw, PROTOCOL.sampling, r, PROTOCOL.training.seed, n)
            assert torch.equal(item.mask, mask)
        expected = prepare(raw, n, undersample=mask)
        assert torch.equal(item.kspace, expected.kspace)
        assert torch.equal(item.maps, expected.maps)
        assert item.sigma0 == expected.sigma0
        accelerations.add(r)
        torch.testing.assert_close(1 / item.weights, sampling_probability("equispaced-any-offset", 40, r or 2.0, 0.2))
    assert accelerations == {2.0, 3.0, None}


def test_only_what_changed_is_prepared_anew(into, folder) -> None:
    data, _ = into()
    stat = (folder / "scan1.h5").stat()
    os.utime(folder / "scan1.h5", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched, made = into()
    assert made == 3
    assert touched.fingerprint != data.fingerprint
    assert [a == b for a, b in zip(files(touched), files(data), strict=True)] == [True, False, True]

    # an undersampled scan does not depend on how others are undersampled, but its weights do
    for other in (
        changed(center_fraction=0.15),
        changed(acceleration=(3.0, 2.5)),
        PROTOCOL.model_copy(update={"training": PROTOCOL.training.model_copy(update={"seed": 1})}),
    ):
        redrawn, made = into(other)
        assert made == 5
        assert files(redrawn)[2] == files(data)[2]
        assert into(other)[1] == 0
    assert not torch.equal(items(into(changed(center_fraction=0.15))[0])[-1].weights, items(data)[-1].weights)
    for key, value in {"steps": 7, "batch": 3, "basis": "fourier", "learning_rate": 1e-5}.items():
        trained = PROTOCOL.model_copy(update={"training": PROTOCOL.training.model_copy(update={key: value})})
        assert into(trained)[1] == 0
    assert into()[1] == 0  # what other settings made did not replace it


def test_scans_of_more_coils_are_compressed_to_the_protocols(into, folder) -> None:
    data, _ = into()
    compressed, made = into(PROTOCOL.model_copy(update={"coils": 4}))
    assert made == 7
    assert not set(files(compressed)) & set(files(data))
    assert [item.coils for item in compressed.items] == [4] * 7
    assert [item.coils for item in data.items] == [4, 4, 5, 5, 5, 4, 4]
    for ours, stored, whole in zip(items(compressed), compressed.items, items(data), strict=True):
        if stored.scan.manifest["input"]["name"] == "scan1.h5":
            raw, r = open_scan(folder / "scan1.h5"), stored.scan.acceleration[stored.n]
            mask = undersampling_mask(raw, PROTOCOL.sampling, r, 0, stored.n)
            assert torch.equal(ours.kspace, prepare(raw, stored.n, undersample=mask, coils=4).kspace)
        else:  # has no more than 4
            assert torch.equal(ours.kspace, whole.kspace)
    assert into(PROTOCOL.model_copy(update={"coils": 4}))[1] == 0


def test_the_manifest_says_what_a_file_was_made_from(into, folder) -> None:
    data, _ = into()
    stat = (folder / "scan0.h5").stat()
    with h5py.File(files(data)[0]) as h5:
        manifest = json.loads(h5.attrs["manifest"])
    assert manifest["input"] == {"name": "scan0.h5", "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
    assert manifest["undersampling"] == {
        "pattern": "equispaced-any-offset",
        "acceleration": [2.0, 3.0],
        "center_fraction": 0.2,
        "seed": 0,
    }
    assert manifest["coils"] is None
    assert manifest["left_out"] == {}
    assert CachedScan.open(files(data)[2]).manifest["undersampling"] is None
    assert b"Q4711Z" not in files(data)[0].read_bytes()  # the inputs carry a patient_id


def test_unsampled_lines_cannot_change_an_item(
    monkeypatch: pytest.MonkeyPatch, write_scan: Callable[..., Path], phantom: Callable[..., Tensor]
) -> None:
    """Given the noise covariance (of the receiver, and measured in the background), nothing else leaks."""
    known = 4e-4 * torch.eye(4) + 0j, "known"
    monkeypatch.setattr("mrgen.scans.prepare.noise_covariance", lambda *_: known)
    kspace = phantom(coils=4, shape=SHAPE)
    path = write_scan("scan.h5", kspace=kspace)
    first = items(TrainingSet.from_folder(path.parent, PROTOCOL, path.parent / "a", lambda _: None))[0]
    spoiled = torch.where(first.mask.bool(), kspace, 100 * torch.randn(kspace.shape, dtype=torch.complex64))
    write_scan("scan.h5", kspace=spoiled)
    second = items(TrainingSet.from_folder(path.parent, PROTOCOL, path.parent / "b", lambda _: None))[0]
    assert torch.equal(first.kspace, second.kspace)
    assert torch.equal(first.maps, second.maps)
    assert torch.equal(first.mask, second.mask)
    assert first.sigma0 == second.sigma0


def test_an_interrupted_preparation_goes_on_after_the_last_whole_scan(
    into, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    whole, _ = into(cache="whole")
    calls: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the middle of the second scan
            raise KeyboardInterrupt
        return prepare(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            into()
    assert len(list((folder / "cache").glob("*.h5"))) == 1
    assert not list((folder / "cache").glob("*.partial"))
    resumed, made = into()
    assert made == 5
    assert equal(resumed, whole)


SLOW = """
import sys, time
from pathlib import Path
import mrgen.prior.preparation as preparation
from mrgen.prior.data import TrainingSet
from mrgen.settings import Protocol
folder, cache, protocol = Path(sys.argv[1]), Path(sys.argv[2]), Protocol.model_validate_json(sys.argv[3])
prepare, done = preparation.prepare, 0
def slow(*arguments, **options):
    global done
    if done == int(sys.argv[4]):
        print("hanging", flush=True)
        time.sleep(60)
    done += 1
    time.sleep(0.1)
    return prepare(*arguments, **options)
preparation.prepare = slow
print("ready", flush=True)
data = TrainingSet.from_folder(folder, protocol, cache, lambda text: print(text, flush=True))
print(data.fingerprint, flush=True)
"""


def test_a_killed_preparation_goes_on(into, start: Callable[..., Child], folder: Path) -> None:
    other = start("-c", SLOW, folder, folder / "cache", PROTOCOL.model_dump_json(), 3)
    assert [other.stdout.readline() for _ in range(2)] == ["ready\n", "hanging\n"]
    left = {f.suffix for f in (folder / "cache").iterdir()}
    assert left == {".h5", ".partial", ".lock"}
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    data, made = into()
    assert made == 5
    assert equal(data, into(cache="whole")[0])
    assert {f.suffix for f in (folder / "cache").iterdir()} == {".h5"}


def test_processes_share_the_work_and_see_the_same_set(
    into, start: Callable[..., Child], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        os.link(folder / "scan1.h5", folder / f"scan{number + 2}.h5")
    alone_, whole = into(cache="alone")

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.1)
        return prepare(*arguments, **options)

    monkeypatch.setattr(preparation, "prepare", slow)
    other = start("-c", SLOW, folder, folder / "cache", PROTOCOL.model_dump_json(), -1)
    assert other.stdout.readline() == "ready\n"
    data, here = into()
    said = other.communicate(timeout=60).splitlines()
    assert other.returncode == 0
    assert here + new(said) == whole == 16  # nothing twice
    assert min(here, new(said)) >= 2
    assert said[-1] == data.fingerprint
    assert equal(data, alone_)


@pytest.mark.parametrize("finished", [False, True])
def test_a_scan_that_another_process_is_at_is_waited_for(into, folder: Path, finished: bool) -> None:
    """The other may work under another protocol: an undersampled scan is the same for both."""
    elsewhere, _ = into(cache="elsewhere")
    cache, begun, waiting = folder / "cache", threading.Event(), threading.Event()
    left: list[object] = []

    def other() -> None:
        try:
            with alone(cache_file(cache, made_from(folder / "scan0.h5", None)), 0) as nobody_else:
                begun.set()
                left.append(waiting.wait(30) and nobody_else)
                if not finished:
                    raise InterruptedError
                whole, partial = files(elsewhere)[0], folder / "partial"
                shutil.copy(whole, partial)
                os.replace(partial, cache / whole.name)  # it appears as a whole, as it does when it is written
        except InterruptedError as error:
            left.append(error)

    def report(text: str) -> None:
        said.append(text)
        if text.startswith("waiting"):
            waiting.set()

    said: list[str] = []
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(30)
    data = TrainingSet.from_folder(folder, PROTOCOL, cache, report)
    thread.join()
    assert left[0] is True
    assert len(left) == 2 - finished
    assert said[0] == "waiting for another process to prepare 1 of 3 scans"
    assert new(said) == (5 if finished else 7)
    assert equal(data, elsewhere)  # in the order of the names all the same


def test_what_cannot_be_used_is_left_out_and_named(
    into, folder: Path, write_scan, phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    kspace = phantom(slices=4, coils=4, shape=SHAPE)
    kspace[3] = 0
    write_scan("partly.h5", kspace=kspace)
    (folder / "broken.h5").write_bytes(b"no scan")
    (folder / "gone.h5").symlink_to(folder / "nowhere.h5")
    monkeypatch.setattr(preparation, "LEFT_OUT", 0.5)
    for again in (False, True):
        said: list[str] = []
        data = TrainingSet.from_folder(folder, PROTOCOL, folder / "cache", said.append)
        kept = [item.mask.mean() for item in items(data)]
        lines = f"R = {1 / max(kept):.2f} to {1 / min(kept):.2f} of all lines"
        expected = rf"prepared 4 scans: 10 slices, {0 if again else 10} of them new, in \d+\.\d\d s; {re.escape(lines)}"
        assert re.fullmatch(expected, said[0])
        named = sorted(said[1:])
        assert len(named) == 3
        assert named[0].startswith("left out broken.h5: ")
        assert named[1] == "left out gone.h5: cannot be read (No such file or directory)"
        assert named[2].startswith("left out partly.h5: 1 of 4 slices; slice 3: ")
        assert "all zeros" in named[2]
        assert len(data.shapes) == 10
        assert [scan.index for scan in scans(data)] == [[0, 1, 2], [0, 1], [0, 1, 2], [0, 1]]
    assert all("\n" not in line for line in said)


def test_more_bad_data_than_allowed_is_refused_at_once(folder: Path, write_scan, phantom) -> None:
    """2.25 of 45 scans may be lost: two whole ones and a quarter of a third are, but no more."""
    for path in folder.glob("*.h5"):
        path.unlink()
    kspace = phantom(slices=4, coils=4, shape=(24, 20))
    kspace[0] = 0
    source = write_scan("scan00.h5", kspace=kspace)
    good = write_scan("good", kspace=phantom(slices=1, coils=4, shape=(24, 20)))
    for number in range(1, 43):
        os.link(good, folder / f"scan{number:02}.h5")
    for name in ("a.h5", "b.h5"):
        (folder / name).write_bytes(b"no scan")
    said: list[str] = []
    fine = changed(acceleration=(2.0,), center_fraction=0.3)
    TrainingSet.from_folder(folder, fine, folder / "cache", said.append)
    assert re.match(r"prepared 43 scans: 45 slices, 45 of them new, in \d+\.\d\d s; ", said[0])
    assert len(said) == 4
    kspace[1] = 0
    write_scan(source.name, kspace=kspace)
    with pytest.raises(MrgenError, match=r"more than 5% .* so far in 3 of 45 scans: .* the first is a\.h5: ") as caught:
        TrainingSet.from_folder(folder, fine, folder / "cache", said.append)
    assert "\n" not in str(caught.value)


def test_a_scan_without_a_usable_slice_is_refused(into, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MrgenError("no noise to be found")

    monkeypatch.setattr(preparation, "prepare", fail)
    with pytest.raises(MrgenError, match=r"so far in 1 of 3 scans: .* the first is scan0\.h5: slice 0: no noise"):
        into()
    assert not list((folder / "cache").glob("*.h5"))


def test_a_protocol_that_explains_no_scan_is_refused_before_any_work(into, folder, monkeypatch) -> None:
    monkeypatch.setattr(preparation, "prepare", None)
    with pytest.raises(MrgenError, match=r"scan0\.h5: \d+ of 40 phase-encode lines .* are never sampled"):
        into(changed(pattern="equispaced", acceleration=(6.0,), center_fraction=0.1))
    for path in folder.glob("scan*.h5"):
        path.unlink()
    with pytest.raises(MrgenError, match=r"under\.h5: the scan was undersampled .* no R of the protocol"):
        into(changed(acceleration=(1.5,)))


def test_a_stored_scan_is_held_against_the_protocol_too(into, folder) -> None:
    for path in folder.glob("scan*.h5"):
        path.unlink()
    assert into()[1] == 2
    with pytest.raises(MrgenError, match=r"under\.h5: the scan was undersampled .* no R of the protocol"):
        into(changed(acceleration=(1.5,)))


def test_progress_tells_the_time_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(preparation, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def timed(*arguments: Any, **options: Any) -> Any:
        now[0] += 120
        return prepare(*arguments, **options)

    monkeypatch.setattr(preparation, "prepare", timed)
    said: list[str] = []
    TrainingSet.from_folder(folder, PROTOCOL, folder / "cache", said.append)
    assert said[:3] == [
        "preparing slice 1 of 2, scan 1 of 3: 0.0083 slices/s, about 10 min left",  # 5 of 2 minutes
        "preparing slice 2 of 2, scan 1 of 3: 0.0083 slices/s, about 8 min left",
        "preparing slice 1 of 3, scan 2 of 3: 0.0083 slices/s, about 10 min left",
    ]
    monkeypatch.setattr(preparation, "REPORT_SECONDS", 300.0)
    said.clear()
    TrainingSet.from_folder(folder, PROTOCOL, folder / "elsewhere", said.append)
    assert len([line for line in said if line.startswith("preparing")]) == 2


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MrgenError, match=r"no scans in .*, expected \.h5, "):
        TrainingSet.from_folder(tmp_path, PROTOCOL, tmp_path / "cache")


@pytest.mark.gpu
def test_a_gpu_prepares_the_same(folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    sets = [
        TrainingSet.from_folder(folder, PROTOCOL, folder / device, lambda _: None, device=device)
        for device in ("cpu", "cuda")
    ]
    for one, two in zip(*map(items, sets), strict=True):
        assert torch.equal(one.mask, two.mask)
        torch.testing.assert_close(one.kspace, two.kspace, rtol=1e-3, atol=1e-4)
        assert one.sigma0 == pytest.approx(two.sigma0, rel=1e-3)
