"""examples/demo_to_pacs.py, with a small scan and a real Orthanc on loopback."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="pynetdicom speaks to a PACS")
pytestmark = pytest.mark.usefixtures("no_plots")

FILE = Path(__file__).parents[1] / "examples" / "demo_to_pacs.py"


@pytest.fixture
def demo(mrgen, monkeypatch):
    """The example as a module; its commands run in this process."""
    spec = importlib.util.spec_from_file_location("demo_to_pacs", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: object) -> None:
        code, _, error = mrgen(*arguments)
        assert code == 0, error

    monkeypatch.setattr(module, "mrgen", run)
    return module


def test_every_kind_of_object_arrives(demo, write_scan, phantom, tmp_path, capsys):
    if shutil.which("Orthanc") is None and shutil.which("Orthanc", path="/usr/sbin") is None:
        pytest.skip("Orthanc is not installed: it comes with the Debian package orthanc")
    scan = write_scan("head.h5", kspace=phantom(slices=2, shape=(40, 64), noise=0.01))
    demo.main([str(scan), "--R", "2", "--flag", "0.01", "-o", str(tmp_path / "out")])
    text = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 1")]
    assert [row[0] for row in rows] == [str(number) for number in range(1001, 1008)]
    assert [int(row[3]) for row in rows] == [2, 2, 1, 1, 2, 2, 1]
    assert rows[3][1] == "SEG"
    assert "The PACS holds 11 of the 11 objects that were written." in text


def test_the_pacs_answers_to_this_machine_alone(demo, tmp_path):
    settings = demo.settings(tmp_path, 1, 2)
    assert settings["RemoteAccessAllowed"] is False
    assert (settings["DicomAlwaysAllowStore"], settings["DicomCheckModalityHost"]) == (False, True)


def test_without_orthanc_it_says_so(demo, monkeypatch, tmp_path):
    monkeypatch.setattr(demo.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="error: Orthanc is not installed: it comes with the Debian package orthanc"):
        demo.main(["-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
