"""examples/compare_methods.py from end to end on a small phantom."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from mrgen.cli import app
from mrgen.prior.denoiser import Denoiser
from mrgen.prior.files import save_prior
from mrgen.settings import Network

SCRIPT = Path(__file__).parents[1] / "examples/compare_methods.py"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_methods", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "L1_GRID", [0.001, 0.004, 0.016])
    monkeypatch.setattr(module, "L1_ITERATIONS", 20)
    return module


@pytest.fixture
def prior(tmp_path) -> Path:
    """An untrained prior; what it reconstructs is not looked at."""
    network = Network(widths=(16, 16), blocks=1, patch=2)
    torch.manual_seed(0)
    weights = Denoiser(network, 0.4).state_dict()
    path = tmp_path / "untrained.safetensors"
    save_prior(path, weights, {"network": network.model_dump(), "sigma_data": 0.4, "sigma_min": 0.01, "sigma_max": 20})
    return path


def test_writes_json_and_a_table(script, write_scan, phantom, prior, tmp_path, capsys, monkeypatch):
    scan, output = write_scan(kspace=phantom(shape=(64, 64))), tmp_path / "results/out.json"
    (tmp_path / "quick.toml").write_text('description = "quick"\nsteps = 2\ncg_iterations = 3\n')
    given = [scan, "--R", 2, 4, "--seed", 0, 1, "--prior", prior, "--samples", 2, "-o", output]
    monkeypatch.chdir(tmp_path)
    given += ["--recipe", "quick.toml"]
    script.main([str(g) for g in given])
    record = json.loads(output.read_text())
    assert record["scan"] == "scan.h5"
    assert str(tmp_path) not in output.read_text()
    assert record["recipe"]["samples"] == 2
    rows = record["runs"]
    methods = ["zero-filled", "CG-SENSE", "L1-wavelet", "posterior mean"]
    assert [(row["R"], row["seed"], row["method"]) for row in rows] == [
        (r, s, m) for r in (2.0, 4.0) for s in (0, 1) for m in methods
    ]
    assert all(math.isfinite(row["psnr"]) and 0 < row["ssim"] <= 1 and row["seconds"] > 0 for row in rows)
    best = {(row["R"], row["seed"], row["method"]): row["psnr"] for row in rows}
    for r in (2.0, 4.0):
        for s in (0, 1):
            assert best[r, s, "L1-wavelet"] > best[r, s, "zero-filled"] + 1
            assert best[r, s, "CG-SENSE"] > best[r, s, "zero-filled"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(methods)
    mean = (best[4.0, 0, "L1-wavelet"] + best[4.0, 1, "L1-wavelet"]) / 2
    assert f"| L1-wavelet | {mean:.2f} |" in lines[8]
    assert "| 2 |" in lines[9]


def test_agrees_with_mrgen_recon(script, write_scan, phantom, prior, tmp_path):
    scan, output = write_scan(kspace=phantom(slices=2, shape=(64, 64))), tmp_path / "compared.json"
    (tmp_path / "quick.toml").write_text('description = "quick"\nsampler = "decoupled"\nsteps = 2\ncg_iterations = 3\n')
    options = ["--R", "3", "--seed", "5", "--prior", prior, "--samples", "2", "--recipe", tmp_path / "quick.toml"]
    common = [str(scan), *map(str, options)]
    script.main([*common, "--slice", "1", "-o", str(output)])
    done = CliRunner().invoke(
        app, ["recon", *common, "--device", "cpu", "--slices", "1:2", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0
    rows = {row["method"]: row for row in json.loads(output.read_text())["runs"]}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["R"] == pytest.approx(rows["zero-filled"]["achieved_R"])
    for method, image in (("zero-filled", "zero_filled"), ("posterior mean", "reconstruction")):
        theirs = report["metrics"]["volume"][image]["psnr_fit"]
        assert rows[method]["psnr"] == pytest.approx(theirs, abs=1e-3)


def test_tune_takes_the_best_of_the_grid_and_beyond(script, capsys):
    def solve(_, lam):
        return torch.tensor(lam)

    def score(image):
        return {"psnr": -abs(math.log(float(image) / 0.1))}

    found, image, tried = script.tune(solve, None, [0.03, 0.09, 0.27], score)
    assert (found, float(image), tried) == (0.09, pytest.approx(0.09), 3)
    assert script.tune(solve, None, [0.4, 0.8], score)[::2] == (pytest.approx(0.1), 5)
    assert script.tune(solve, None, [0.025, 0.05], score)[::2] == (pytest.approx(0.1), 4)
    assert capsys.readouterr().err == ""
    assert script.tune(solve, None, [1.0, 2.0], lambda image: {"psnr": float(image)})[0] == 2 ** (1 + script.BEYOND)
    assert "end of what was tried" in capsys.readouterr().err


def test_an_undersampled_scan_is_refused(script, write_scan, phantom, tmp_path):
    mask = torch.zeros(64)
    mask[::2] = 1
    mask[28:36] = 1
    scan = write_scan(kspace=phantom(shape=(64, 64)) * mask, mask=mask)
    with pytest.raises(SystemExit, match="needs a fully sampled scan"):
        script.main([str(scan), "-o", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()
