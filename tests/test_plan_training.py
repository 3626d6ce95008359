"""examples/plan_training.py: the arithmetic of the plan, and the size of what the cache holds."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from mrgen.prior.cache import Entry, write_scan
from mrgen.scans.scan import Slice
from mrgen.settings import Protocol, load

RECORD: dict[str, Any] = {
    "machine": {"count": 2},
    "data": {"slices": 10, "bytes": 280e6},
    "train": [{"batch": 32, "cache_bytes_per_slice": 18e6, "read_bytes_per_slice": 4.5e6}],
    "size": {"network": "head"},
    "floor": {"runs": {"alone": [{"preparation_seconds": 0.3, "slices": 100}]}},
    "loading": {"bytes_per_second": 5e9},
    "figures": {
        "slices_prepared_per_second": {"1": 8.0, "2": 16.0},
        "milliseconds_per_update": {
            "half": 100.0,
            "small": 4.0,
            "host": 2.0,
            "gradients, and waiting for each other": 10.0,
            "in all": 116.0,
        },
    },
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    return importlib.import_module("plan_training")


def planned(script: ModuleType, tmp_path: Path, capsys: Any, *options: str) -> dict[str, list[str]]:
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    script.main([str(tmp_path / "record.json"), "--slices", "70000", *options])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return {cells[1].strip(): [c.strip() for c in cells[2:-1]] for cells in (line.split("|") for line in lines)}


def test_the_plan_of_two_gpus_is_what_was_measured(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    rows = planned(script, tmp_path, capsys, "--gpus", "2", "--seen", "320000")
    assert {name: cells[0] for name, cells in rows.items()} == {
        "": "1 x 2 GPUs",
        "global batch": "32",
        "preparation, once": "72.9 min",  # 70000 / 16 s
        "raw data read for it, each machine": "0.45 GB/s",
        "raw files": "1.96 TB",
        "cache": "1.26 TB",
        "looking through the cache, at every start": "3.5 min",  # 3 ms a slice
        "updates": "10000",
        "passes over the slices": "4.6",
        "an update": "116 ms",
        "training": "19.3 min",
        "its speed, of that without exchange": "91%",
        "loading needed, each machine": "1.2 GB/s",  # 32 x 4.5 MB / 0.116 s
        "loading measured, one process a GPU, files in memory": "10.0 GB/s",
        "gradients through each link": "22 MB an update",
    }


def test_more_gpus_keep_their_share_and_exchange_more(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    rows = planned(script, tmp_path, capsys, "--gpus", "8", "--nodes", "1", "4")
    assert rows["global batch"] == ["128", "512"]
    assert rows["preparation, once"] == ["18.2 min", "4.6 min"]
    assert rows["an update"] == ["124 ms", "125 ms"]  # 106 + 10 (7 / 8) / (1 / 2), and 31 / 32
    assert rows["loading needed, each machine"] == ["4.7 GB/s", "4.6 GB/s"]
    slow = planned(script, tmp_path, capsys, "--gpus", "8", "--nodes", "1", "4", "--network", "1")
    assert slow["an update"] == ["124 ms", "148 ms"]  # 42 MB at 1 GB/s between machines only


def test_a_protocol_says_for_how_long(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    training = load(Protocol, "knee-pd").training
    rows = planned(script, tmp_path, capsys, "--gpus", "2", "--protocol", "knee-pd")
    assert rows["updates"] == [str(training.steps * training.batch // 32)]


def test_a_record_without_what_is_needed_is_refused(script: ModuleType, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"data": {}, "train": []}))
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "record.json"), "--slices", "1"])
    assert "the record has no floor: run benchmark_scaling.py" in capsys.readouterr().err


def test_the_bytes_of_a_slice_are_those_of_the_file(script: ModuleType, tmp_path: Path) -> None:
    coils, shape = 5, (96, 80)
    mask = (torch.arange(shape[1]) % 4 == 0).float()
    maps = torch.ones(coils, *shape, dtype=torch.complex64)
    maps[..., : shape[1] // 4] = 0
    slice_ = Slice(torch.ones_like(maps) * mask, mask, maps, 0.01, 1.0, None)
    write_scan(tmp_path / "slices.h5", [Entry(n, 4.0, slice_) for n in range(8)], {"left_out": {}})
    expected = script.cache_bytes(coils, shape, sampled=0.25, support=0.75)
    assert (tmp_path / "slices.h5").stat().st_size / 8 == pytest.approx(expected, rel=0.02)
