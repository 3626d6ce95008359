"""The training loop on a few tiny simulated slices: exact resume, refusals, its log, schedules and poses."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import kstest, lognorm
from tinyset import image, protocol, slices
from torch import Tensor

import mrgen.prior.train as loop
from mrgen.errors import MrgenError
from mrgen.prior.data import TrainingSet
from mrgen.prior.files import load_prior, read_safetensors, save_prior, write_safetensors
from mrgen.prior.train import any_pose, draw_sigma, learning_rate, train
from mrgen.prior.update import average_exponent
from mrgen.settings import Protocol, Training

pytestmark = pytest.mark.usefixtures("no_plots")


def silent(text: str) -> None:
    del text


def tensors(path: Path) -> dict[str, Tensor]:
    return read_safetensors(path)[0]


def rows(out: Path) -> list[list[str]]:
    with out.with_suffix(".csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def assert_same(a: Path, b: Path) -> None:
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    assert [k for k in one if not torch.equal(one[k], two[k])] == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes a second; an update looks once."""
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=itertools.count().__next__))


@pytest.mark.parametrize("kind", ["fourier", "sense", "supervised"])
def test_resume_equals_no_interruption_to_the_bit(tmp_path: Path, clock: None, kind: str) -> None:
    if kind == "supervised":
        data, settings = TrainingSet.from_images([image(i) for i in range(5)], "clean"), protocol(objective=kind)
    else:
        data, settings = slices(), protocol(basis=kind)
    whole = train(data, settings, tmp_path / "whole.safetensors", report=silent)
    parts, said = tmp_path / "parts.safetensors", []
    for _ in range(20):
        train(data, settings, parts, seconds=5, report=said.append)
        if read_safetensors(parts)[1]["steps_done"] == 12:
            break
    resumed = [s for s in said if s.startswith("resuming")]
    assert len(resumed) >= 2
    assert len({s.split(" at step ")[1] for s in resumed}) == len(resumed)
    assert_same(whole, parts)
    assert_same(whole.with_suffix(".checkpoint.safetensors"), parts.with_suffix(".checkpoint.safetensors"))
    assert rows(whole) == rows(parts)
    assert [int(r[0]) for r in rows(whole)] == list(range(1, 13))


class Stop(Exception):
    pass


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    tmp_path: Path, clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed between two checkpoints."""
    monkeypatch.setattr(loop, "REPORT_SECONDS", 2.0)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 4.0)
    data, settings = slices(), protocol(steps=20)
    whole = train(data, settings, tmp_path / "whole.safetensors", report=silent)
    parts = tmp_path / "parts.safetensors"

    def kill(text: str) -> None:
        if text.startswith("step") and int(text.split()[1].split("/")[0]) >= 12:
            raise Stop

    with pytest.raises(Stop):
        train(data, settings, parts, report=kill)
    assert not parts.exists()
    assert read_safetensors(parts.with_suffix(".checkpoint.safetensors"))[1]["step"] < 12
    said: list[str] = []
    train(data, settings, parts, report=said.append)
    assert said[0].startswith("resuming")
    assert_same(whole, parts)
    assert rows(whole) == rows(parts), "the log has a gap"


def test_the_first_report_brings_a_checkpoint(tmp_path: Path, clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", 2.0)

    def kill(text: str) -> None:
        if text.startswith("step"):
            raise Stop

    with pytest.raises(Stop):
        train(slices(), protocol(steps=20), tmp_path / "prior.safetensors", report=kill)
    assert read_safetensors(tmp_path / "prior.checkpoint.safetensors")[1]["step"] == 3


def test_out_of_time_before_the_first_update_leaves_a_run_to_resume(tmp_path: Path) -> None:
    data, settings = slices(), protocol()
    whole = train(data, settings, tmp_path / "whole.safetensors", report=silent)
    late = train(data, settings, tmp_path / "late.safetensors", report=silent, seconds=0.0)
    train(data, settings, late, report=silent)
    assert_same(whole, late)


def test_the_loss_falls_and_its_curve_is_kept(tmp_path: Path) -> None:
    settings = protocol(steps=80, batch=4, learning_rate=2e-3, warmup=10)
    out = train(slices(8), settings, tmp_path / "prior.safetensors", report=silent)
    risk = [float(r[2]) for r in rows(out)]
    assert sum(risk[-20:]) < 0.7 * sum(risk[:20])  # 0.48 to 0.62 for seeds 0 to 2
    before = rows(out)
    said: list[str] = []
    train(slices(8), settings, out, report=said.append)  # nothing left to do
    assert said[0] == "resuming prior.safetensors at step 80 of 80"
    assert rows(out) == before


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    train(slices(), protocol(), out, report=silent)
    stored = out.read_bytes()
    for data, settings, steps, named in (
        (slices(6), protocol(), None, "data"),
        (slices(), protocol(learning_rate=1e-3), None, "protocol"),
        (slices(), protocol(), 13, "steps"),
    ):
        with pytest.raises(MrgenError, match=rf"of another run \(other {named}\).*--no-resume") as caught:
            train(data, settings, out, steps=steps, report=silent)
        assert "\n" not in str(caught.value)
    assert out.read_bytes() == stored
    train(slices(6), protocol(), out, resume=False, report=silent)
    assert out.read_bytes() != stored


def test_nan_stops_the_run_and_says_so(tmp_path: Path) -> None:
    data = slices()
    data.items[3].kspace[:] = math.nan  # type: ignore[union-attr]
    with pytest.raises(MrgenError, match=r"loss of prior.safetensors is not finite at step \d; lower the learning"):
        train(data, protocol(), tmp_path / "prior.safetensors", report=silent)
    assert not (tmp_path / "prior.safetensors").exists()


def test_weights_to_start_from_are_used(tmp_path: Path) -> None:
    first = train(slices(), protocol(), tmp_path / "a.safetensors", report=silent)
    start = {k: v.float() for k, v in tensors(first).items()}
    settings = protocol(learning_rate=1e-12)  # so that the start is also the end
    assert_same(first, train(slices(), settings, tmp_path / "b.safetensors", start=start, steps=1, report=silent))


def test_a_prior_is_read_as_it_was_written(tmp_path: Path) -> None:
    out = train(slices(), protocol(), tmp_path / "prior.safetensors", report=silent)
    prior = load_prior(out)
    stored, average = tensors(out), tensors(out.with_suffix(".checkpoint.safetensors"))
    for name, weight in prior.denoiser.named_parameters():
        assert stored[name].dtype == torch.float16
        assert torch.equal(weight, stored[name].float())
        assert torch.equal(stored[name], average[f"average/{name}"].half())
        assert not weight.requires_grad
    for key in ("network", "sigma_data", "sigma_min", "sigma_max", "scaling", "protocol", "data", "steps"):
        assert key in prior.metadata
    settings = protocol()
    assert prior.metadata["format"] == "mrgen-prior-1"
    assert prior.metadata["objective"] == "gsure-fourier"
    assert prior.metadata["steps_done"] == 12
    assert prior.metadata["matrix"] == list(slices().shapes[0])
    assert "Not for diagnostic use" in prior.metadata["notice"]
    assert Protocol(**prior.metadata["protocol"]) == settings
    assert (prior.sigma_min, prior.sigma_max) == (settings.training.sigma_min, settings.training.sigma_max)
    x_t, sigma = torch.randn(2, 9, 14, dtype=torch.complex64), torch.tensor([0.1, 2.0])
    again = load_prior(out)
    assert torch.equal(prior(x_t, sigma), again(x_t, sigma))
    assert prior.sha256 == again.sha256


@pytest.mark.parametrize("basis", ["fourier", "sense"])
@pytest.mark.parametrize("objective", ["ambient-tweedie", "ambient"])
def test_the_other_objectives_train_and_are_named(tmp_path: Path, objective: str, basis: str) -> None:
    settings = protocol(objective=objective, basis=basis, steps=2)
    prior = load_prior(train(slices(), settings, tmp_path / "prior.safetensors", report=silent))
    assert prior.metadata["objective"] == f"{objective}-{basis}"


def test_files_that_are_no_prior_are_refused(tmp_path: Path) -> None:
    good = train(slices(), protocol(), tmp_path / "prior.safetensors", report=silent)
    weights, metadata = read_safetensors(good)
    bad = tmp_path / "bad.safetensors"

    def refused(match: str, path: Path = bad) -> None:
        with pytest.raises(MrgenError, match=match) as caught:
            load_prior(path)
        assert path.name in str(caught.value)

    refused("no such file", tmp_path / "missing.safetensors")
    refused("no such file", tmp_path)
    for content in (b"", b"garbage " * 100, good.read_bytes()[:5000]):
        bad.write_bytes(content)
        refused("not a file that mrgen wrote")
    torch.save(weights, bad)  # a pickle: it must not be opened as one
    refused("not a file that mrgen wrote")
    save_file(weights, bad)
    refused("not a file that mrgen wrote")
    save_file(weights, bad, {"mrgen": "{not json"})
    refused("not a file that mrgen wrote")
    refused("is not a prior", good.with_suffix(".checkpoint.safetensors"))
    save_prior(bad, weights, {k: v for k, v in metadata.items() if k not in ("network", "format")})
    refused("do not belong together")
    save_prior(bad, weights, metadata | {"network": {"widths": [64], "blocks": 1, "patch": 2}})
    refused("do not belong together")
    save_prior(bad, weights, metadata | {"network": {"width": [64]}})
    refused("do not belong together")


@pytest.mark.parametrize("metadata", [[], {"sigma_data": "much"}, {"network": None}])
def test_metadata_of_another_kind_is_refused(tmp_path: Path, metadata: object) -> None:
    good = train(slices(), protocol(steps=1), tmp_path / "prior.safetensors", report=silent)
    weights, known = read_safetensors(good)
    changed = known | metadata if isinstance(metadata, dict) else metadata
    save_file(weights, good, {"mrgen": json.dumps(changed)})
    with pytest.raises(MrgenError, match="do not belong together"):
        load_prior(good)


def test_interrupted_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    write_safetensors(path, {"a": torch.ones(3)}, {"n": 1})

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mrgen.prior.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, {"a": torch.zeros(3)}, {"n": 2})
    assert read_safetensors(path)[1] == {"n": 1}


def test_noise_levels_are_stratified_in_range_and_have_their_median() -> None:
    g = torch.Generator().manual_seed(0)
    wide = Training(sigma_min=1e-9, sigma_max=1e9)
    draws = torch.stack([draw_sigma(torch.zeros(16), wide, g) for _ in range(1000)])
    z = (draws / wide.sigma_median).log() / wide.sigma_spread
    quantile = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    stratum = torch.arange(16)
    assert ((quantile > stratum / 16 - 1e-4) & (quantile < (stratum + 1) / 16 + 1e-4)).all()
    within = (quantile * 16 - stratum).clamp(0, 1)
    torch.testing.assert_close(within.mean(0), torch.full((16,), 0.5), rtol=0, atol=0.04)  # 4 standard errors
    single = torch.cat([draw_sigma(torch.zeros(1), wide, g) for _ in range(6_000)]).log()
    # standard errors: 1.25 * 1.5 / sqrt(6000) = 0.024 of the median, 0.9 % of the spread
    assert float(single.median()) == pytest.approx(math.log(wide.sigma_median), abs=0.05)
    assert float(single.std()) == pytest.approx(wide.sigma_spread, rel=0.02)
    narrow = Training(sigma_min=0.1, sigma_max=0.5)
    clipped = draw_sigma(torch.zeros(1000), narrow, g)
    assert (float(clipped.min()), float(clipped.max())) == (pytest.approx(0.1), pytest.approx(0.5))


def test_noise_levels_follow_the_law_truncated_at_the_floor_of_each_item() -> None:
    wide, floors = Training(sigma_min=1e-9, sigma_max=1e9), torch.tensor([0.0, 0.02, 0.2, 3.0])
    g = torch.Generator().manual_seed(0)
    draws = torch.stack([draw_sigma(floor.expand(4), wide, g) for _ in range(2000) for floor in floors])
    for number, floor in enumerate(floors.tolist()):
        levels = draws[number::4].flatten().double().numpy()
        law = lognorm(wide.sigma_spread, scale=wide.sigma_median)
        below = law.cdf(floor)
        assert levels.min() >= floor
        assert kstest(levels, lambda s, law=law, below=below: (law.cdf(s) - below) / (1 - below)).pvalue > 1e-3
    mixed = torch.stack([draw_sigma(floors, wide, g) for _ in range(500)])
    assert (mixed >= floors).all()
    high = draw_sigma(torch.full((8,), 1e4), wide, g)  # beyond what single precision tells from certainty
    assert (high >= 1e4).all()


def test_without_floors_the_training_is_as_if_there_were_none(tmp_path: Path) -> None:
    images, settings = [image(i) for i in range(5)], protocol(objective="supervised")
    data = TrainingSet.from_images(images, "clean")
    plain = train(data, settings, tmp_path / "plain.safetensors", report=silent)
    zero = replace(data, floors=torch.zeros(5))
    assert_same(plain, train(zero, settings, tmp_path / "zero.safetensors", report=silent))
    gated = train(replace(data, floors=torch.ones(5)), settings, tmp_path / "gated.safetensors", report=silent)
    with pytest.raises(AssertionError):
        assert_same(plain, gated)


def test_learning_rate_warms_up_holds_and_decays_to_zero() -> None:
    settings = Training(learning_rate=1e-3, warmup=10, decay=0.3)
    rates = [learning_rate(step, 100, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([1e-4 * (k + 1) for k in range(10)])
    assert rates[9:71] == pytest.approx([1e-3] * 62)
    assert rates[85] == pytest.approx(5e-4)
    assert all(a > b for a, b in itertools.pairwise(rates[70:]))
    assert rates[100] == 0
    flat = Training(learning_rate=1e-3, warmup=0, decay=0)
    assert [learning_rate(step, 100, flat) for step in range(100)] == pytest.approx([1e-3] * 100)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.25])
def test_the_average_has_its_width_and_the_weights_of_its_formula(width: float) -> None:
    gamma, steps = average_exponent(width), 4000
    profile = torch.zeros(steps, dtype=torch.float64)  # of each update's weights in the average
    for t in range(1, steps + 1):
        keep = (1 - 1 / t) ** (gamma + 1)
        profile *= keep
        profile[t - 1] = 1 - keep
    time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    mean = (profile * time).sum()
    assert float((profile * (time - mean) ** 2).sum().sqrt()) == pytest.approx(width, rel=5e-3)
    torch.testing.assert_close(profile[-1500:], (time**gamma / (time**gamma).sum())[-1500:], rtol=0.03, atol=0)


def test_the_saved_average_is_that_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "REPORT_SECONDS", -1.0)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    seen: list[dict[str, Tensor]] = []

    def keep(path: Path, identity: object, step: int, parameters: dict[str, Tensor], *_: object) -> None:
        seen.append({k: v.detach().clone() for k, v in parameters.items()})
        assert len(seen) == step

    monkeypatch.setattr(loop, "save_checkpoint", keep)
    out = train(slices(), protocol(ema=0.1), tmp_path / "prior.safetensors", report=silent)
    average, exponent = seen[0], average_exponent(0.1) + 1
    for t, weights in enumerate(seen[1:], start=2):
        share = (1 - 1 / t) ** exponent
        average = {k: share * v + (1 - share) * weights[k] for k, v in average.items()}
    for key, value in tensors(out).items():
        torch.testing.assert_close(value.float(), average[key], rtol=1e-3, atol=1e-6)


def test_any_pose_is_unitary_and_inverts_itself() -> None:
    x = torch.randn(12, 3, 4, dtype=torch.complex64)
    basis = torch.eye(12, dtype=torch.complex64).reshape(12, 3, 4)
    poses, angles = set(), []
    for seed in range(60):
        seen: list[Tensor] = []

        def spy(u: Tensor, sigma: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(u)
            return u

        posed = any_pose(spy, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(posed(x, torch.ones(12)), x)
        posed(basis, torch.ones(12))
        unitary = seen[-1].flatten(1)
        # T T^H = I: the covariance of white noise is that of white noise
        torch.testing.assert_close(unitary @ unitary.mH, torch.eye(12) + 0j)
        torch.testing.assert_close(unitary.abs().sum(0), torch.ones(12))  # and T only moves pixels
        poses.add((seen[-1].shape[-2:], tuple(unitary.abs().argmax(1).tolist())))
        angles.append(float(unitary.sum(0)[0].angle()))
        assert seen[-1].shape[-2:] in ((3, 4), (4, 3))
    assert len(poses) == 8  # the symmetries of the square
    assert min(angles) < -2
    assert max(angles) > 2


@pytest.fixture(scope="module")
def without_sheets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(slices(), protocol(steps=50), tmp_path_factory.mktemp("plain") / "b.safetensors", report=silent)


@pytest.mark.parametrize(("least", "sheets"), [(0, 20), (10, 5), (1000, 1)])
def test_sheets_are_drawn_from_the_averaged_weights_and_change_nothing(
    tmp_path: Path, without_sheets: Path, clock: None, monkeypatch: pytest.MonkeyPatch, least: int, sheets: int
) -> None:
    monkeypatch.setattr(loop, "SHEET_SECONDS", least)
    drawn: list[dict[str, Tensor]] = []

    def sheet(denoise: object, path: Path) -> None:
        assert path == tmp_path / "a.samples.png"
        assert not torch.is_grad_enabled()
        drawn.append({k: v.clone() for k, v in denoise.state_dict().items()})  # type: ignore[attr-defined]

    one = train(slices(), protocol(steps=50), tmp_path / "a.safetensors", report=silent, sheet=sheet)
    assert_same(one, without_sheets)
    assert len(drawn) == sheets
    average = tensors(one.with_suffix(".checkpoint.safetensors"))
    assert all(torch.equal(v, average[f"average/{k}"]) for k, v in drawn[-1].items())
