"""examples/benchmark_scaling.py, rehearsed on two processes of a CPU, and its figures."""

from __future__ import annotations

import importlib
import json
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from children import Child

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("benchmark_scaling")


@pytest.fixture(scope="module")
def work(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a rehearsal of the first two parts."""
    folder: Path = tmp_path_factory.mktemp("scaling")
    run(benchmark, folder, "data", "train")
    return folder


def fork(machine: Any, arguments: list[str], gpus: range, each: int = 1) -> Any:
    """The command by torchrun's agent; it and its processes are forks."""
    from scaling.commands import Command

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPORT_SECONDS", str(machine.report_seconds))
        child = Child((*(text for text in arguments if text != "--"), "--device", machine.device), each * len(gpus))
    return Command(child, time.perf_counter())  # type: ignore[arg-type]


def run(benchmark: ModuleType, folder: Path, *parts: str, by_torchrun: bool = False) -> dict[str, Any]:
    arguments = ["--tiny", "--work", str(folder / "work"), "-o", str(folder / "found.json"), "--parts", *parts]
    with pytest.MonkeyPatch.context() as patch:
        if not by_torchrun:
            patch.setattr("scaling.commands.Machine._start", fork)
        benchmark.main(arguments)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def test_one_process_and_two_prepare_and_train_alike(work: Path) -> None:
    record = json.loads((work / "found.json").read_text())
    figures, runs = record["figures"], record["train"][0]["runs"]
    assert all(runs[n]["slices"] == 4 and runs[n]["window"][1] == 7 for n in "12")
    assert figures["slices_prepared_per_second"]["2"] == 4 / runs["2"]["preparation_seconds"]
    rates = figures["updates_per_second"]["4"]
    assert rates["2"] == pytest.approx(7 / runs["2"]["window"][0])
    assert figures["training_ratio"]["4"] == pytest.approx(rates["2"] / rates["1"])
    agreement = record["train"][0]["agreement"]
    assert agreement["entries"] > 12
    assert agreement["largest_relative_difference"] < 1e-3
    assert agreement["weights_relative_rms"] < 1e-3
    caches = [sorted((work / "work" / f"cache-{n}").glob("*.h5")) for n in (1, 2)]
    assert [file.name for file in caches[0]] == [file.name for file in caches[1]]
    size = sum(file.stat().st_size for file in caches[0]) / 4
    assert figures["cache_bytes_per_slice"] == size
    assert 0 < record["train"][0]["read_bytes_per_slice"] < size / 2  # the maps are most of it, and are not read
    assert "| trained, updates/s of 4 |" in (work / "found.md").read_text()


@pytest.mark.slow
def test_a_process_is_killed_and_torchrun_ends_the_others(benchmark: ModuleType, work: Path) -> None:
    kill = run(benchmark, work, "kill", by_torchrun=True)["kill"]
    assert kill["exit_code"] != 0
    assert kill["root_cause"] == ["Signal 9 (SIGKILL)"]
    assert kill["the_others_say"] == ["mrgen: error: process 0 of 2 lost the others: one of them ended, and says why"]
    assert 0 < kill["resumed_at"][0] < 12
    assert kill["agreement"]["largest_relative_difference"] == 0
    assert kill["agreement"]["weights_largest_difference"] == 0
    text = (work / "found.md").read_text()
    assert f"resumed at update {kill['resumed_at'][0]}; against the run that was not killed: " in text


@pytest.mark.slow
def test_the_rest_of_the_rehearsal(benchmark: ModuleType, work: Path) -> None:
    record = run(benchmark, work, "recon", "floor", "waits", "loading", "stages", "--turns", "2", "--jobs-per-gpu", "2")
    recon = record["recon"]
    for n in "12":
        one, two = (run["seconds_from_then_on"] for run in recon["turns"][n])
        assert recon["runs"][n]["seconds_from_then_on"] == pytest.approx((one + two) / 2)
    assert [run["scans"] for run in recon["runs"].values()] == [4, 4]
    assert recon["agreement"] == {"scans": 4, "same_to_the_bit": 4, "largest_relative_difference": 0}
    parts = list(record["figures"]["milliseconds_per_update"].values())
    assert sum(parts[:-1]) == pytest.approx(parts[-1])
    assert [len(ranks) for ranks in record["waits"]["runs"].values()] == [1, 2]
    assert all(seconds >= 0 for seconds in record["stages"]["seconds_per_slice"].values())
    text = (work / "found.md").read_text()
    assert "4 of 4 results are the same to the bit" in text
    assert re.search(r"medians over turns that took [\d.]+, [\d.]+ and [\d.]+, [\d.]+ s", text)
    assert "scans/s by 2 processes a GPU" in text


def test_a_part_that_would_begin_too_late_is_left_out(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tiny", "--work", str(tmp_path / "work"), "-o", str(tmp_path / "found.json"), "--seconds", "-1"]
    benchmark.main(arguments)
    assert capsys.readouterr().out.count("left out") == 8
    assert not (tmp_path / "work" / "scans").exists()
