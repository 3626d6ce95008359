"""The examples run as their docstrings say."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from children import Child

from mrgen.physics.fourier import fft2c
from mrgen.prior.files import load_prior
from mrgen.scans.scan import Slice
from mrgen.settings import Protocol, load

ROOT = Path(__file__).parent.parent


def test_tiny_training_makes_a_prior_and_resumes(tmp_path: Path, start: Callable[..., Child]) -> None:
    def run() -> str:
        process = start(ROOT / "examples/tiny_training.py", "-o", tmp_path, "--scans", 2, "--steps", 3)
        text = process.communicate(timeout=120)
        assert process.returncode == 0, text
        return text

    text = run()
    assert "estimated risk per pixel" in text
    assert (tmp_path / "prior.png").is_file()
    assert str(tmp_path / "prior.png") in text
    metadata = load_prior(tmp_path / "prior.safetensors").metadata
    assert metadata["steps_done"] == 3
    assert Protocol(**metadata["protocol"]) == load(Protocol, "tiny")
    text = run()
    assert "6 slices, 0 of them new" in text
    assert "resuming prior.safetensors at step 3 of 3" in text


def folded_scan(path: Path) -> Path:
    """A disc of texture, wider than the field of view, seen by eight coils, in the fastMRI layout."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1.5, 1.5, 96), indexing="ij")
    angle = torch.arange(8)[:, None, None] * torch.pi / 4
    seen = torch.exp(-((y - 1.6 * angle.sin()) ** 2 + (x - 1.6 * angle.cos()) ** 2) / 2 + 1j * angle)
    image = seen * ((y / 0.7) ** 2 + (x / 1.1) ** 2 < 1) * (1 + 0.5 * torch.cos(11 * x) * torch.sin(9 * y))
    wrapped = sum(torch.nn.functional.pad(image, (48, 48)).unflatten(-1, (3, 64)).unbind(-2))
    noise = torch.randn(8, 64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    with h5py.File(path, "w") as file:
        file["kspace"] = (fft2c(wrapped) + 0.005 * noise)[None].numpy()
    return path


def test_two_sets_explain_a_wrapped_scan_and_one_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "two_sets_of_maps.py"))
    script["main"]([str(folded_scan(tmp_path / "folded.h5")), "-o", str(tmp_path / "out.png")])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    unexplained = [float(row[3].split()[0]) / float(row[3].split("(")[1][:-1]) for row in rows]
    assert unexplained[0] > 1.5
    assert unexplained[1] == pytest.approx(1, abs=0.1)
    assert unexplained[2] > 1.5 * unexplained[3]
    folded = [float(row[4]) for row in rows]
    assert folded[1] < folded[0] / 3
    assert folded[3] < folded[2] / 1.5
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_recipes_gain_by_two_sets_on_a_wrapped_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    script = runpy.run_path(str(ROOT / "examples" / "reconstruct_two_sets.py"))
    options = ["--R", "2", "--center-fraction", "0.3", "--recipe", "sense", "-o", str(tmp_path / "out.png")]
    script["main"]([str(folded_scan(tmp_path / "folded.h5")), *options])
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| 2")]
    assert [row[1:3] for row in rows] == [["sense", "1"], ["sense", "2"]]
    unexplained, folded, psnr = ([float(row[i].split()[0]) for row in rows] for i in (3, 4, 6))
    assert unexplained[1] < unexplained[0] / 1.5
    assert folded[1] < folded[0] / 1.5
    assert psnr[1] > psnr[0] + 3
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_two_sets_want_a_fully_sampled_scan(tmp_path: Path) -> None:
    with h5py.File(folded_scan(tmp_path / "folded.h5"), "r+") as file:
        file["kspace"][..., 1:20:2] = 0
        file["mask"] = (file["kspace"][0, 0, 0] != 0).astype("f4")
    script = runpy.run_path(str(ROOT / "examples" / "two_sets_of_maps.py"))
    with pytest.raises(SystemExit, match=r"error: folded.h5 is undersampled: expected a fully sampled scan"):
        script["main"]([str(tmp_path / "folded.h5")])


def test_the_error_at_unseen_lines_is_that_of_the_image_whatever_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples whose mean is 0.9 x are 20 dB below x on all lines, also where noise is four times as strong as that."""
    script = runpy.run_path(str(ROOT / "examples" / "unseen_lines.py"))
    g = torch.Generator().manual_seed(0)
    x, maps = (torch.randn(*n, 48, 64, dtype=torch.complex64, generator=g) for n in ((), (4,)))
    maps = maps / maps.norm(dim=0)
    samples = (0.9 + 0.1 * torch.tensor([1, -1, 1j, -1j])[:, None, None]) * x
    monkeypatch.setitem(script["figures"].__globals__, "posterior_samples", lambda *_: samples)
    for sigma0, tolerance in ((1e-3, 0.01), (0.1, 0.7)):
        noise = torch.randn(4, 48, 64, dtype=torch.complex64, generator=g)
        whole = Slice(fft2c(maps * x) + sigma0 * noise, torch.ones(64), maps, sigma0, 1.0, None)
        found = script["figures"](whole, 4.0, None, None, 0)["error_db"]
        assert found == pytest.approx(-20, abs=tolerance)
