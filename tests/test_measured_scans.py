"""examples/measured_scans.py: what is run and what is not, the verdicts, the pages and who may see a picture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

SEEN, OTHER = "brain_vfa_fa05_13ch_224x224", "head"
ALL_R = (4.0, 8.0)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    module = importlib.import_module("measured_scans")
    monkeypatch.setattr(module, "GRIDS", {"sense": [0.01, 0.04]})
    return module


@pytest.fixture
def pages(script: ModuleType) -> ModuleType:
    return importlib.import_module("measured_pages")


def cells_of(gains: dict[tuple[str, float], float], rival: str = "l1-wavelet") -> dict[Any, Any]:
    """Cells in which the posterior is so many dB above 20 dB of the rival."""
    return {
        (scan, r, recipe): {"psnr": 20 + (gain if recipe == "posterior" else 0)}
        for (scan, r), gain in gains.items()
        for recipe in ("posterior", rival)
    }


def verdict_column(text: str) -> list[str]:
    return [line.split("|")[-2].strip() for line in text.splitlines()[2:]]


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({(SEEN, 8): 3.5, (OTHER, 8): 2.0, (SEEN, 4): 0.0, (OTHER, 4): 0.0}, ["met", "met", "met"]),
        ({(SEEN, 8): 3.5, (OTHER, 8): 2.0, (SEEN, 4): -1.0, (OTHER, 4): 0.0}, ["met", "met", "missed"]),
        ({(SEEN, 8): 3.5, (OTHER, 8): 0.4, (SEEN, 4): 1.0, (OTHER, 4): 1.0}, ["missed", "missed", "met"]),
        ({(SEEN, 8): 1.0, (OTHER, 8): 3.5, (SEEN, 4): 1.0, (OTHER, 4): -0.1}, ["met", "met", "missed"]),
        ({(SEEN, 8): 3.5, (OTHER, 8): 2.5, (SEEN, 4): 1.0}, ["met", "met", "open"]),
        ({(SEEN, 8): 9.0}, ["open", "open", "open"]),
        ({(OTHER, 4): -0.1}, ["open", "open", "missed"]),
        ({}, ["open", "open", "open"]),
    ],
)
def test_verdicts(pages: ModuleType, gains: dict[tuple[str, float], float], expected: list[str]) -> None:
    """Those of both averages, the second without the scan that settings were chosen on, and of never below."""
    text = pages.verdicts(cells_of(gains), [SEEN, OTHER], ALL_R, ["l1-wavelet", "posterior"])
    assert verdict_column(text) == expected


def test_verdict_on_every_other_recipe(pages: ModuleType) -> None:
    cells = cells_of({(SEEN, 8): 1.0, (OTHER, 8): -1.5}, "red")
    text = pages.verdicts(cells, [SEEN, OTHER], ALL_R, ["posterior", "red", "tv"])
    assert verdict_column(text)[1:3] == ["missed", "open"]
    assert "| and above red on average | mean -0.25 (+1.00, -1.50) |" in text
    assert "| and above tv on average | not run |" in text


def test_the_mean_is_of_all_scans_or_none(pages: ModuleType) -> None:
    cells = {**cells_of({(SEEN, 8): 3.0, (OTHER, 8): 1.0}), (SEEN, 8, "tv"): {"psnr": 19.0}}
    last = pages.overview(cells, [SEEN, OTHER], 8, ["l1-wavelet", "posterior", "tv"]).splitlines()[-1]
    assert last == "| mean | 20.00 | 22.00 | not run |"


def test_runs_once_and_again_what_changed(
    script: ModuleType, write_scan: Any, phantom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scan(name="brain_a.h5", kspace=phantom(shape=(64, 64)))
    work, output = tmp_path / "work", tmp_path / "pages"
    ran: list[str] = []

    def run(*options: str) -> list[str]:
        ran.clear()
        given = [str(tmp_path), "--R", "2", "4", "--recipe", "zero-filled", "sense", "gaussian", *options]
        script.main(
            [*given, "--work", str(work), "-o", str(output)], say=lambda text: ran.append(text.split(" ", 1)[1])
        )
        return [line.removeprefix(f"{work}/brain_a/") for line in ran]

    main = ["R2 zero-filled", "R2 sense", "R4 zero-filled", "R4 sense"]
    assert run("--samples", "4") == [*main, "R2 gaussian", "R4 gaussian"]
    assert run("--samples", "4") == []
    assert run("--samples", "2") == ["R2 gaussian", "R4 gaussian"]
    (work / "brain_a/R4/sense-seed0.json").unlink()
    assert run("--samples", "2", "--pages") == []
    assert "| 4 | sense | not run |" in (output / "brain_a.md").read_text()
    assert run("--samples", "2") == ["R4 sense"]
    figures = {(c["identity"]["R"], c["recipe"]): c for c in json.loads((output / "figures.json").read_text())}
    assert len(figures) == 6
    assert figures[2, "sense"]["psnr"] > figures[2, "zero-filled"]["psnr"] + 1
    assert figures[2, "sense"]["lambda_by"] == "the reference"
    found = figures[2, "gaussian"]
    assert (found["n"], "lambda" in found) == (2, False)
    assert 0 < found["spread"]["coverage"] < 1
    page = (output / "brain_a.md").read_text()
    assert f"| gaussian | {found['psnr']:.2f} | {found['ssim']:.3f} | {found['nmse']:.4f} |" in page
    assert str(tmp_path) not in page + (output / "figures.json").read_text() + (output / "README.md").read_text()


def test_measured_scans(script: ModuleType, scans: Path, tmp_path: Path, pages: ModuleType) -> None:
    """Two sets where the head wraps, no reference where it was undersampled, and no picture without a licence."""
    work, output = tmp_path / "work", tmp_path / "pages"
    given = [str(scans), "--R", "8", "--recipe", "zero-filled", "--work", str(work), "-o", str(output)]
    script.main(given)
    cells = pages.read_cells(work, 0)
    wraps = {scan: cell["sets"] for (scan, _, _), cell in cells.items()}
    assert sorted(wraps.values()) == [1, 1, 1, 1, 2]
    assert wraps["brain_wrapped_8ch_320x168"] == 2
    assert ("brain_poisson2d_R8_8ch_230x180", None, "zero-filled") in cells
    for cell in cells.values():  # as if all had been run
        told = json.loads(cell["images"].with_suffix(".json").read_text()) | {"n": 8}
        with np.load(cell["images"], allow_pickle=False) as images:
            for recipe in ("l1-wavelet", "posterior"):
                path = cell["images"].with_name(f"{recipe}-seed0.npz")
                np.savez(path, **images, std=images["image"])
                path.with_suffix(".json").write_text(json.dumps(told))
    script.main([*given, "--pages"])
    assert {path.stem for path in output.glob("*.png")} == set(pages.LICENCES)
    assert {path.stem for path in work.glob("*.png")} == {"brain_t2_1ch_256x340", "brain_wrapped_8ch_320x168"}
    assert all(path.stat().st_size < 250_000 for path in output.glob("*.png"))
    assert "allows no picture" in (output / "brain_wrapped_8ch_320x168.md").read_text()
