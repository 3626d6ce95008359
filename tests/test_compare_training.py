"""examples/compare_training.py: its risk in closed form, and two trainings that are compared, and not run again."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from mrgen.prior.denoiser import risk_weight

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return runpy.run_path(str(ROOT / "examples" / "compare_training.py"))


def test_the_risk_of_a_scaled_image_is_known(script):
    """D = c x_t: |1 - c|^2 |x|^2 + c^2 sigma^2, times the weight; for the best c that is 1 at any level."""
    sigma_data, images = 0.4, torch.polar(torch.full((12, 96, 80), 0.4), torch.linspace(0, 6, 80).expand(12, 96, 80))

    def best(x, sigma):
        c = sigma_data**2 / (sigma**2 + sigma_data**2)
        return c[:, None, None] * x

    assert script["risks"](best, images, sigma_data, 5) == pytest.approx([1] * 6, abs=0.01)
    doing_nothing = script["risks"](lambda x, sigma: x, images, sigma_data)
    wanted = [s**2 * float(risk_weight(torch.tensor(s), sigma_data)) for s in script["LEVELS"]]
    assert doing_nothing == pytest.approx(wanted, rel=0.01)


@pytest.mark.usefixtures("no_plots")
def test_variants_are_trained_once_and_compared(script, images, tmp_path, capsys):
    common = ["training.steps=2", "training.batch=2", "network.widths=[16]", "network.blocks=1"]
    variants = [["clean", "training.objective=supervised"], ["noisy", "training.learning_rate=1e-3"]]
    arguments = ["--images", images, "--work", tmp_path / "work", "--scans", 3, "--tests", 2,
                 "--set", *common, "--device", "cpu", "-o", tmp_path / "found.json"]  # fmt: skip
    for variant in variants:
        arguments += ["--variant", *variant]
    script["main"]([str(a) for a in arguments])
    first = (tmp_path / "found.json").read_text()
    rows = json.loads(first)["rows"]
    assert [(row["variant"], len(row["risk"])) for row in rows] == [("clean", 6), ("noisy", 6)]
    assert rows[0]["settings"]["training"]["objective"] == "supervised"
    assert rows[1]["settings"]["training"]["learning_rate"] == 1e-3
    assert rows[0]["risk"] != rows[1]["risk"]
    assert "clean" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.h5")}
    script["main"]([str(a) for a in arguments])
    assert (tmp_path / "found.json").read_text() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.h5")} == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [("training.rate=1", "expected PART.NAME=VALUE"), ("training.learning_rate=-1", "greater than 0")],
)
def test_settings_that_do_not_exist_are_refused(script, tmp_path, change, complaint):
    given = ["--images", "none.npz", "--work", str(tmp_path), "--variant", "x", change, "-o", str(tmp_path / "o.json")]
    with pytest.raises(SystemExit, match=complaint):
        script["main"](given)
