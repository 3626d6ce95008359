from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import getdoc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from mrgen import __version__, cli
from mrgen.cli import common, train_prior
from mrgen.cli import recon as recon_command
from mrgen.errors import MrgenError
from mrgen.posterior.reconstruct import reconstruct
from mrgen.prior import rehearsal
from mrgen.review import output, run
from mrgen.scans.prepare import undersampling_mask
from mrgen.settings import Recipe, Sampling, settings_folder

Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def refused(mrgen: Call, tmp_path: Path) -> Callable[..., None]:
    """refused(match, *arguments): one line with `match` on stderr, exit code 1, nothing written to out/."""

    def check(match: str, *arguments: object) -> None:
        code, _, error = mrgen(*arguments)
        lines = [line for line in error.splitlines() if line.strip()]
        assert code == 1
        assert len(lines) == 1
        assert lines[0].startswith("mrgen: error: ")
        assert match in lines[0]
        assert not list((tmp_path / "out").glob("*"))

    return check


@pytest.fixture
def full(write_scan, phantom, header) -> Path:
    """Two slices, fully sampled, 64 readout samples of which the scanner keeps 48."""
    kspace = 1e-3 * phantom(slices=2, coils=6, shape=(64, 64), noise=0.01)
    return write_scan("head.h5", kspace=kspace, ismrmrd_header=header((64, 64), rec=(48, 56)))


def test_antithetic_samples_come_in_pairs(mrgen, tmp_path):
    code, _, error = mrgen("recon", "a.h5", "--R", 8, "--samples", 5, "-o", tmp_path)
    message = "mrgen: error: 5 samples: antithetic ones come in pairs, expected an even number\n"
    assert (code, error) == (1, message)
    own = tmp_path / "own.toml"
    own.write_text('description = "own"\nsamples = 5\nantithetic = true\n')
    error = mrgen("recon", "a.h5", "--R", 8, "--recipe", own, "-o", tmp_path)[2]
    assert "antithetic: antithetic samples come in pairs: expected an even number of samples, found 5" in error


@pytest.mark.parametrize("given", [["--processes", 3], ["--processes=3"]])
def test_a_command_becomes_several_processes(mrgen, tmp_path, monkeypatch, given):
    become = []

    def execute(program, arguments):
        become.append(arguments)
        raise SystemExit

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    missing = mrgen("recon", *given, "a.h5", "--R", 8, "-o", "out")
    once = "mrgen: error: a.h5: there is no such file, expected a scan: check the path\n"
    assert missing[2] == once
    (tmp_path / "a.h5").touch()
    for name, rest in (
        ("recon", ["a.h5", "--R", "8", "-o", "out"]),
        ("calibrate", ["a.h5", "-o", "c.json"]),
        ("train-prior", ["scans", "--protocol", "head", "-o", "p.safetensors"]),
        ("em", ["scans", "--start", "gaussian", "--protocol", "head", "-o", "p.safetensors", "--work", "w"]),
    ):
        assert mrgen(name, *given, *rest)[0] == 0
        assert become.pop() == [*torchrun, "-m", "--", "mrgen.cli", name, *rest]
    common.become(1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MrgenError, match=r"--processes 3: torchrun .* leave it out"):
        common.become(3)
    assert not become


def test_version_and_help(mrgen):
    assert mrgen("--version")[:2] == (0, f"mrgen {__version__}\n")
    for command in ("recon", "train-prior"):
        assert CliRunner().invoke(cli.app, [command, "--help"]).exit_code == 0
    assert "Not for diagnostic use" in CliRunner().invoke(cli.app, ["--help"]).output


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["export", "--help"], ["send", "--help"]])
def test_torch_is_not_imported_to_ask_for_help(imported_by, arguments):
    assert not {"torch", "matplotlib", "scipy.ndimage"} & imported_by(*arguments)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name):
    function = name.replace("-", "_")
    command = getattr(import_module(f"mrgen.cli.{function}"), function)
    assert getdoc(command).splitlines()[0] == cli.COMMANDS[name]


@pytest.mark.parametrize("recipe", ["sense", "zero-filled"])
def test_a_fully_sampled_scan_from_end_to_end(mrgen, full, tmp_path, recipe):
    out = tmp_path / "new" / "out"
    code, text, _ = mrgen("recon", full, "--R", 2, "--recipe", recipe, "-o", out, "--device", "cpu")
    assert code == 0
    assert "PSNR" in text
    assert "Not for diagnostic use" in text
    assert sorted(p.name for p in out.iterdir()) == [
        "dicom", "figure.png", "head.h5", "nifti", "report.html", "report.json"
    ]  # fmt: skip

    report = json.loads((out / "report.json").read_text())
    volume = report["metrics"]["volume"]
    assert len(report["metrics"]["slices"]) == 2
    assert report["R"] == pytest.approx(2, rel=0.1)
    assert report["noise"]["from"] == "image background"
    assert "Not for diagnostic use" in report["notice"]
    if recipe == "sense":
        assert volume["reconstruction"]["psnr_fit"] > volume["zero_filled"]["psnr_fit"] + 3

    with h5py.File(out / "head.h5") as file:
        image, reference = file["reconstruction"][()], file["reference"][()]
        assert image.shape == (2, 48, 56)  # the matrix of the scanner's reconstruction
        assert image.dtype == np.float32
        assert "std" not in file
        assert file["mask"].shape == (64,)
        assert file.attrs["recipe"] == recipe
        assert file.attrs["R"] == report["R"]
        header = file["ismrmrd_header"][()].decode()
        assert "patient_id" not in file.attrs
    assert "reconSpace" in header
    assert 0.5e-3 < reference.max() < 5e-3  # the input's scale
    written = header + text + (out / "report.json").read_text()
    for secret in ("Doe", "Jane", "Q4711Z", "2001-02-03"):
        assert secret not in written


@pytest.mark.parametrize("guidance", ["mmps", "dps"])
def test_guidance_by_back_propagation_from_end_to_end(mrgen, full, tmp_path, guidance):
    """The shipped recipe, with fewer levels; the shipped prior, which is frozen."""
    text = (settings_folder(Recipe) / f"{guidance}.toml").read_text()
    recipe = tmp_path / "quick.toml"
    recipe.write_text("\n".join(line for line in text.splitlines() if not line.startswith("steps")) + "\nsteps = 2\n")
    code, text, _ = mrgen(
        "recon", full, "--R", 2, "--recipe", recipe, "--samples", 2, "--slices", "0:1", "-o", tmp_path
    )
    assert code == 0, text
    assert "2 samples" in text


def test_the_same_seed_gives_the_same_file(mrgen, full, tmp_path):
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 3)):
        assert mrgen("recon", full, "-r", 4, "--recipe", "sense", "--seed", seed, "-o", tmp_path / name)[0] == 0
        files.append((tmp_path / name / "head.h5").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_part_of_the_slices_gives_what_the_whole_scan_gives(mrgen, full, tmp_path, monkeypatch):
    seeds: list[int] = []

    def watched(slice_, prior, recipe, generator, *options):
        seeds.append(generator.initial_seed())
        return reconstruct(slice_, prior, recipe, generator, *options)

    monkeypatch.setattr(run, "reconstruct", watched)
    for name, slices in (("all", ":"), ("one", "1:2")):
        assert mrgen("recon", full, "--R", 2, "--recipe", "sense", "--slices", slices, "-o", tmp_path / name)[0] == 0
    with h5py.File(tmp_path / "all/head.h5") as whole, h5py.File(tmp_path / "one/head.h5") as part:
        assert np.array_equal(whole["reconstruction"][1:], part["reconstruction"][()])
        assert part.attrs["first_slice"] == 1
    assert seeds[0] != seeds[1] == seeds[2]


def test_progress_is_told_in_lines_where_there_is_no_terminal(mrgen, full, tmp_path, monkeypatch):
    arguments = ("recon", full, "--R", 2, "--recipe", "zero-filled", "-o", tmp_path / "out")
    assert mrgen(*arguments)[2] == "", "nothing to say within the first seconds"
    monkeypatch.setattr(common, "PROGRESS_SECONDS", 0)
    lines = mrgen(*arguments)[2].splitlines()
    assert lines[0].startswith("slice 1 of 2: 50%, about 0.")
    assert lines[-1].endswith("min left")


def test_lines_that_the_scanner_zero_filled_do_not_count_as_undersampled(mrgen, refused, write_scan, phantom, tmp_path):
    kspace = phantom(shape=(64, 64))
    kspace[..., :8] = kspace[..., 60:] = 0
    full = write_scan("full.h5", kspace=kspace)
    for r in (1, 2):
        code, text, _ = mrgen("recon", full, "--R", r, "--recipe", "sense", "-o", tmp_path / f"out{r}")
        report = json.loads((tmp_path / f"out{r}/report.json").read_text())
        kept = report["lines"]["sampled"]
        assert (code, report["R"], report["R_of_all_lines"]) == (0, 52 / kept, 64 / kept)
        line = f"{kept} of 64 lines, retrospectively, R = {52 / kept:.2f}, {64 / kept:.2f} with the zero-filled lines"
        assert line in text
        text = mrgen("evaluate", tmp_path / f"out{r}")[1]
        assert f"R = {52 / kept:.2f} ({kept} of 52 lines)" in text
    assert kept < 40
    assert json.loads((tmp_path / "out1/report.json").read_text())["R"] == 1


def test_coils_are_compressed_on_request(mrgen, refused, full, tmp_path):
    arguments = ("recon", full, "--R", 2, "--recipe", "sense", "-o", tmp_path / "out", "--coils")
    refused("slice 0: cannot compress 6 coils to 7: expected 1 to 6 virtual coils", *arguments, 7)
    code, text, _ = mrgen(*arguments, 4)
    report = json.loads((tmp_path / "out/report.json").read_text())["coils"]
    assert (code, report["scan"], report["virtual"], len(report["energy_kept"])) == (0, 6, 4, 2)
    assert 0.9 < report["energy_kept"][0] < 1
    line = f"coils   4 virtual of 6, {100 * report['energy_kept'][0]:.1f} % of the energy of the calibration data"
    assert text.count(line) == text.count("virtual") == 1


def test_an_object_that_wraps_gets_two_sets_of_maps(mrgen, refused, full, write_scan, phantom, tmp_path):
    """Every other line of a wide phantom; by itself, or as asked, and a scan that does not wrap stays as it was."""
    wrapped = write_scan("wrapped.h5", kspace=1e-3 * phantom(coils=6, shape=(64, 128), noise=0.01)[..., ::2])
    options = ("--R", 2, "--center-fraction", 0.3, "--recipe", "sense", "--formats", "hdf5")
    rms = {}
    for asked, sets, said in (
        ("auto", 2, " of the calibration image, so the object wraps into the field of view"),
        (1, 1, "maps    1 set, as asked"),
        (2, 2, " of the calibration image, as asked"),
    ):
        out = tmp_path / str(asked)
        code, text, _ = mrgen("recon", wrapped, *options, "--map-sets", asked, "-o", out)
        report = json.loads((out / "report.json").read_text())
        assert (code, report["coil_maps"]["sets"], said in text) == (0, [sets], True)
        with h5py.File(out / "wrapped.h5") as file:
            assert file["reconstruction"].shape == (1, 64, 64)
            rms[asked] = np.square(file["reconstruction"][()] - file["rss"][()]).mean() ** 0.5
    assert rms["auto"] == rms[2] < rms[1] / 1.5
    found = []
    for asked in ("auto", 1):
        text = mrgen("recon", full, *options, "--map-sets", asked, "-o", tmp_path / f"full{asked}")[1]
        with h5py.File(tmp_path / f"full{asked}/head.h5") as file:
            found.append(file["reconstruction"][()])
        assert ("so the object does not wrap" in text) == (asked == "auto")
    assert np.array_equal(*found)
    single = write_scan("single.h5", kspace=phantom(coils=1, shape=(64, 64)))
    refused("slice 0: cannot make 2 sets of coil maps of 1 coil(s)", "recon", single, *options, "--map-sets", 2,
            "-o", tmp_path / "out")  # fmt: skip


def test_a_retrospective_mask_is_fastmris_equispaced_one(full):
    scan = recon_command.open_scan(full)
    sampling = Sampling(pattern="equispaced", acceleration=(4.0,), center_fraction=0.08)
    for seed in range(4):
        assert torch.equal(recon_command.choose_mask(scan, 4, seed), undersampling_mask(scan, sampling, 4, seed, 0))


def test_an_undersampled_scan_is_reconstructed_as_it_is(mrgen, refused, write_scan, phantom, tmp_path):
    k = np.arange(64)
    path = write_scan(kspace=phantom(shape=(64, 64)), mask=(k % 4 == 0) | (abs(k - 32) < 6))
    refused("already undersampled, R = 2.67", "recon", path, "--R", 4, "--recipe", "sense", "-o", tmp_path / "out")
    code, text, _ = mrgen("recon", path, "--recipe", "sense", "-o", tmp_path / "out")
    assert code == 0
    assert "as measured" in text
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "metrics" not in report
    assert "readout beside" in report["noise"]["from"]


def test_files_that_are_no_scan(refused, write_scan, phantom, tmp_path):
    options = ("--R", 4, "--recipe", "sense", "-o", tmp_path / "out")
    (tmp_path / "garbage.h5").write_bytes(b"garbage" * 1000)
    refused("garbage.h5: a file of unknown kind; mrgen reads fastMRI HDF5", "recon", tmp_path / "garbage.h5", *options)
    refused("none.h5: there is no such file", "recon", tmp_path / "none.h5", *options)
    refused("neither 'kspace' (fastMRI)", "recon", write_scan(images=np.ones((2, 2))), *options)
    kspace = phantom(slices=2)
    kspace[1, 0, 3, 3] = np.nan
    refused("slice 1 of kspace holds NaN", "recon", write_scan(kspace=kspace), *options)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("--R 0: expected a number of at least 1", ["--R", 0]),
        ("--R 0.5: expected", ["-r", 0.5]),
        ("--R nan: expected", ["--R", "nan"]),
        ("say with --R by how much", []),
        ("lower the centre fraction or R", ["--R", 60]),
        ("at least 4 fully sampled lines", ["--R", 10, "--center-fraction", 0.02]),
        ("unknown recipe 'magic'; there are: ", ["--R", 2, "--recipe", "magic"]),
        ("expected A:B with 0 <= A < B <= 2", ["--R", 2, "--slices", "1:9"]),
        ("expected A:B", ["--R", 2, "--slices", "1"]),
        ("expected A:B", ["--R", 2, "--slices", "x:y"]),
        ("leave out --samples", ["--R", 2, "--samples", 4]),
        ("leave out --save-samples", ["--R", 2, "--save-samples"]),
        ("leave out --prior", ["--R", 2, "--prior", "some.safetensors"]),
        ("no such file", ["--R", 2, "--recipe", "posterior", "--prior", "none.safetensors"]),
    ],
)
def test_unusable_options(refused, full, tmp_path, match, options):
    recipe = [] if "--recipe" in options else ["--recipe", "sense"]
    refused(match, "recon", full, *options, *recipe, "-o", tmp_path / "out")


def test_an_output_folder_that_cannot_be_written_is_found_before_any_work(refused, full, tmp_path, monkeypatch):
    monkeypatch.setattr(recon_command, "reconstruct_slices", None)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        refused("cannot write to the output folder", "recon", full, "--R", 2, "--recipe", "sense", "-o", folder)


def test_a_failure_while_writing_leaves_the_old_result(mrgen, refused, full, tmp_path, monkeypatch):
    arguments = ("recon", full, "--recipe", "sense", "-o", tmp_path / "out", "--R")
    assert mrgen(*arguments, 2)[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert len(before) == 3 + 2 + 2 + 1  # two NIfTI files, two slices in DICOM, the HTML report

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "_write_figure", fail)
    code, _, error = mrgen(*arguments, 4)
    assert (code, error.count("\n")) == (1, 1)
    assert "No space left on device" in error
    kept_files = {p for p in (tmp_path / "out").rglob("*") if p.is_file() and ".head.partial" not in p.parts}
    assert {p.name: p.read_bytes() for p in kept_files} == before
    monkeypatch.undo()
    assert "resumed 2 of 2 slices" in mrgen(*arguments, 4)[1]
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_cuda_without_a_gpu_is_refused(refused, full, tmp_path, monkeypatch):
    monkeypatch.setattr(common.torch.cuda, "is_available", lambda: False)
    refused("found no usable NVIDIA GPU", "recon", full, "--R", 2, "--device", "cuda", "-o", tmp_path / "out")
    assert common.Device.auto.resolve() == "cpu"


def test_a_bug_keeps_its_traceback(mrgen, full, tmp_path, monkeypatch):
    monkeypatch.setattr(recon_command, "reconstruct_slices", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mrgen("recon", full, "--R", 2, "--recipe", "sense", "-o", tmp_path / "out")


def test_a_shell_sees_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mrgen.cli", "recon", tmp_path / "none.h5", "-o", tmp_path / "out", "--R", "4"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mrgen: error: none.h5: there is no such file")
    assert done.stderr.count("\n") == 1


def test_train_prior_refuses_what_it_cannot_use(refused, tmp_path):
    out = tmp_path / "out" / "prior.safetensors"
    refused("unknown protocol 'magic'", "train-prior", tmp_path, "--protocol", "magic", "-o", out)
    protocol = tmp_path / "tiny.toml"
    protocol.write_text('description = "tiny"\nanatomy = "phantom"\n')
    refused("ends in .safetensors", "train-prior", tmp_path, "--protocol", protocol, "-o", out.with_suffix(".pt"))
    refused("is not a folder", "train-prior", tmp_path / "none", "--protocol", protocol, "-o", out)
    (tmp_path / "file").write_text("")
    refused("cannot write", "train-prior", tmp_path, "--protocol", protocol, "-o", tmp_path / "file/p.safetensors")


def test_train_prior_hands_its_options_on(mrgen, tmp_path, monkeypatch):
    protocol = tmp_path / "tiny.toml"
    protocol.write_text('description = "tiny"\nanatomy = "phantom"\n')
    seen: dict[str, object] = {}
    monkeypatch.setattr(
        train_prior.TrainingSet, "from_folder", lambda folder, protocol, cache, report, device: seen.update(cache=cache)
    )
    monkeypatch.setattr(train_prior, "train", lambda data, protocol, out, **kw: seen.update(out=out, **kw) or out)
    out = tmp_path / "p" / "prior.safetensors"
    arguments = ("train-prior", tmp_path, "--protocol", protocol, "-o", out, "--steps", 3, "--no-resume")
    code, text, _ = mrgen(*arguments, "--device", "cpu")
    assert code == 0
    assert f"wrote   {out}" in text
    assert seen.pop("report") == typer.echo
    assert callable(seen.pop("sheet"))
    assert seen == {"cache": tmp_path / "p/cache", "out": out, "device": "cpu", "resume": False, "steps": 3}


def test_a_dry_run_measures_and_writes_nothing(mrgen, tmp_path, phantom, write_scan, monkeypatch):
    monkeypatch.setattr(rehearsal, "ENOUGH", 0.3)
    for name, size in (("a.h5", 32), ("b.h5", 48), ("c.h5", 40)):
        write_scan(name, kspace=1e-3 * phantom(slices=1, coils=4, shape=(size, size), noise=0.01))
    (tmp_path / "own.toml").write_text(
        'description = "own"\nanatomy = "any"\n[sampling]\nacceleration = [2.0]\ncenter_fraction = 0.3\n'
        '[network]\nwidths = [16]\nblocks = 1\npatch = 4\n[training]\nbasis = "fourier"\nsteps = 36000\nbatch = 3\n'
    )
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "p" / "prior.safetensors"
    code, text, _ = mrgen(
        "train-prior", tmp_path, "--protocol", tmp_path / "own.toml", "-o", out, "--device", "cpu", "--dry-run"
    )
    assert code == 0, text
    assert sorted(tmp_path.iterdir()) == before
    assert "prepared 2 scans: 2 slices" in text  # the largest
    memory = float(re.search(r"memory  ([\d.]+) GiB", text)[1])
    assert 0.1 < memory < 8
    rate = float(re.search(r"speed   (\S+) updates of 3 slices per second", text)[1])
    hours, unit = re.search(r"time    ([\d.]+) (h|min) for 36000 updates", text).groups()
    assert float(hours) * {"h": 3600, "min": 60}[unit] * rate == pytest.approx(36000, rel=0.1)


def test_slices_are_parsed():
    assert recon_command.parse_slices(None, 5) == range(5)
    assert recon_command.parse_slices("2:", 5) == range(2, 5)
    assert recon_command.parse_slices(":2", 5) == range(2)
    for text in ("", "3:3", "4:2", "-1:2", ":6", "1:2:3"):
        with pytest.raises(MrgenError, match="expected A:B"):
            recon_command.parse_slices(text or "3", 5)
