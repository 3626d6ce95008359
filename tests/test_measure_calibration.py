"""examples/measure_calibration.py on small ellipses, and its figures on made-up rows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mrgen.prior.denoiser import Denoiser
from mrgen.prior.files import save_prior
from mrgen.settings import Network

SCRIPT = Path(__file__).parents[1] / "examples/measure_calibration.py"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("measure_calibration", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "measure_calibration", module)  # for its dataclass
    spec.loader.exec_module(module)
    return module


def rows(script: ModuleType, hard: float) -> list[dict]:
    """Two scans each of three people; the errors of the last one are `hard` times as large."""
    made = []
    for person, scale in ((1, 1.0), (2, 1.0), (3, hard)):
        for number in range(2):
            relative = scale * np.linspace(0, 1, 1001)
            made.append({"person": person, "scan": number, "relative": relative, "relative_noisy": 2 * relative})
    script.cross_fit(made)
    return made


def test_a_persons_own_scans_do_not_enter_the_factor(script):
    made = rows(script, 2.0)
    assert [row["after"] for row in made[4:]] == pytest.approx([0.45, 0.45], abs=2e-3)  # 0.9 of errors half as large
    assert [row["noisy"] for row in made[4:]] == pytest.approx([0.45, 0.45], abs=2e-3)
    # 0.9 = (q + q / 2) / 2 has no q below 1, so q = 1.6 covers all of the first person
    assert [row["after"] for row in made[:4]] == [1, 1, 1, 1]


def test_people_count_alike_and_the_interval_is_students(script):
    made = [{"person": p, "v": v} for p, v in ((1, 0.0), (1, 2.0), (2, 3.0), (3, 5.0), (3, 5.0), (3, 5.0), (4, None))]
    mean, half = script.over_people(made, lambda row: row["v"])
    assert mean == pytest.approx(3)
    assert half == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3)


def test_the_script_writes_its_figures(script, tmp_path, capsys):
    y, x = np.mgrid[-1:1:217j, -1:1:182j]
    head = 200 * ((y / 0.8) ** 2 + (x / 0.7) ** 2 < 1) - 90.0 * ((y / 0.3) ** 2 + (x / 0.3) ** 2 < 1)
    slices = np.repeat(head[None], 20, 0).astype(np.uint8)
    np.savez(tmp_path / "images.npz", slices=slices, subject=np.repeat([53, 55], 10))
    network = Network(widths=(16,), blocks=1, patch=2)
    torch.manual_seed(0)
    metadata = {"network": network.model_dump(), "sigma_data": 0.4, "sigma_min": 0.01, "sigma_max": 20}
    save_prior(tmp_path / "untrained.safetensors", Denoiser(network, 0.4).state_dict(), metadata)
    (tmp_path / "g.toml").write_text('description = "g"\nmethod = "gaussian"\nsamples = 3\ncg_iterations = 5\n')
    given = ["--images", "images.npz", "--R", "4", "--scans", "1", "--matrix", "64", "64", "--acs", "16"]
    given += ["--recipe", "g.toml", "--device", "cpu", "-o", "out"]
    paths = [str(tmp_path / g) if "." in g or g == "out" else g for g in given]
    script.main([str(tmp_path / "untrained.safetensors"), *paths])
    record = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    (summary,) = record["mean_and_half_interval"]
    assert (summary["people"], summary["scans"]) == (2, 2)
    assert summary["guaranteed"] == pytest.approx(0.45)
    assert [row["person"] for row in record["each"]] == [53, 55]
    assert 0 < summary["before"][0] < summary["exact"][0] < 1  # as 1.645 < 3.37, Student's for three samples
    assert summary["before"][0] == pytest.approx(np.mean([row["before"] for row in record["each"]]))
    lines = (tmp_path / "out.md").read_text().splitlines()
    assert lines[2].startswith(f"| untrained | 4 | {summary['factor']:.2f} | {100 * summary['before'][0]:.1f} ± ")
    assert lines[2] in capsys.readouterr().out
