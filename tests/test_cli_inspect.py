from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mrgen.cli.inspect import _entry, inspect
from mrgen.errors import MrgenError


def call(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(inspect)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def good(write_scan, phantom, header) -> Path:
    return write_scan("good.h5", kspace=phantom(slices=3, shape=(64, 48), noise=0.01), ismrmrd_header=header((64, 48)))


def test_a_screen_a_scan_without_anything_that_identifies(good):
    result = call(good)
    assert result.exit_code == 0
    assert "1 of 1 scans can be used" in result.stdout
    assert "mrgen recon good.h5 --R 2 -o out/" in result.stdout
    assert "slice 1 examined" in result.stdout
    assert len(result.stdout.splitlines()) <= 30
    for secret in ("Doe", "Q4711Z", "Somewhere", "2001-02-03", str(good.parent)):
        assert secret not in result.stdout


def test_the_list_goes_on_after_a_bad_scan_and_the_exit_code_is_1(good, tmp_path):
    (tmp_path / "bad.npz").write_text("nothing")
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "2 files that may be scans" in result.stdout
    assert result.stdout.index("CANNOT USE") < result.stdout.index("good.h5")
    assert "1 of 2 scans can be used" in result.stdout


def test_json_holds_the_findings(good, tmp_path):
    call(good, "--json", tmp_path / "out" / "f.json")
    record = json.loads((tmp_path / "out" / "f.json").read_text(), parse_constant=pytest.fail)
    (scan,) = record["scans"]
    assert (scan["file"], scan["usable"], scan["coils"], scan["matrix"]) == ("good.h5", True, 4, [64, 48])
    assert scan["sampling"]["kind"] == "fully sampled"
    assert "evidence" not in scan
    alone = call(good, "absent.h5", "--json", "-")
    assert alone.exit_code == 1
    printed = json.loads(alone.stdout)
    assert printed["scans"][0] == scan
    assert "no such file" in printed["scans"][1]["reasons"][0]


def test_the_picture_is_written_on_request(good, tmp_path):
    result = call(good, "-o", tmp_path / "out")
    (picture,) = (tmp_path / "out").iterdir()
    assert picture.name == "good.inspect.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "good.inspect.png" in result.stdout
    assert "-o" in call(good).stdout


def test_bad_slices_are_looked_for_on_request(good):
    with h5py.File(good, "r+") as file:
        file["kspace"][0, 0, 0, 0] = np.nan
    assert "WARNING" not in call(good).stdout
    assert "slice 0 of kspace holds NaN" in " ".join(call(good, "--all-slices").stdout.split())


def test_a_folder_without_scans_is_an_error(tmp_path):
    with pytest.raises(MrgenError, match="no file ends with"):
        call(tmp_path)


def test_an_equation_is_not_broken_over_two_lines() -> None:
    for words in range(40, 56):
        text = _entry("sampling", "x " * words + "R = 4.00")
        assert "R = 4.00" in text
        assert all(len(line) <= 110 for line in text.splitlines())
