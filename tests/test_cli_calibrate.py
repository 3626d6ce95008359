"""`mrgen calibrate`, and what `mrgen recon --calibration` makes of its file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from mrgen.cli import calibrate as command
from mrgen.cli.spread import check_lines
from mrgen.errors import MrgenError
from mrgen.review.calibration import Calibration, Level, Scored, fit_level, read_calibration, recipe_digest
from mrgen.review.metrics import body
from mrgen.settings import Recipe

pytestmark = pytest.mark.usefixtures("no_plots")

RECIPE = 'description = "tiny"\nmethod = "gaussian"\nsamples = 4\ncg_iterations = 8\n'


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def heads(write_scan, phantom) -> list[Path]:
    """Three scans of one phantom, with more noise from one to the next."""
    return [
        write_scan(f"head{i}.h5", kspace=phantom(slices=2, shape=(40, 64), noise=noise))
        for i, noise in enumerate((0.01, 0.02, 0.04))
    ]


def test_a_calibration_is_fitted_and_applied(mrgen, heads, recipe, tmp_path):
    out = tmp_path / "new" / "c.json"
    options = ["--recipe", recipe, "--device", "cpu"]
    code, text, _ = mrgen("calibrate", *heads[:2], "--R", 3, "-r", 2, *options, "-o", out)
    assert code == 0, text
    assert [p.name for p in out.parent.iterdir()] == ["c.json"]
    record = json.loads(out.read_text())
    assert "head0" not in out.read_text()
    assert [(level["R"], level["scans"], level["slices"]) for level in record["levels"]] == [(2, 2, 4), (3, 2, 4)]
    assert record["n_samples"] == 4
    assert [f"{level['factor']:.2f}" in text for level in record["levels"]] == [True, True]

    # the two scans are covered as asked: once each of them has the interval
    covered = []
    for head in heads[:2]:
        folder = tmp_path / head.stem
        code, text, _ = mrgen("recon", head, "--R", 2, *options, "--calibration", out, "-o", folder)
        assert code == 0, text
        with h5py.File(folder / f"{head.stem}.h5") as file:
            mean, std, half, reference = (file[k][()] for k in ("reconstruction", "std", "interval", "reference"))
            factor = file.attrs["interval_factor"]
            assert file.attrs["interval_coverage"] == 0.9
        np.testing.assert_allclose(half, factor * std, rtol=1e-6)
        covered.append((abs(mean - reference) <= half)[body(reference)].mean())
        assert f"mean ± {factor:.2f} std is to cover 90%" in text
        assert "not calibrated" not in text
        report = json.loads((folder / "report.json").read_text())
        assert report["interval"]["factor"] == factor
        assert f"calibrated, covers {covered[-1]:.1%}" in mrgen("evaluate", folder)[1]
        assert "sets of coil maps" not in text
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01)
    assert [level["map_sets"] for level in record["levels"]] == [[1], [1]]
    for level in record["levels"]:
        level["map_sets"] = [2]
    out.write_text(json.dumps(record))
    note = "the calibration is of slices with 2 set(s) of coil maps, and this scan has slices with 1: do not rely"
    assert note in mrgen("recon", heads[0], "--R", 2, *options, "--calibration", out, "-o", tmp_path / "other")[1]


@pytest.mark.slow
def test_processes_share_the_scans_of_a_calibration(mrgen, start, heads, recipe, tmp_path):
    arguments = ["calibrate", *heads, "--R", 2, "--R", 3, "--recipe", recipe, "--device", "cpu"]
    process = start("-m", "mrgen.cli", *arguments, "-o", tmp_path / "two.json", processes=2)
    text = process.communicate(timeout=120)
    assert process.returncode == 0, text
    done = re.findall(r"\[(\d)\] R = (\d), head(\d)\.h5: reconstructed", text)
    assert sorted(of for _, *of in done) == [[r, head] for r in "23" for head in "012"]
    assert text.count("wrote   ") == text.count("diagnostic use") == 1
    assert not list(tmp_path.glob(".*partial"))
    assert mrgen(*arguments, "-o", tmp_path / "one.json")[0] == 0
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


def test_an_interrupted_calibration_goes_on(mrgen, heads, recipe, tmp_path, monkeypatch):
    out, score, prepared = tmp_path / "c.json", command.score_result, []

    def failing(result, share):
        prepared.append(result.resumed)
        if len(prepared) == 2:
            raise KeyboardInterrupt("SIGINT")
        return score(result, share)

    monkeypatch.setattr(command, "score_result", failing)
    arguments = ("calibrate", *heads[:2], "--R", 2, "--recipe", recipe, "-o", out, "--device", "cpu")
    code, _, error = mrgen(*arguments)
    assert (code, out.exists()) == (1, False)
    assert "the calibration was stopped by SIGINT; the same command goes on from there" in error
    assert mrgen(*arguments)[0] == 0
    assert prepared == [0, 0, 2, 2]  # slices that were there
    assert not list(tmp_path.glob(".*partial"))
    resumed = out.read_bytes()
    assert mrgen(*arguments)[0] == 0
    assert out.read_bytes() == resumed


def test_without_samples_or_reference_there_is_nothing_to_calibrate(
    mrgen, write_scan, phantom, heads, recipe, tmp_path
):
    k = np.arange(64)
    mask = ((k % 2 == 0) | (abs(k - 32) < 6)).astype("f4")
    measured = write_scan("measured.h5", kspace=phantom(shape=(64, 64)).numpy() * mask, mask=mask)
    for match, arguments in (
        ("draws no samples: there is no spread", [heads[0], "--recipe", "sense"]),
        ("--coverage 1: expected a number between 0 and 1", [heads[0], "--recipe", recipe, "--coverage", 1]),
        ("measured.h5, R = 2: the scan is already undersampled", [measured, "--recipe", recipe, "--R", 2]),
    ):
        code, _, error = mrgen("calibrate", *arguments, "-o", tmp_path / "c.json")
        assert (code, error.count("\n")) == (1, 1)
        assert match in error
    assert not (tmp_path / "c.json").exists()


def test_what_speaks_against_a_result_is_said() -> None:
    def lines(ratio: float, error: float, residual: float = 1.0) -> str:
        withheld = {"ratio": ratio, "standard_error": error, "lines": 2}
        return "\n".join(check_lines([{"measured_share": 0.9, "residual": residual, "withheld": withheld}]))

    assert "note" not in lines(1.4, 0.1)
    assert "note" not in lines(1.6, 0.4)  # it may be 1
    assert "THE SPREAD IS TOO SMALL" in lines(1.6, 0.2)
    assert "NO IMAGE EXPLAINS THE DATA" in lines(1, 0.1, residual=1.6)


def test_every_reconstruction_with_samples_is_checked(mrgen, heads, recipe, tmp_path):
    images = {}
    for name, options in (("checked", []), ("not", ["--no-check"]), ("many", ["--samples", 19])):
        arguments = ("recon", heads[0], "--R", 2, "--recipe", recipe, "--device", "cpu", *options)
        code, text, _ = mrgen(*arguments, "--save-samples", "-o", tmp_path / name)
        assert code == 0, text
        report = json.loads((tmp_path / name / "report.json").read_text())["checks"]["slices"]
        assert [check["slice"] for check in report] == [0, 1]
        assert all(check["measured_share"] + check["null_space_share"] == pytest.approx(1) for check in report)
        share = np.mean([check["measured_share"] for check in report])
        assert f"shares  {share:.1%} of the image's power is measured" in text
        assert ("withheld lines the error is" in text) == (name != "not")
        with h5py.File(tmp_path / name / "head0.h5") as file:
            images[name] = {key: file[key][()] for key in file}
        assert images[name]["null_space"].shape == images[name]["std"].shape
    assert "n = 19 samples: the std of a pixel is off by 17% of itself, the mean by 0.23 std" in text
    for key in ("reconstruction", "std", "samples"):
        assert np.array_equal(images["checked"][key], images["not"][key]), "the check leaves the samples as they are"
    assert "quantile_05" not in images["checked"], "of 4 samples"
    ordered = np.sort(images["many"]["samples"], axis=1)
    np.testing.assert_allclose(images["many"]["quantile_05"], ordered[:, 0], rtol=1e-5)
    np.testing.assert_allclose(images["many"]["quantile_95"], ordered[:, -1], rtol=1e-5)


LEVEL = Level(4, 4.0, 2.0, 3, 3, 0.7, 0.8, 0.85, 0.9, 0.3, 0.3, [1])


def made(**changes) -> Calibration:
    recipe = Recipe(description="any", samples=8)
    eight = Level(**{**vars(LEVEL), "R": 8, "achieved": 8.0, "factor": 4.0})
    given = {"coverage": 0.9, "samples": 8, "recipe": recipe_digest(recipe), "recipe_name": "posterior", "prior": "ab"}
    return Calibration(**{**given, "levels": (LEVEL, eight), "sha256": "", **changes})


def test_factors_between_two_r_and_beyond():
    calibration = made()
    assert calibration.factor(4) == pytest.approx(2)
    assert calibration.factor(32**0.5) == pytest.approx(8**0.5)  # half way in log R: half way in log factor
    assert calibration.factor(3.7) == pytest.approx(2)
    assert calibration.factor(8.7) == pytest.approx(4)
    for beyond in (3.5, 8.9):
        with pytest.raises(MrgenError, match=rf"is for R = 4.00 to 8.00, this scan has {beyond:.2f}"):
            calibration.factor(beyond)


def test_what_it_was_not_made_for_is_refused():
    recipe = Recipe(description="another text", samples=8)
    made().refuse_other(recipe, "ab")
    for match, other, prior in (
        ("n = 8 samples, this run has 16", recipe.model_copy(update={"samples": 16}), "ab"),
        ("this recipe has other settings", recipe.model_copy(update={"steps": 21}), "ab"),
        ("the prior ab, this run has cd", recipe, "cd"),
        ("the prior ab, this run has none", recipe, None),
    ):
        with pytest.raises(MrgenError, match=match):
            made().refuse_other(other, prior)


def test_a_level_is_the_mean_over_scans():
    scans = [
        Scored(np.linspace(0, s, 1001), 1, 4 + s, 0.5 * s, 0.25 * s, 0.1 * s, 0.2 * s, [int(s)]) for s in (1.0, 2.0)
    ]
    level = fit_level(4, scans, 0.9)
    assert level.factor == pytest.approx(1.6, abs=2e-3)  # (1 + 0.8) / 2
    assert (level.achieved, level.before, level.exact) == (5.5, 0.75, 0.375)
    assert level.rank_correlation == pytest.approx(0.15)
    assert level.ause == pytest.approx(0.3)
    assert level.after == pytest.approx((1 + 0.45) / 2, abs=2e-3)
    assert level.guaranteed == pytest.approx(0.6)
    assert fit_level(4, scans[:1], 0.9).after is None
    assert (level.map_sets, fit_level(4, scans[1:], 0.9).map_sets) == ([1, 2], [2])


def test_a_file_that_is_no_calibration_is_refused(mrgen, heads, recipe, tmp_path):
    path = tmp_path / "c.json"
    for text in ("{", "{}", '{"format": "other"}', "[]", '{"format": "mrgen-calibration-1", "levels": []}'):
        path.write_text(text)
        with pytest.raises(MrgenError, match=r"c.json: not a calibration \(.*: expected a file of mrgen calibrate"):
            read_calibration(path)
    code, _, error = mrgen("recon", heads[0], "--R", 2, "--recipe", recipe, "--calibration", path, "-o", tmp_path / "o")
    assert (code, error.count("\n")) == (1, 1)
    with pytest.raises(MrgenError, match="cannot read it"):
        read_calibration(tmp_path / "none.json")
    code, _, error = mrgen("recon", heads[0], "--R", 2, "--recipe", "sense", "--calibration", path, "-o", tmp_path)
    assert "draws no samples: leave out --calibration" in error
