"""`mrgen recon` of volumes and of many scans: killed and resumed, skipped, shared among processes, samples kept."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mrgen.cli import common
from mrgen.cli import recon as recon_command
from mrgen.posterior.batch import Batch
from mrgen.prior.denoiser import Denoiser
from mrgen.prior.files import save_prior
from mrgen.review import parts, run
from mrgen.settings import Network

SLICES = 4
pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def scan(write_scan: Callable[..., Path], phantom: Callable[..., torch.Tensor]) -> Callable[..., Path]:
    def write(name: str = "head.h5", slices: int = SLICES) -> Path:
        return write_scan(name, kspace=1e-3 * phantom(slices=slices, coils=4, shape=(32, 32), noise=0.01))

    return write


@pytest.fixture
def posterior(tmp_path: Path) -> list[object]:
    """Options of a tiny posterior recipe on a CPU."""
    torch.manual_seed(0)
    network = Network(widths=(16,), blocks=1, patch=2)
    sigmas = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 0.4}
    metadata = {"network": network.model_dump(mode="json"), "objective": "gsure-sense", **sigmas}
    save_prior(tmp_path / "prior.safetensors", Denoiser(network, 0.4).state_dict(), metadata)
    (tmp_path / "tiny.toml").write_text('description = "tiny"\nsteps = 4\nsamples = 2\ncg_iterations = 4\n')
    return ["--R", 2, "--center-fraction", 0.3, "--recipe", tmp_path / "tiny.toml",
            "--prior", tmp_path / "prior.safetensors", "--device", "cpu"]  # fmt: skip


def volumes(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def kept(out: Path, stem: str = "head") -> list[str]:
    return sorted(p.name for p in (out / f".{stem}.partial").glob("slice-*.safetensors"))


KILLED = """
import os, signal
from mrgen import cli
from mrgen.prior import files

save, calls = files.save_file, []


def save_half(tensors, path, metadata):
    save(tensors, path, metadata)
    calls.append(path)
    if len(calls) == 3:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


files.save_file = save_half
cli.main()
"""  # the command, which is killed in the middle of writing its third slice


def test_a_killed_run_goes_on_to_the_result_of_an_uninterrupted_one(mrgen, start, scan, posterior, tmp_path):
    arguments, out, whole = [scan(), *posterior, "--save-samples"], tmp_path / "parts", tmp_path / "whole"
    assert start("-c", KILLED, "recon", *arguments, "-o", out).wait(120) == -signal.SIGKILL
    assert kept(out) == ["slice-00000.safetensors", "slice-00001.safetensors"]
    assert [p.name for p in out.iterdir()] == [".head.partial"]
    (out / ".head.partial/slice-00001.safetensors").write_bytes(b"")  # as a crash of the machine may leave it
    computed, told, prepare = [], [], run.prepare
    with pytest.MonkeyPatch.context() as patch:
        listening = nullcontext(lambda fraction, place: told.append((fraction, place)))
        patch.setattr(recon_command, "progress_on_stderr", lambda prefix: listening)
        patch.setattr(run, "prepare", lambda scan, index, **k: computed.append(index) or prepare(scan, index, **k))
        code, text, _ = mrgen("recon", *arguments, "-o", out)
    assert code == 0
    assert computed == [1, 2, 3]
    assert (told[0], told[-1]) == ((1 / SLICES, f"slice 2 of {SLICES}"), (1, f"slice {SLICES} of {SLICES}"))
    assert f"resumed 1 of {SLICES} slices" in text
    assert text.index("mask    ") < text.index("resumed ")

    assert mrgen("recon", *arguments, "-o", whole)[0] == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "dicom", "figure.png", "head.h5", "nifti", "report.html", "report.json"
    ]  # fmt: skip
    one, two = volumes(out / "head.h5"), volumes(whole / "head.h5")
    images = {"zero_filled", "l1_wavelet", "reconstruction", "std", "null_space", "reference", "rss", "samples"}
    assert one.keys() == two.keys() == images | {"mask", "geometry", "report"}
    for name, volume in two.items():
        assert np.array_equal(one[name], volume), name
    reports = [json.loads((folder / "report.json").read_text()) for folder in (out, whole)]
    assert [report.pop("resumed_slices") for report in reports] == [1, 0]
    for report in reports:
        seconds = report.pop("seconds")
        assert len(seconds["slices"]) == SLICES
        assert seconds["reconstruction"] == pytest.approx(sum(seconds["slices"]), abs=0.01)
    assert reports[0] == reports[1]
    assert (out / "figure.png").read_bytes() == (whole / "figure.png").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_how_to_go_on(mrgen, scan, tmp_path, monkeypatch, number):
    handlers, prepare = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)], run.prepare

    def stopping(scan, index, **options):
        if index == 2:
            signal.raise_signal(number)
        return prepare(scan, index, **options)

    monkeypatch.setattr(run, "prepare", stopping)
    for files in ([scan()], [scan("other.h5"), scan()]):
        code, _, error = mrgen("recon", *files, "--R", 2, "--recipe", "sense", "-o", tmp_path / "out")
        assert (code, error) == (
            1, f"mrgen: error: the reconstruction was stopped by {number.name}; the same command goes on from there\n"
        )  # fmt: skip
    assert len(kept(tmp_path / "out")) == len(kept(tmp_path / "out/other", "other")) == 2
    assert not (tmp_path / "out/head").exists(), "the next scan is not begun"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_lambda_of_slices_from_before_an_interruption_is_reported(mrgen, scan, tmp_path, monkeypatch):
    arguments = ["recon", scan(), "--R", 2, "--recipe", "sense", "-o", tmp_path / "out"]
    monkeypatch.setattr(recon_command, "write_result", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mrgen(*arguments)
    monkeypatch.undo()
    assert mrgen(*arguments)[0] == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["resumed_slices"] == SLICES
    assert [facts["slice"] for facts in report["regularisation"]] == list(range(SLICES))
    assert all(facts["chosen_by"].startswith("discrepancy") for facts in report["regularisation"])


def test_slices_of_another_run_are_not_mixed_in(mrgen, scan, tmp_path, monkeypatch):
    arguments = ["recon", scan(), "--R", 2, "--recipe", "sense", "-o", tmp_path / "out", "--device", "cpu"]
    monkeypatch.setattr(recon_command, "write_result", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mrgen(*arguments)
    monkeypatch.undo()
    left = kept(tmp_path / "out")
    assert len(left) == SLICES
    for options, differs in ((["--seed", 1], "mask, seed"), (["--slices", "1:"], "slices"), (["--coils", 3], "coils"),
                             (["--map-sets", 1], "sets of coil maps")):  # fmt: skip
        code, _, error = mrgen(*arguments, *options)
        assert (code, error.count("\n")) == (1, 1)
        assert re.search(
            f"another (number of )?{differs}: repeat that command.* or give them up with --no-resume", error
        )
        assert kept(tmp_path / "out") == left
    os.utime(tmp_path / "head.h5")
    assert "another scan: " in mrgen(*arguments)[2]
    code, text, _ = mrgen(*arguments, "--seed", 1, "--no-resume")
    assert code == 0
    assert "resumed" not in text


def test_only_one_process_is_at_a_scan(mrgen, scan, tmp_path):
    with parts.partial_slices(tmp_path, "head", {}, True):
        code, _, error = mrgen("recon", scan(), "--R", 2, "--recipe", "sense", "-o", tmp_path)
    assert code == 1
    assert "another process is at head" in error
    assert not (tmp_path / ".head.partial").exists()


def test_time_left_is_that_of_what_is_left(monkeypatch, capsys):
    clock = iter([100.0, 100.0, 130.0])
    monkeypatch.setattr(common.time, "monotonic", clock.__next__)
    with common.progress_on_stderr() as progress:
        progress(0.8, "slice 9 of 10")  # 8 slices were there before
        progress(0.85, "slice 9 of 10, step 1 of 2")
    assert capsys.readouterr().err == "slice 9 of 10, step 1 of 2: 85%, about 1.5 min left\n"


def test_many_scans_of_which_one_is_broken(mrgen, scan, posterior, tmp_path, monkeypatch):
    files = [scan(f"{name}.h5", slices=1) for name in "abc"]
    files[1].write_bytes(b"garbage")
    out, loads = tmp_path / "out", []
    load = recon_command.load_prior
    monkeypatch.setattr(recon_command, "load_prior", lambda *a: loads.append(a) or load(*a))
    code, text, error = mrgen("recon", *files, *posterior, "-o", out)
    assert code == 1
    assert len(loads) == 1
    assert error.count("failed  b.h5: b.h5: a file of unknown kind") == 2  # when it fails, and in the end
    assert error.splitlines()[-1] == "mrgen: error: 1 of 3 scans failed, as told above; the others are finished"
    assert {str(p.relative_to(out)) for p in out.glob("*/*")} == {
        f"{name}/{what}"
        for name in "ac"
        for what in (f"{name}.h5", "dicom", "figure.png", "nifti", "report.html", "report.json")
    }
    assert text.count("PSNR") == 2 * 3 * 2  # scans, images, references

    scan("b.h5", slices=1)
    before = (out / "a/report.json").stat().st_mtime_ns
    code, text, error = mrgen("recon", *files, *posterior, "-o", out)
    assert (code, error) == (0, "")
    assert [line.split(":")[0] for line in text.splitlines() if line[:7] in ("skipped", "scan   ")] == [
        "skipped a.h5", "scan    b.h5", "skipped c.h5"
    ]  # fmt: skip
    assert (out / "a/report.json").stat().st_mtime_ns == before
    assert "skipped" not in mrgen("recon", *files[:2], *posterior, "-o", out, "--seed", 1)[1]
    assert "skipped" not in mrgen("recon", *files[:2], *posterior, "-o", out, "--seed", 1, "--no-resume")[1]


def test_a_bug_in_one_scan_leaves_the_others(mrgen, scan, tmp_path, monkeypatch):
    files = [scan(f"{name}.h5", slices=1) for name in "ab"]
    prepare = run.prepare
    monkeypatch.setattr(run, "prepare", lambda s, *a, **k: 1 / 0 if s.path.endswith("a.h5") else prepare(s, *a, **k))
    code, _, error = mrgen("recon", *files, "--R", 2, "--recipe", "sense", "-o", tmp_path / "out")
    assert code == 1
    assert "failed  a.h5: a bug, see the traceback above: ZeroDivisionError" in error
    assert "Traceback" in error
    assert (tmp_path / "out/b/b.h5").exists()


def test_scans_of_one_name_are_refused(mrgen, scan, tmp_path):
    (tmp_path / "other").mkdir()
    code, _, error = mrgen("recon", scan(), tmp_path / "other/head.h5", "--R", 2, "-o", tmp_path / "out")
    assert code == 1
    assert "2 of the scans are called head, and would get the same folder" in error


def test_samples_are_kept_on_request_and_some_for_the_report(mrgen, scan, posterior, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SHOWN", 1)  # of two slices: the first
    arguments = ["recon", scan(slices=3), *posterior, "--slices", "1:"]
    for options in ([], ["--save-samples"]):
        assert mrgen(*arguments, *options, "-o", tmp_path / f"out{len(options)}")[0] == 0
    plain, found = (volumes(tmp_path / f"out{i}/head.h5") for i in (0, 1))
    samples = found.pop("samples")
    assert samples.dtype == np.float32
    assert samples.shape == (2, 2, 32, 32)  # slice, sample, y, x
    stepped, step = plain.pop("report_samples"), plain["reconstruction"].max() / 2047
    np.testing.assert_allclose(stepped * step, samples[:1], atol=0.501 * step)
    reports = [json.loads(volumes.pop("report")) for volumes in (plain, found)]
    assert reports[0].pop("identity") != reports[1].pop("identity")
    assert reports[0] == reports[1]
    for name, volume in plain.items():
        assert np.array_equal(found[name], volume), name
    np.testing.assert_allclose(samples.mean(1), plain["reconstruction"], rtol=1e-5)
    np.testing.assert_allclose(samples.std(1, ddof=1), plain["std"], rtol=1e-3, atol=1e-9)
    options = ["--dicom-samples", "--formats", "dicom"]
    assert mrgen(*arguments, *options, "-o", tmp_path / "dicom")[0] == 0
    assert sorted(p.name for p in (tmp_path / "dicom/dicom").iterdir()) == [
        "1001_mean", "1002_std", "1003_std_pm", "1101_sample", "1102_sample"
    ]  # fmt: skip
    assert np.array_equal(volumes(tmp_path / "dicom/head.h5")["samples"], samples)


def test_a_smaller_batch_is_kept_for_the_next_slice(mrgen, scan, posterior, tmp_path, monkeypatch):
    forward, sizes = Denoiser.forward, []

    def short_of_memory(self: Denoiser, x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x_t))
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x_t, sigma)

    monkeypatch.setattr(Denoiser, "forward", short_of_memory)
    monkeypatch.setattr(recon_command.Batch, "on", lambda device, report: Batch(8, report))
    code, text, _ = mrgen("recon", scan(slices=2), *posterior, "--samples", 8, "--no-check", "-o", tmp_path / "out")
    assert code == 0
    assert [line for line in text.splitlines() if "memory" in line] == [
        "note    the device has no memory for 8 images at a time: going on with 4",
        "note    the device has no memory for 4 images at a time: going on with 2",
    ]
    assert sizes == [8, 4] + [2, 2, 2, 2, 1] * (4 * 2)  # 8 samples and a probe, at 4 noise levels of 2 slices


@pytest.mark.slow
def test_processes_share_the_slices_of_a_scan(mrgen, start, scan, posterior, tmp_path):
    """One is killed when it writes its second slice, and the same command goes on."""
    arguments, out = ["recon", scan(), *posterior, "--save-samples"], tmp_path / "out"
    killed = start("-c", KILLED.replace("== 3", "== 2"), *arguments, "-o", out, processes=2)
    text = killed.communicate(timeout=120)
    assert killed.returncode != 0, text
    left = kept(out)
    assert 0 < len(left) < SLICES, text
    resumed = start("-m", "mrgen.cli", *arguments, "-o", out, "--processes", 2)
    text = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, text
    assert f"[0] resumed {len(left)} of {SLICES} slices" in text
    assert [text.count(line) for line in ("scan    ", "mask    ", "check   ", "wrote   ", "diagnostic use")] == [
        1, 1, 1, 6, 1
    ]  # fmt: skip
    assert not re.search(r"\[1\] (scan|recipe|resumed|wrote)", text)
    assert json.loads((out / "report.json").read_text())["resumed_slices"] == len(left)
    assert mrgen(*arguments, "-o", tmp_path / "alone")[0] == 0
    one, two = volumes(out / "head.h5"), volumes(tmp_path / "alone/head.h5")
    assert one.keys() == two.keys()
    for name, volume in two.items():
        assert np.array_equal(one[name], volume), name


@pytest.mark.slow
def test_processes_share_the_scans(start, scan, posterior, mrgen, tmp_path):
    """Each takes the next one when it has done one, and waits for the other in the end."""
    files = [scan(f"{name}.h5", slices=1) for name in "abcde"]
    files[1].write_bytes(b"garbage")
    out = tmp_path / "out"
    process = start("-m", "mrgen.cli", "recon", *files, *posterior, "-o", out, processes=2)
    text = process.communicate(timeout=120)
    assert process.returncode == 1, text
    scans = re.findall(r"\[(\d)\] scan    (\w)\.h5", text)
    assert sorted(name for _, name in scans) == ["a", "c", "d", "e"]
    assert text.count("] wrote") == 4 * 6
    assert text.count("Not for diagnostic use") == 1
    assert "] failed  b.h5: b.h5: a file of unknown kind" in text
    assert "mrgen: error: 1 of 5 scans failed" in text
    assert mrgen("recon", files[0], *files[2:], *posterior, "-o", tmp_path / "alone")[0] == 0
    for name in "acde":
        one, two = (volumes(folder / name / f"{name}.h5") for folder in (out, tmp_path / "alone"))
        for key, volume in two.items():
            assert np.array_equal(one[key], volume), (name, key)
