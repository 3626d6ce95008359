"""examples/prior_experiment.py: the whole of it on a few tiny scans, its schedule, and the figures of its tables."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

import prior_experiment  # noqa: E402
from experiment import plan, report, schedule  # noqa: E402
from experiment.data import heads  # noqa: E402
from experiment.schedule import Job  # noqa: E402


def nothing(part: int, parts: int, device: str) -> None:
    raise AssertionError("must not run")


@pytest.mark.usefixtures("no_plots")
def test_all_of_it_breaks_off_and_goes_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sigpy", reason="the L1-wavelet baseline needs sigpy")
    monkeypatch.setattr(plan, "HEADLINE", ("em-gsure", "oracle"))
    monkeypatch.setattr(plan, "MAIN", ("ensemble",))
    monkeypatch.setattr(plan, "ABLATION", ())
    monkeypatch.setattr(plan, "ARM_ROWS", ("gsure-fourier",))
    work, out = tmp_path / "work", tmp_path / "out.json"
    command = ["--images", str(images), "--work", str(work), "--gpus", "0", "--tiny", "-o", str(out)]
    prior_experiment.main([*command, "--seconds", "0"])
    assert "not complete" in capsys.readouterr().out
    prior_experiment.main(command)
    text = capsys.readouterr().out
    assert "\ncomplete" in text
    record = json.loads(out.read_text())
    expected = {"zero-filled", "cg-sense", "l1-wavelet", "em-gsure", "oracle", "ensemble"}
    assert set(record["figures"]) == expected | {"oracle-seed1", "em-gsure-seed1", "gsure-fourier@one-mask"}
    for rows in record["figures"].values():
        assert [(row["scan"], row["R"], row["person"]) for row in rows] == [
            (scan, r, 60) for scan in range(2) for r in (4.0, 6.0)
        ]
    psnr = {name: [row["psnr"] for row in rows] for name, rows in record["figures"].items()}
    assert np.mean(psnr["cg-sense"]) > np.mean(psnr["zero-filled"]) + 1
    assert psnr["oracle"] != psnr["oracle-seed1"]
    assert [stage["updates"] for stage in record["priors"]["oracle"]["stages"]] == [8]
    assert record["priors"]["em-gsure"]["stages"][0]["updates"] == 4
    mean = np.mean(
        [[row["psnr"] for row in record["figures"][f"oracle{seed}"] if row["R"] == 4] for seed in ("", "-seed1")]
    )
    assert f"| oracle | {mean:.2f} [" in out.with_suffix(".md").read_text()
    files = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.suffix in (".json", ".safetensors")}
    # What is said to be all that has to be kept, and the prior that is evaluated anew.
    for path in [*(work / "scans").rglob("*.*"), *(work / "priors").rglob("*.safetensors")]:
        if path.name != "oracle.safetensors":
            path.unlink()
    (work / "figures/oracle/00.json").unlink()
    prior_experiment.main(command)
    text = capsys.readouterr().out
    assert [line.split()[3] for line in text.splitlines() if "done" in line] == ["simulate/test", "evaluate/oracle"]
    assert json.loads(out.read_text()) == record
    kept = [path for path in files if path.suffix == ".json" and path.parent.name != "oracle"]
    assert all(path.stat().st_mtime_ns == files[path] for path in kept)
    elsewhere = [str(tmp_path / "elsewhere") if text == str(work) else text for text in command]
    prior_experiment.main([*elsewhere, "--record", str(out)])
    assert "done" not in capsys.readouterr().out
    again = json.loads(out.read_text())
    assert all(again[name] == record[name] for name in ("figures", "priors", "lambdas"))
    slower = {**record["protocol_of_gsure_fourier"], "training": {"learning_rate": 1e-4}}
    for changes, complaint in (
        ({"test_scans": 3}, "another size"),
        ({"protocol_of_gsure_fourier": slower}, "other settings"),
    ):
        out.write_text(json.dumps({**record, **changes}))
        with pytest.raises(SystemExit):
            prior_experiment.main([*elsewhere, "--record", str(out)])
        assert complaint in capsys.readouterr().err


def test_people_to_test_on_are_nobody_to_train_on(images: Path) -> None:
    train, test = ({head.person for head in heads(images, None, test)} for test in (False, True))
    assert (train, test) == ({1}, {60})
    assert len(heads(images, None, False)) == 8


def test_every_row_has_as_many_updates(tmp_path: Path) -> None:
    """Of what the plan says of rows in words; the prior of an E-step's start is counted where it is a network."""
    experiment = plan.Experiment(tmp_path, None, tmp_path, plan.Size(updates=8000))
    for name in {*plan.HEADLINE, *plan.MAIN, *plan.ABLATION}:
        row = plan.ROWS[name]
        trained = plan.ROWS[row.of] if row.of else row
        protocol = experiment.protocol(trained, plan.NOMINAL, 0)
        steps, updates = protocol.training.steps, protocol.em.updates
        if not trained.em:
            total = steps
        elif trained.start:
            total = experiment.protocol(plan.ROWS[trained.start], plan.NOMINAL, 0).training.steps
            total += trained.rounds * updates
        else:
            total = steps + (trained.rounds - 1) * updates + (steps if trained.diffem else 0)
        assert total == 8000, name


def test_chosen_rows_bring_the_chosen_arms_that_they_have(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ("oracle", "gsure-fourier"), ("R6", "one-mask")
    experiment = plan.Experiment(images, None, tmp_path, plan.SHORT, only=chosen[0], only_arms=chosen[1])
    names = [plan.key(*row) for row in experiment.rows()]
    assert names == ["oracle", "gsure-fourier", "gsure-fourier@one-mask", "gsure-fourier@R6"]  # in the plan's order
    jobs = {job.name for job in experiment.jobs()}
    assert {"simulate/R6", "train/gsure-fourier@R6", "evaluate/gsure-fourier@R6"} <= jobs
    assert not any("oracle@" in name or "@R8" in name for name in jobs)
    for rows in ([], ["--rows", "oracle"]):
        with pytest.raises(SystemExit):
            prior_experiment.main(["--images", str(images), "--work", "w", *rows, "--arms", "R6", "-o", "out.json"])
        assert "--arms goes with --rows that have arms" in capsys.readouterr().err


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job writes <name>.<part>, with its GPU; `slow` takes its time, once, `bad` fails, `left` and `right` need each
    other while they run."""
    monkeypatch.chdir(tmp_path)
    text = """
import os, sys, time
from pathlib import Path
name, part = sys.argv[2], sys.argv[4].split("/")[0]
if name == "bad":
    sys.exit("it does not work")
if name == "slow" and not Path("tried").exists():
    Path("tried").touch()
    time.sleep(60)
other = {"left": "right", "right": "left"}.get(name)
if other:
    Path(f"{name}.begun").touch()
    until = time.monotonic() + 20
    while not Path(f"{other}.begun").exists():
        if time.monotonic() > until:
            sys.exit("alone")
        time.sleep(0.1)
Path(f"{name}.{part}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
"""
    (tmp_path / "script.py").write_text(text)
    return [sys.executable, str(tmp_path / "script.py")]


def job(name: str, *needs: str, processes: int = 1, gpu: bool = True, target: bool = False) -> Job:
    outputs = tuple(Path(f"{name}.{part}") for part in range(processes))
    return Job(name, nothing, outputs, needs, processes, gpu, target)


def test_jobs_run_where_they_may_after_what_they_need(script: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    jobs = [
        job("last", "one", "two", target=True),
        job("bad"),
        job("lost", "bad", target=True),
        job("data", processes=3, gpu=False),
        job("one", "data"),
        job("two", "data"),
        job("unasked"),
    ]
    assert not schedule.on_gpus(lambda: jobs, script, 2, tmp_path / "logs", 60, said.append)
    done = [line.split()[3] for line in said if "done" in line]
    assert done[-1] == "last"
    assert set(done) == {"data", "one", "two", "last"}
    assert done.index("data") == 0
    assert {Path("one.0").read_text(), Path("two.0").read_text()} <= {"0", "1"}
    assert [Path(f"data.{part}").read_text() for part in range(3)] == [""] * 3
    assert [line.split("): ")[1] for line in said if "FAILED" in line] == ["it does not work"]
    assert schedule.on_gpus(lambda: jobs[:1] + jobs[3:], script, 2, tmp_path / "logs", 60, said.append)


def test_several_jobs_share_a_gpu(script: list[str], tmp_path: Path) -> None:
    jobs, said = [job("left", target=True), job("right", target=True)], list[str]()
    assert schedule.on_gpus(lambda: jobs, script, 1, tmp_path / "logs", 60, said.append, each=2)
    assert [Path(f"{name}.0").read_text() for name in ("left", "right")] == ["0", "0"]
    assert all(line.endswith("on GPU 0)") for line in said)


def test_the_time_is_kept_and_the_next_run_goes_on(
    script: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "GRACE", 6.0)
    jobs, said = [job("slow", target=True), job("first", target=True)], list[str]()
    begun = time.monotonic()
    assert not schedule.on_gpus(lambda: jobs, script, 2, tmp_path / "logs", 8, said.append)
    assert time.monotonic() - begun < 20
    assert "1 jobs to go" in said[-1]
    assert schedule.on_gpus(lambda: jobs, script, 2, tmp_path / "logs", 60, said.append)
    assert Path("slow.0").exists()


def synthetic() -> dict[str, Any]:
    """The oracle is 1 dB better at R = 4 for person 7 (two scans) and 3 dB for person 9 (one scan); seed 1 adds 0.5."""

    def rows(shift: dict[int, float], extra: float = 0) -> list[dict[str, Any]]:
        return [
            {"scan": n, "R": 4.0, "person": p, "sigma0": 0.01 * n, "psnr": 30 + n - shift[p] + extra, "ssim": 0.9}
            for n, p in enumerate((7, 7, 9))
        ]

    none, some = {7: 0.0, 9: 0.0}, {7: 1.0, 9: 3.0}
    figures = {"oracle": rows(none), "em-gsure": rows(some), "em-gsure-seed1": rows(some, 1.0)}
    size = {"rs": [4.0], "scans": 10, "updates": 5, "seeds": 2}
    return {
        **{"figures": figures, "size": size, "test_scans": 3, "people": 4},
        **{"recipe": {"samples": 8}, "arms": []},
    }


def test_the_tables_are_made_from_the_record() -> None:
    """Seed 1 of em-gsure is 1 dB better than seed 0: the mean gap is (0.5, 0.5, 2.5), 1.17 dB."""
    lines = report.markdown(synthetic()).splitlines()
    assert "| oracle | 31.00 [30.50, 32.00] (0.900) |" in lines
    assert "| em-gsure | +1.17 [+0.50, +2.50] |" in lines
    assert "Several seeds: em-gsure." in lines[0]
    quieter, noisier = (lines.index(f"dB below the oracle, the {n} test scans") for n in ("2 quieter", "1 noisier"))
    assert lines[quieter + 4] == "| em-gsure | +0.50 [+0.50, +0.50] |"
    assert lines[noisier + 4] == "| em-gsure | +2.50 [+2.50, +2.50] |"
    assert not any(
        line.startswith("| oracle")
        for line in lines[lines.index("dB below the oracle [95 % interval over people]") :][1:]
    )


def test_the_interval_is_that_of_a_mean_over_people() -> None:
    """40 people of 3 scans that are alike: the standard error is std / sqrt(40), not / sqrt(120)."""
    g = np.random.default_rng(1)
    each = g.normal(size=40)
    person = {n: n // 3 for n in range(120)}
    mean, low, high = report.interval({n: float(each[n // 3]) for n in range(120)}, person)
    assert mean == pytest.approx(each.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * each.std() / 40**0.5, rel=0.06)
