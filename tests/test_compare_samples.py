"""examples/compare_samples.py on phantoms and a Gaussian prior: who is nearer, what is written, what is refused."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.physics.fourier import ifft2c
from mrgen.prior.denoiser import Denoiser
from mrgen.prior.files import load_prior, save_gaussian, save_prior
from mrgen.prior.gaussian import Gaussian
from mrgen.prior.spectrum import BINS
from mrgen.scans.phantom import head_phantom, phantom_kspace
from mrgen.settings import Network

METADATA = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 0.4}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    module = importlib.import_module("compare_samples")
    monkeypatch.setattr(module, "training_sources", lambda images, volume: [module.template_heads(images, False)])
    monkeypatch.setattr(module, "REPEATS", 5)
    return module


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A slice, ten times, of each of two people, one of them held out."""
    heads = []
    for person in range(2):
        phantom = head_phantom(torch.Generator().manual_seed(person))
        head = ifft2c(phantom_kspace(phantom, 0.1, (217, 182))).abs()
        heads += [(255 * head / head.max()).round().to(torch.uint8).numpy()] * 10
    np.savez(tmp_path / "slices.npz", slices=np.stack(heads), subject=np.repeat([1, 60], 10))
    return tmp_path / "slices.npz"


def test_samples_of_a_gaussian_are_further_than_images_of_others(example, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "stationary.safetensors"
    save_gaussian(file, Gaussian(torch.logspace(2, -2, BINS)), METADATA)
    common = ("--images", str(images), "--volume", "none", "--device", "cpu", "-o", str(tmp_path / "result.json"))
    example.main([str(file), "--matrix", "144", "128", "-n", "3", "--people", "3", "--steps", "5", *common])
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["matrix"], result["n"], result["steps"], result["held_out_images"]) == ([144, 128], 3, 5, 3)
    people, training, gaussian = result["rows"].values()
    assert list(result["rows"]) == ["images of training people", "images as training draws them", "stationary"]
    assert gaussian["sha256"] == load_prior(file).sha256
    for row in (people, training):
        assert 0 < np.mean(row["distance"]) < np.mean(gaussian["distance"]) / 2
        assert np.abs(row["spectrum"][2:]).max() < 6
    lines = (tmp_path / "result.md").read_text().splitlines()
    assert len(lines) == 5
    mean, spread = np.mean(gaussian["distance"]), gaussian["std"][-1]
    assert lines[-1].startswith(f"| stationary | {mean:.3f} ± {spread:.3f} | {gaussian['distance'][0]:.3f} ±")


def test_rounds_of_diffem_are_refused(example, tmp_path: Path) -> None:
    network = Network(widths=(16,), blocks=1, patch=2, condition=True)
    weights = dict(Denoiser(network, 0.4).state_dict())
    save_prior(tmp_path / "round.safetensors", weights, {**METADATA, "network": network.model_dump(mode="json")})
    with pytest.raises(MrgenError, match="--diffem"):
        example.main([str(tmp_path / "round.safetensors"), "--images", "none", "--volume", "none", "-o", "none"])
