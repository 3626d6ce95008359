"""What ships: the bundled prior on the bundled scan, through the command that users type."""

import json
from pathlib import Path

import h5py
import pytest
from typer.testing import CliRunner

from mrgen.cli import app
from mrgen.prior.files import bundled_prior, load_prior
from mrgen.review.metrics import psnr_fit
from mrgen.settings import Recipe, settings_folder

SCAN = Path(__file__).parents[1] / "examples/data/brain.h5"


def test_the_prior_is_small_and_says_where_it_comes_from() -> None:
    assert bundled_prior().stat().st_size <= 12e6
    prior = load_prior(bundled_prior())
    stages = [stage["objective"] for stage in prior.metadata["stages"]]
    assert stages[0].startswith("gsure")
    assert all("gsure" in s or "M-step" in s for s in stages)
    assert "no clean image" in prior.metadata["trained_on"]
    assert "Not for diagnostic use" in prior.metadata["notice"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the recipe that is the default, in 12 steps of its 20: 0.3 dB less than by all."""
    out = tmp_path_factory.mktemp("recon")
    quick = out / "quick.toml"
    quick.write_text((settings_folder(Recipe) / "posterior.toml").read_text() + "steps = 12\n")
    options = ["--R", "8", "--samples", "2", "--no-check", "--recipe", str(quick), "--device", "cpu"]
    done = CliRunner().invoke(app, ["recon", str(SCAN), *options, "-o", str(out)])
    assert done.exit_code == 0, done.output
    return out


def test_the_mean_beats_every_baseline_at_r_8(result: Path) -> None:
    volume = json.loads((result / "report.json").read_text())["metrics"]["volume"]
    psnr = {name: scores["psnr_fit"] for name, scores in volume.items()}
    # the margin is for two samples; like the reference, the L1-wavelet image is 0 where no coil has a map
    assert psnr["reconstruction"] > psnr["l1_wavelet"] + 2 > psnr["zero_filled"] + 2


def test_the_outputs_are_whole(result: Path) -> None:
    with h5py.File(result / "brain.h5") as file, h5py.File(SCAN) as scan:
        for name in ("reconstruction", "std", "zero_filled", "l1_wavelet", "reference", "rss"):
            assert file[name].shape == (1, 224, 224)
        assert ((file["std"][()] > 0) == (file["reference"][()] > 0)).all()  # where there are coil maps
        assert file["mask"][()].sum() == 28
        # undone scaling: the scanner's own units
        ratio = file["rss"][()].mean() / scan["reconstruction_rss"][()].mean()
        combined, rss = file["reference"][0], file["rss"][0]
    assert psnr_fit(combined, rss) == pytest.approx(33.3, abs=0.3)
    assert ratio == pytest.approx(1, abs=0.05)
    assert (result / "figure.png").stat().st_size > 10_000


def test_a_recipe_beyond_the_priors_noise_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "loud.toml"
    recipe.write_text('description = "too loud"\nsigma_max = 200.0\n')
    done = CliRunner().invoke(app, ["recon", str(SCAN), "--R", "8", "--recipe", str(recipe), "-o", str(tmp_path / "o")])
    assert done.exit_code != 0
    assert "trained up to 80: lower sigma_max in" in str(done.exception)


def test_the_card_is_that_of_the_file() -> None:
    prior, size = load_prior(bundled_prior()), bundled_prior().stat().st_size
    metadata, protocol = prior.metadata, prior.metadata["protocol"]
    (first, *rounds), network, sampling = metadata["stages"], metadata["network"], protocol["sampling"]
    (batch,) = {stage["batch"] for stage in rounds}
    widths, accelerations = (", ".join(f"{v:g}" for v in v) for v in (network["widths"], sampling["acceleration"]))
    weights = sum(parameter.numel() for parameter in prior.denoiser.parameters())  # type: ignore[attr-defined]
    expected = {
        "SHA-256": f"`{prior.sha256}`",
        "size": f"{size / 1e6:.1f} MB",
        "network": f"U-Net, {weights:,} weights in half precision: widths {widths}, {network['blocks']} blocks, "
        f"patch {network['patch']}",
        "objective": f"{first['objective']}, {first['updates']:,} updates of {first['batch']}; "
        f"then {len(rounds)} rounds of EM, {sum(stage['updates'] for stage in rounds):,} updates of {batch} in all",
        "undersampling in training": f"{sampling['pattern']}, R = {accelerations}, "
        f"centre {sampling['center_fraction']:.0%}".replace("%", " %"),
        "noise levels": f"{prior.sigma_min:g} to {prior.sigma_max:g} of the scaled image",
        "scale": metadata["scaling"],
    }
    assert all("M-step of EM" in stage["objective"] for stage in rounds)
    card = (Path(__file__).parents[1] / "docs/head-prior.md").read_text(encoding="utf-8")
    table = card.split("\n\n")[3]
    rows = dict(line.strip("| ").split(" | ", 1) for line in table.splitlines()[2:])
    assert rows == expected
