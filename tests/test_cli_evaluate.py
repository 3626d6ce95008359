from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mrgen import cli
from mrgen.cli.evaluate import evaluate
from mrgen.errors import MrgenError
from mrgen.review.metrics import scores

NOTICE = "Research use only. Not for diagnostic use."


@pytest.fixture
def call() -> Callable[..., str]:
    """call(*arguments) -> stdout of `mrgen evaluate`; MrgenError comes through."""
    app = typer.Typer()
    app.command()(evaluate)

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Five results of slices 1:3 with images, std and mask; six references of four slices."""
    out, ref = tmp_path / "out", tmp_path / "ref"
    out.mkdir(), ref.mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        reference = rng.random((4, 24, 20)).astype(np.float32)
        with h5py.File(ref / f"scan{k}.h5", "w") as file:
            file["reconstruction_rss"] = reference
        if k == 5:
            continue
        with h5py.File(out / f"scan{k}.h5", "w") as file:
            for name, std in (("zero_filled", 0.3), ("reconstruction", 0.1)):
                image = np.abs(reference[1:3] + std * rng.standard_normal((2, 24, 20)))
                file[name] = np.pad(image, ((0, 0), (2, 2), (0, 0))).astype(np.float32)
            file["std"] = rng.random((2, 28, 20)).astype(np.float32)
            file["mask"] = (np.arange(20) % 4 == 0).astype(np.float32)
            file.attrs.update({"recipe": "posterior", "seed": 7, "n_samples": 8, "first_slice": 1})
    return out, ref


def test_one_scan_is_printed_with_its_protocol(call, folders):
    out, ref = folders
    lines = call(out / "scan0.h5", "--reference", ref / "scan0.h5").splitlines()
    assert lines[0] == "scan    scan0: slices 1:3, R = 4.00 (5 of 20 lines), recipe posterior, n = 8, seed 7"
    assert lines[1].startswith(
        "against reconstruction_rss of scan0.h5; 24 x 20, result cropped around its centre from 28 x 20;"
    )
    assert lines[1].endswith("maximum of slices 0:4 of the reference")
    with h5py.File(out / "scan0.h5") as result, h5py.File(ref / "scan0.h5") as reference:
        r, x = reference["reconstruction_rss"][()], result["reconstruction"][:, 2:-2]
    figures = scores(x, r[1:3], r.max())
    row = lines[lines.index("posterior mean, n = 8") + 1].split()
    assert lines[2].split() == list(figures)
    assert row[0] == "volume"
    assert [float(cell) for cell in row[1:]] == pytest.approx(list(figures.values()), abs=0.006)
    text = "\n".join(lines)
    assert "lowest psnr of the reconstruction: slice " in text
    assert "posterior spread, not calibrated" in text
    assert "1 scans" not in text
    assert lines[-1] == NOTICE
    assert max(map(len, lines[2:])) <= 120


def test_a_folder_ends_with_the_figures_over_its_scans(call, folders, tmp_path):
    out, ref = folders
    text = call(out, "--reference", ref, "--json", tmp_path / "new" / "figures.json")
    assert text.count("scan    ") == 5
    assert "all     5 scans" in text
    assert "95 % interval" in text
    assert "5 of 6 scans of " in text
    record = json.loads((tmp_path / "new/figures.json").read_text(), parse_constant=pytest.fail)
    assert record["notice"] == NOTICE
    assert [scan["scan"] for scan in record["scans"]] == [f"scan{k}" for k in range(5)]
    over = record["summary"]["images"]["reconstruction"]["psnr"]
    psnrs = [scan["volume"]["reconstruction"]["psnr"] for scan in record["scans"]]
    assert over["mean"] == pytest.approx(np.mean(psnrs))
    assert over["interval_95"][0] < over["mean"] < over["interval_95"][1]
    assert record["scans"][0]["protocol"]["data_range_from"] == "maximum of slices 0:4 of the reference"
    assert f"{over['mean']:.2f} ± {over['std']:.2f}" in text
    coverage = record["summary"]["spread"]["coverage"]["mean"]
    assert f"covers {coverage:.1%}" in text.split("all     5 scans")[1]


def test_every_slice_is_listed_on_request(call, folders):
    out, ref = folders
    arguments = (out / "scan0.h5", "--reference", ref)
    assert "  slice 2 " not in call(*arguments)
    text = call(*arguments, "--per-slice")
    assert text.count("  slice 1 ") == text.count("  slice 2 ") == 2  # one for each image


def test_scans_of_different_recipes_are_called_so(call, folders):
    out, ref = folders
    with h5py.File(out / "scan1.h5", "a") as file:
        file.attrs["recipe"] = "dps"
    assert "the scans differ in recipe: this mean mixes protocols" in call(out, "--reference", ref)


def test_a_perfect_image_leaves_valid_json(call, tmp_path):
    image = np.random.default_rng(0).random((3, 9, 9)).astype(np.float32)
    image[2] = 0
    with h5py.File(tmp_path / "head.h5", "w") as file:
        file["reconstruction"] = file["reference"] = image
    text = call(tmp_path / "head.h5", "--json", tmp_path / "head.json")
    assert "left out, as their reference is all zeros: slices 2" in text
    assert "inf" in text
    scan = json.loads((tmp_path / "head.json").read_text(), parse_constant=pytest.fail)["scans"][0]
    assert scan["volume"]["reconstruction"]["psnr"] is None
    assert scan["protocol"]["R"] is None


def test_a_json_file_that_cannot_be_written_is_found_before_any_work(call, folders, tmp_path, monkeypatch):
    out, ref = folders
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("mrgen.cli.evaluate.evaluate_pair", None)
    with pytest.raises(MrgenError, match="cannot write to the output folder"):
        call(out, "--reference", ref, "--json", tmp_path / "file" / "figures.json")
    monkeypatch.undo()
    with pytest.raises(MrgenError, match="Is a directory"):
        call(out, "--reference", ref, "--json", ref)
    assert not list(tmp_path.glob("*.partial"))


def test_recon_and_evaluate_agree(call, write_scan, phantom, header, tmp_path):
    kspace = 1e-3 * phantom(slices=2, coils=6, shape=(64, 64), noise=0.01)
    scan = write_scan("head.h5", kspace=kspace, ismrmrd_header=header((64, 64), rec=(48, 56)))
    options = ["--R", "2", "--recipe", "zero-filled", "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert CliRunner().invoke(cli.app, ["recon", str(scan), *options]).exit_code == 0
    call(tmp_path / "out", "--json", tmp_path / "figures.json")
    ours = json.loads((tmp_path / "figures.json").read_text())["scans"][0]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert ours["protocol"]["R"] == report["R"]
    assert ours["protocol"]["recipe"] == "zero-filled"
    for image, figures in report["metrics"]["volume"].items():
        assert {name: ours["volume"][image][name] for name in figures} == pytest.approx(figures)

    with h5py.File(tmp_path / "out/head.h5") as file, h5py.File(scan, "a") as raw:
        reference = file["reference"][()]
        raw["reconstruction_rss"] = np.pad(3 * reference, ((0, 0), (8, 8), (4, 4)))  # other units and matrix
    call(tmp_path / "out", "--reference", scan, "--json", tmp_path / "figures.json")
    other = json.loads((tmp_path / "figures.json").read_text())["scans"][0]
    assert other["protocol"]["cropped"] == "reference"
    for name in ("psnr_fit", "ssim_fit", "nmse_fit"):
        assert other["volume"]["reconstruction"][name] == pytest.approx(ours["volume"]["reconstruction"][name])
    assert other["volume"]["reconstruction"]["psnr"] < ours["volume"]["reconstruction"]["psnr"] - 3
