"""`mrgen sample` from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from mrgen import __version__
from mrgen.posterior.samplers import noise_levels
from mrgen.posterior.unconditional import unconditional_samples
from mrgen.prior.denoiser import Denoiser
from mrgen.prior.files import bundled_prior, load_prior, save_gaussian, save_prior
from mrgen.prior.gaussian import Gaussian
from mrgen.prior.spectrum import BINS
from mrgen.settings import Network

LEVELS = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 0.4}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gaussian(tmp_path: Path) -> Path:
    file = tmp_path / "gaussian.safetensors"
    save_gaussian(file, Gaussian(torch.logspace(2, -2, BINS)), {**LEVELS, "matrix": [24, 20]})
    return file


def test_a_file_and_a_sheet_are_written(mrgen: Call, gaussian: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    code, text, error = mrgen("sample", "--prior", gaussian, "-n", 6, "--seed", 3, "--steps", 8, "-o", out)
    assert (code, error) == (0, "")
    assert "6 samples, 24 x 20, seed 3" in text  # the matrix of the training
    assert sorted(path.name for path in out.iterdir()) == ["samples.h5", "samples.png"]
    prior = load_prior(gaussian)
    with h5py.File(out / "samples.h5") as file:
        samples, attributes = file["samples"][:], dict(file.attrs)
    assert attributes == {
        "prior_sha256": prior.sha256,
        "seed": 3,
        "steps": 8,
        "mrgen_version": __version__,
        "notice": "Research use only. Not for diagnostic use.",
    }
    assert samples.dtype == np.complex64
    expected = unconditional_samples(prior, (6, 24, 20), noise_levels(20.0, 0.01, 8), 3)
    np.testing.assert_array_equal(samples, expected.numpy())

    picture = imread(out / "samples.png")[..., 0]
    middles = [(row, (column + 0.5) / 4) for row in (0.3, 0.7) for column in range(4)]
    y, x = np.array(picture.shape)
    tiles = [picture[int(v * y) - 40 : int(v * y) + 40, int(u * x) - 40 : int(u * x) + 40] for v, u in middles]
    assert [bool(tile.std() > 0.05) for tile in tiles] == [True] * 6 + [False] * 2  # six samples, and no more
    assert max(picture[: y // 20].min(), picture[-y // 20 :].min()) < 0.3  # there are words above and below


def test_samples_are_a_matter_of_seed_and_number(mrgen: Call, gaussian: Path, tmp_path: Path) -> None:
    def draw(*options: object) -> np.ndarray:
        code, _, error = mrgen(
            "sample", "--prior", gaussian, "--steps", 4, "--shape", "32x24", *options, "-o", tmp_path
        )
        assert (code, error) == (0, "")
        with h5py.File(tmp_path / "samples.h5") as file:
            return np.asarray(file["samples"])

    four = draw("-n", 4)
    assert four.shape == (4, 32, 24)
    np.testing.assert_array_equal(draw("-n", 4), four)
    np.testing.assert_array_equal(draw("-n", 2), four[:2])
    assert not np.isclose(draw("-n", 4, "--seed", 1), four).any()


def test_the_bundled_prior_is_the_default(mrgen: Call, tmp_path: Path) -> None:
    code, text, _ = mrgen("sample", "-n", 1, "--steps", 2, "--shape", "32x48", "-o", tmp_path, "--device", "cpu")
    assert code == 0
    assert f"head.safetensors {load_prior(bundled_prior()).sha256[:12]}: 1 samples, 32 x 48" in text
    with h5py.File(tmp_path / "samples.h5") as file:
        assert np.isfinite(file["samples"][:]).all()


def test_mistakes_are_told_in_one_line(mrgen: Call, gaussian: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(match: str, *arguments: object, to: Path = out) -> None:
        code, _, error = mrgen("sample", "--prior", gaussian, *arguments, "-o", to)
        (line,) = error.splitlines()
        assert code == 1
        assert line.startswith("mrgen: error: ")
        assert match in line
        assert not out.exists()

    for shape in ("208", "208x", "0x20", "15x20", "20*20", "1e3x20", "200000x20"):
        refused(f"--shape {shape}: expected YxX", "--shape", shape)
    refused("no such file: none.safetensors", "--prior", tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    refused("not a file that mrgen wrote", "--prior", tmp_path / "text.safetensors")
    (tmp_path / "file").write_text("")
    refused("cannot write to the output folder", to=tmp_path / "file" / "out")
    network = Network(widths=(16,), blocks=1, patch=2, condition=True)
    weights = dict(Denoiser(network, 0.4).state_dict())
    save_prior(tmp_path / "round.safetensors", weights, {**LEVELS, "network": network.model_dump(mode="json")})
    refused("a round of mrgen em --diffem", "--prior", tmp_path / "round.safetensors")


def test_a_full_disk_leaves_nothing(mrgen: Call, gaussian: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mrgen.cli.sample.save_sheet", full)
    code, _, error = mrgen("sample", "--prior", gaussian, "-n", 1, "--steps", 2, "-o", tmp_path / "out")
    assert code == 1
    assert "No space left" in error.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())
