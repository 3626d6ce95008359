"""EM on a linear-Gaussian toy, where both steps are exact; its files, its stop, its M-step, and the command."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from mrgen.cli import app
from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import Fourier
from mrgen.posterior.baselines import zero_filled
from mrgen.posterior.reconstruct import conditional_samples, posterior_samples
from mrgen.prior.cache import CachedScan
from mrgen.prior.data import TrainingSet
from mrgen.prior.em import (
    Case,
    Run,
    Steps,
    expectation_maximisation,
    held_out,
    measured_again,
    quietest,
    read_samples,
)
from mrgen.prior.files import Prior, load_prior, read_safetensors, save_gaussian, save_prior, write_safetensors
from mrgen.prior.gaussian import Gaussian
from mrgen.prior.heldout import mean_score, outside_centre, score, withhold
from mrgen.prior.mstep import SampleFiles, from_samples, learn_from_samples, noise_floors
from mrgen.prior.objectives import CleanBatch
from mrgen.prior.spectrum import BINS
from mrgen.scans.scan import Slice
from mrgen.settings import EM, Protocol, Recipe, Training, load

SHAPE = (2, 6)
N = 12
SIGMA0 = 0.1
F = Fourier(SHAPE).dense().to(torch.complex128)  # with one uniform coil, A is some of its rows


def silent(text: str) -> None:
    del text


def white(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def covariance() -> Tensor:
    """C (12, 12), eigenvalues from 1 to 0.02 along directions of no symmetry."""
    basis, _ = torch.linalg.qr(white(torch.Generator().manual_seed(3), N, N))
    return basis @ torch.diag(torch.logspace(0, -1.7, N, dtype=torch.float64) + 0j) @ basis.mH


def root(c: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(c)
    return vectors * values.clamp_min(0).sqrt()


def image(c: Tensor, number: int) -> Tensor:
    return (root(c) @ white(torch.Generator().manual_seed(number), N)).reshape(SHAPE)


def toy(c: Tensor, count: int, sigma0: float = SIGMA0, lines: Tensor | None = None) -> list[Case]:
    """Slices of x ~ CN(0, C) seen by one uniform coil at random lines, or at `lines`, 12 dimensions."""
    cases = []
    for number in range(count):
        g = torch.Generator().manual_seed(10_000 + number)
        mask = (torch.rand(SHAPE[1], generator=g) < 0.7).double() if lines is None else lines
        y = mask * (fft2c(image(c, number)) + sigma0 * white(g, *SHAPE))
        maps = torch.ones(1, *SHAPE, dtype=torch.complex128)
        slice_ = Slice(y.unsqueeze(0), mask, maps, sigma0, 1.0, None)
        cases.append(Case(f"toy{number:03d}", mask, lambda slice_=slice_: slice_))  # type: ignore[misc]
    return cases


def load_covariance(path: Path) -> Tensor:
    return torch.view_as_complex(read_safetensors(path)[0]["covariance"])


def save(path: Path, c: Tensor) -> Path:
    write_safetensors(path, {"covariance": torch.view_as_real(c)}, {})
    return path


def draw(slice_: Slice, c: Tensor, generator: torch.Generator, n: int) -> Tensor:
    """Exact posterior samples (n, y, x): x' + K (y - A x' - z') for x' ~ CN(0, C), z' ~ CN(0, sigma0^2)."""
    a = F[slice_.mask.bool().expand(SHAPE).flatten()]
    y = slice_.kspace[0][..., slice_.mask.bool()].flatten()
    gain = c @ a.mH @ torch.linalg.inv(a @ c @ a.mH + slice_.sigma0**2 * torch.eye(len(a)))
    x = root(c) @ white(generator, N, n)
    return (x + gain @ (y[:, None] - a @ x - slice_.sigma0 * white(generator, len(a), n))).T.reshape(n, *SHAPE)


def maximise(files: list[Path], before: Path, target: Path) -> None:
    """The best linear denoiser of the samples: that of their covariance."""
    x = torch.cat([read_samples(file) for file in files]).reshape(-1, N).to(torch.complex128)
    save(target, x.T @ x.conj() / len(x))


def steps() -> Steps[Tensor]:
    return Steps(load_covariance, draw, maximise)


def run_in(folder: Path, cases: list[Case], start: Tensor, **settings: Any) -> Run:
    first = save(folder / "start.safetensors", start)
    return Run(
        cases, first, folder / "work", EM(**{"samples": 4, "held_out": 0.3, "held_out_slices": 40} | settings), {}
    )


def test_em_recovers_the_covariance(tmp_path: Path) -> None:
    """From white, error 1.9, to 0.30 in 6 rounds, where the sample covariance of the clean images has 0.19."""
    c, count = covariance(), 160
    run = run_in(tmp_path, toy(c, count), torch.eye(N, dtype=torch.complex128), held_out_slices=80)
    log = expectation_maximisation(run, steps(), 6, tmp_path / "out.safetensors", silent)
    clean = torch.stack([image(c, number).flatten() for number in range(count)])

    def error(found: Tensor) -> float:
        return float((found - c).norm() / c.norm())

    oracle, found = error(clean.T @ clean.conj() / count), error(load_covariance(tmp_path / "out.safetensors"))
    assert error(torch.eye(N) + 0j) > 1.5
    assert found < 0.33
    assert found < 2 * oracle
    gains = [(row["gain"], row["gain_error"]) for row in log[1:]]
    assert all(gain > -2 * deviation for gain, deviation in gains)
    assert gains[0][0] > 5 * gains[0][1]
    assert log[-1]["data_fit"] == pytest.approx(1, abs=0.1)
    assert abs(log[-1]["noise_kept"]) < 4 < 16 < log[0]["noise_kept"]


def law(rounds: int, p: float, s2: float, power: float, eta: float = 1, w: float = 0, plain: float = 0) -> list[float]:
    """P of rounds 0, 1, ... in a fully measured direction where E|y|^2 = `power`.

    A share `plain` of the scans, those that lines are withheld of, is drawn without extrapolation by `w`.
    """
    found = [p]

    def step(q: float) -> float:
        return q * s2 / (q + s2) + (q / (q + s2)) ** 2 * power

    for number in range(1, rounds + 1):
        ahead = p + w * (p - found[-2]) if number > 2 else p
        p += eta * (plain * step(p) + (1 - plain) * step(ahead) - p)
        found.append(p)
    return found


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_noise_that_a_prior_believes_in_goes_only_slowly(tmp_path: Path, w: float) -> None:
    """P' = P + (P / (P + s^2))^2 (C - P) with C = 0 where all is measured; P' = P where nothing is."""
    lines = torch.tensor([1.0, 0, 1, 1, 1, 1]).double()  # line 0 is withheld now and then
    cases = toy(torch.zeros(N, N, dtype=torch.complex128), 60, sigma0=1.0, lines=lines)
    run = run_in(tmp_path, cases, torch.eye(N, dtype=torch.complex128), samples=8, held_out_slices=4, extrapolation=w)

    def diagonal(files: list[Path], before: Path, target: Path) -> None:  # of the priors that are stationary
        x = torch.cat([read_samples(file) for file in files]).to(torch.complex128)
        save(target, F.mH @ torch.diag(fft2c(x).abs().square().mean(0).flatten() + 0j) @ F)

    def extrapolate(c: Tensor, before: Tensor, w: float) -> Tensor:
        return c + w * (c - before)

    steps = Steps(load_covariance, draw, diagonal, extrapolate=extrapolate)
    log = expectation_maximisation(run, steps, 6, tmp_path / "out.safetensors", silent)
    assert len(log) == 7
    spectra = [(F @ load_covariance(run.prior(r)) @ F.mH).diagonal().real.reshape(SHAPE).mean(0) for r in range(1, 7)]
    power = sum(float(case.read().kspace[..., 2:].abs().square().mean()) for case in cases) / len(cases)
    assert [float(p[2:].mean()) for p in spectra] == pytest.approx(law(6, 1, 1, power, w=w, plain=4 / 60)[1:], rel=0.06)
    assert float(spectra[5][1]) == pytest.approx(1, rel=0.3)
    far = law(1000, 1, 1, 1)
    assert far[1000] == pytest.approx((2 * 1000) ** -0.5, rel=0.05)


def test_samples_are_scored_as_drawn_and_learned_from_where_they_go(tmp_path: Path) -> None:
    """Where all is measured and x + n = y, the flow's end has P' = P s^2 / (P + s^2): s^2 / rounds."""
    lines = torch.tensor([1.0, 0, 1, 1, 1, 1]).double()  # line 0 is withheld now and then
    cases = toy(torch.zeros(N, N, dtype=torch.complex128), 60, sigma0=1.0, lines=lines)
    run = run_in(tmp_path, cases, torch.eye(N, dtype=torch.complex128), samples=8, held_out_slices=4)

    def white_noise(files: list[Path], before: Path, target: Path) -> None:  # of the power that the lines 2 to 5 have
        x = torch.cat([read_samples(file) for file in files]).to(torch.complex128)
        save(target, fft2c(x)[..., 2:].abs().square().mean() * torch.eye(N, dtype=torch.complex128))

    def transport(slice_: Slice, samples: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        p = c[0, 0].real
        return (p / (p + 1)).sqrt() * ifft2c(slice_.kspace).expand_as(samples)

    plain = Steps(load_covariance, draw, white_noise)
    log = expectation_maximisation(run, replace(plain, transport=transport), 5, tmp_path / "out.safetensors", silent)
    power = sum(float(case.read().kspace[..., 2:].abs().square().mean()) for case in cases) / len(cases)
    expected = [1.0]
    for _ in range(5):
        expected.append(power * expected[-1] / (expected[-1] + 1))
    found = [float(load_covariance(run.prior(r))[0, 0].real) for r in range(6)]
    assert found == pytest.approx(expected, rel=0.05)
    other = replace(run, work=tmp_path / "plain")
    assert expectation_maximisation(other, plain, 0, tmp_path / "out2.safetensors", silent) == log[:1]


def test_over_relaxation_saves_almost_half_of_the_rounds() -> None:
    def rounds(eta: float) -> int:
        return next(n for n, p in enumerate(law(1000, 1, 1, 1, eta)) if p < 0.1)

    assert rounds(1.9) <= 0.56 * rounds(1)
    assert min(law(1000, 1, 1, 1, 1.9)) > 0


@pytest.mark.parametrize("eta", [1.0, 1.7])
def test_the_relaxed_target_is_eta_steps_from_the_old_denoiser(eta: float) -> None:
    """The best gain is g_old + eta (g_EM - g_old), with g = C / (C + sigma^2)."""
    x = white(torch.Generator().manual_seed(1), 4000, 4, 4)
    sigma, old = 0.8, 0.3

    def risk(gain: float) -> float:
        objective = from_samples(lambda x_t, _: old * x_t, eta)
        g = torch.Generator().manual_seed(2)
        levels = torch.full((len(x),), sigma, dtype=torch.float64)
        return float(objective(lambda x_t, _: gain * x_t, CleanBatch(x), levels, g, Training()).mean())

    low, middle, high = risk(0), risk(1), risk(2)  # a parabola
    best = (low - middle) / (low - 2 * middle + high) + 0.5
    assert best == pytest.approx(old + eta * (1 / (1 + sigma**2) - old), abs=0.01)


def test_what_is_outside_the_centre() -> None:
    mask = torch.tensor([1.0, 0, 1, 1, 1, 0, 0, 1])  # the centre is line 4
    assert outside_centre(mask).tolist() == [0, 7]
    assert outside_centre(torch.ones(6)).tolist() == []
    assert outside_centre(torch.tensor([1.0, 0, 1, 0, 1, 1, 1])).tolist() == [0, 2, 4, 5, 6]


def test_the_score_of_the_right_prior_is_that_of_the_closed_form() -> None:
    """Withheld numbers are CN(A_w m, diag(A_w C A_w^H) + sigma0^2), and a wrong prior predicts them worse."""
    c, found = covariance(), {}
    wrong = torch.eye(N, dtype=torch.complex128) * c.diagonal().real.mean()
    for name, prior in {"right": c, "wrong": wrong}.items():
        scores, exact = [], []
        for case in toy(c, 60):
            if not len(outside_centre(case.mask)):
                continue
            whole, g = case.read(), torch.Generator().manual_seed(1)
            given, withheld = withhold(whole, 0.3, g)
            scores.append(score(whole, withheld, draw(given, prior, g, 400)))
            a = F[given.mask.bool().expand(SHAPE).flatten()]
            gain = prior @ a.mH @ torch.linalg.inv(a @ prior @ a.mH + SIGMA0**2 * torch.eye(len(a)))
            rest = F[withheld.bool().expand(SHAPE).flatten()]
            mean = rest @ gain @ given.kspace[..., given.mask.bool()].flatten()
            v = (rest @ (prior - gain @ a @ prior) @ rest.mH).diagonal().real + SIGMA0**2
            error = (whole.kspace[..., withheld.bool()].flatten() - mean).abs().square()
            exact.append(float((-error / v - (torch.pi * v).log()).mean()))
        found[name] = mean_score(scores)
        assert found[name].log_likelihood == pytest.approx(sum(exact) / len(exact), abs=0.03)
    assert found["right"].log_likelihood > found["wrong"].log_likelihood + 0.3
    assert found["right"].data_fit == pytest.approx(1, abs=0.1)
    assert found["right"].nrmse < found["wrong"].nrmse


def test_the_score_in_numbers() -> None:
    """Two coils, lines 1 and 4 of 6 withheld, 3 samples: every term written out."""
    g = torch.Generator().manual_seed(5)
    maps = white(g, 2, *SHAPE)
    y, x = white(g, 2, *SHAPE), white(g, 3, *SHAPE)
    withheld = torch.tensor([0.0, 1, 0, 0, 1, 0])
    found = score(Slice(y, torch.ones(6), maps, 0.5, 1.0, None), withheld, x)
    k = [[fft2c(coil * image) for coil in maps] for image in x]
    terms, errors, powers, residuals = [], [], [], []
    for coil, row, line in itertools.product(range(2), range(2), range(6)):
        values = [complex(k[n][coil][row, line]) for n in range(3)]
        data = complex(y[coil, row, line])
        if line in (1, 4):
            mean = sum(values) / 3
            v = sum(abs(value - mean) ** 2 for value in values) / 2 * (4 / 3) + 0.25
            terms.append(-(abs(data - mean) ** 2) / v - math.log(math.pi * v))
            errors.append(abs(data - mean) ** 2)
            powers.append(abs(data) ** 2)
        else:
            residuals += [abs(data - value) ** 2 / 0.25 for value in values]
    assert found.log_likelihood == pytest.approx(sum(terms) / len(terms))
    assert found.nrmse == pytest.approx(math.sqrt(sum(errors) / sum(powers)))
    assert found.data_fit == pytest.approx(sum(residuals) / len(residuals))
    high = [(row, line) for row in range(2) for line in range(6) if math.hypot(row - 1, (line - 3) / 3) > 0.5]
    power = sum(abs(complex(k[n][c][i, j])) ** 2 / 3 for n in range(3) for c in range(2) for i, j in high)
    excess = sum(abs(complex(y[c, i, j])) ** 2 - 0.25 for c in range(2) for i, j in high)
    assert found.noise_kept == pytest.approx((power - excess) / len(high) / 0.25)


def test_withheld_lines_are_in_nothing_that_a_sampler_sees() -> None:
    case = next(case for case in toy(covariance(), 20) if len(outside_centre(case.mask)) > 2)
    whole = case.read()
    given, withheld = withhold(whole, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(given.mask + withheld, whole.mask)
    assert withheld.sum() == round(0.5 * len(outside_centre(case.mask)))
    assert not given.kspace[..., withheld.bool()].any()
    assert torch.equal(given.kspace[..., given.mask.bool()], whole.kspace[..., given.mask.bool()])


class Killed(Exception):
    pass


def files_in(work: Path) -> dict[str, bytes]:
    return {str(f.relative_to(work)): f.read_bytes() for f in sorted(work.rglob("*")) if f.is_file()}


def test_a_run_that_is_broken_off_again_and_again_gives_the_same_files(tmp_path: Path) -> None:
    cases, start = toy(covariance(), 12), torch.eye(N, dtype=torch.complex128)
    expectation_maximisation(run_in(tmp_path / "a", cases, start), steps(), 2, tmp_path / "a/out.safetensors", silent)
    calls, deaths = itertools.count(1), 0

    def mortal(call: Callable[..., Any]) -> Callable[..., Any]:
        def until_killed(*arguments: Any) -> Any:
            if next(calls) % 7 == 0:
                raise Killed
            return call(*arguments)

        return until_killed

    weak = Steps(load_covariance, mortal(draw), mortal(maximise))
    for _ in range(50):
        try:
            run = run_in(tmp_path / "b", cases, start)
            expectation_maximisation(run, weak, 2, tmp_path / "b/out.safetensors", silent)
            break
        except Killed:
            deaths += 1
    assert deaths >= 5
    one, two = (files_in(tmp_path / name) for name in "ab")
    assert {name for name in two if not name.endswith(".lock")} == set(one)
    assert all(one[name] == two[name] for name in one)
    assert "work/log.json" in one
    assert "work/round-02/prior.safetensors" in one


def test_processes_that_share_a_folder_share_the_work(tmp_path: Path) -> None:
    cases, start = toy(covariance(), 12), torch.eye(N, dtype=torch.complex128)
    alone = run_in(tmp_path / "a", cases, start)
    log = expectation_maximisation(alone, steps(), 1, tmp_path / "a/out.safetensors", silent)
    done, learned, logs = [], [], []

    def sample(slice_: Slice, c: Tensor, generator: torch.Generator, n: int) -> Tensor:
        done.append(generator.initial_seed())
        time.sleep(0.005)
        return draw(slice_, c, generator, n)

    def learn(*arguments: Any) -> None:
        learned.append(arguments)
        maximise(*arguments)

    run = run_in(tmp_path / "b", cases, start, held_out_samples=4)

    def work(number: int) -> None:
        out = tmp_path / f"b/out{number}.safetensors"
        logs.append(expectation_maximisation(run, Steps(load_covariance, sample, learn), 1, out, silent))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = len({file.stem for file in (run.folder(2) / "samples").glob("*.safetensors")})
    assert len(done) == 12 + held
    assert len(set(done)) == 12  # noise of their own, but for those held out the same in each round
    assert len(learned) == 1
    assert logs[0] == logs[1] == logs[2]
    assert [row["round"] for row in log] == [row["round"] for row in logs[0]]


def test_slices_sampled_together_give_the_files_that_they_give_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 samples at once: four of each of twelve slices, some already there, and eight where lines are withheld."""
    monkeypatch.setattr("mrgen.prior.em.SEVERAL", 20)
    cases, start, groups = toy(covariance(), 12), torch.eye(N, dtype=torch.complex128), []

    def several(slices: list[Slice], c: Tensor, generators: list[torch.Generator], n: int) -> list[Tensor]:
        groups.append((len(slices), n))
        return [draw(slice_, c, g, n) for slice_, g in zip(slices, generators, strict=True)]

    runs = [run_in(tmp_path / name, cases, start, held_out_slices=4) for name in "ab"]
    expectation_maximisation(runs[0], steps(), 1, tmp_path / "a/out.safetensors", silent)
    free = [case for case in cases if case.name not in {held.name for held in held_out(runs[1])}]
    there = runs[1].samples(1, free[0])
    there.parent.mkdir(parents=True)
    there.write_bytes(runs[0].samples(1, free[0]).read_bytes())
    together = replace(steps(), several=several)
    expectation_maximisation(runs[1], together, 1, tmp_path / "b/out.safetensors", silent)
    withheld = 2 * [(2, 8)]  # scored before the round, and after it
    assert groups[:2] == groups[-2:] == withheld
    assert sum(size for size, _ in groups[2:-2]) == 12 - 4 - 1
    assert [n for _, n in groups[2:-2]] == 3 * [4]
    one, two = (files_in(tmp_path / name) for name in "ab")
    assert all(one[name] == two[name] for name in one)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    cases, start = toy(covariance(), 6), torch.eye(N, dtype=torch.complex128)
    expectation_maximisation(run_in(tmp_path, cases, start), steps(), 1, tmp_path / "out.safetensors", silent)
    with pytest.raises(MrgenError, match=r"another run \(other settings\)"):
        expectation_maximisation(
            run_in(tmp_path, cases, start, samples=3), steps(), 1, tmp_path / "out.safetensors", silent
        )
    with pytest.raises(MrgenError, match=r"another run \(other start\)"):
        expectation_maximisation(run_in(tmp_path, cases, 2 * start), steps(), 1, tmp_path / "out.safetensors", silent)


def test_a_round_that_betters_nothing_ends_it_and_the_best_prior_is_kept(tmp_path: Path) -> None:
    cases, start = toy(covariance(), 30), torch.eye(N, dtype=torch.complex128)

    def spoil(files: list[Path], before: Path, target: Path) -> None:
        if before.name == "start.safetensors":
            maximise(files, before, target)
        else:
            save(target, 100 * start)

    run, said = run_in(tmp_path, cases, start), []
    log = expectation_maximisation(
        run, Steps(load_covariance, draw, spoil), 9, tmp_path / "out.safetensors", said.append
    )
    assert [row["round"] for row in log] == [0, 1, 2]
    assert log[2]["gain"] < -log[2]["gain_error"]
    assert torch.equal(load_covariance(tmp_path / "out.safetensors"), load_covariance(run.prior(1)))
    assert json.loads((run.work / "log.json").read_text()) == log
    assert "no more rounds" in said[-2]


PROTOCOL = """
description = "the smallest"
anatomy = "phantom"
[sampling]
acceleration = [2.0]
center_fraction = 0.3
[network]
widths = [16]
blocks = 1
[training]
objective = "gsure"
basis = "fourier"
steps = 6
batch = 2
warmup = 1
[em]
samples = 1
recipe = "{recipe}"
updates = 3
relaxation = {relaxation}
held_out_slices = 2
held_out_samples = 3
"""

RECIPE = 'description = "quick"\nsteps = 2\ncg_iterations = 3\n'


@pytest.fixture
def command(tmp_path: Path, write_scan: Callable[..., Path], phantom: Callable[..., Tensor]) -> Callable[..., Any]:
    """mrgen em on two scans of two slices, with the protocol's relaxation and more arguments."""
    (tmp_path / "scans").mkdir()
    for number in range(2):
        write_scan(f"scans/s{number}.h5", kspace=phantom(slices=2, coils=4, shape=(48, 48)))
    (tmp_path / "quick.toml").write_text(RECIPE)

    def call(*arguments: object, relaxation: float = 1.0) -> Any:
        text = PROTOCOL.format(recipe=tmp_path / "quick.toml", relaxation=relaxation)
        (tmp_path / "p.toml").write_text(text)
        options = ["--protocol", tmp_path / "p.toml", "--device", "cpu", *arguments]
        return CliRunner().invoke(app, ["em", *map(str, [tmp_path / "scans", *options])])

    return call


def test_the_command_from_a_gaussian_and_on(tmp_path: Path, command: Callable[..., Any]) -> None:
    """Round 1 learns a network from scratch for all steps, round 2 goes on from it, over-relaxed."""
    out, work = tmp_path / "p.safetensors", tmp_path / "work"
    done = command("--start", "gaussian", "-o", out, "--rounds", 2, "--work", work, relaxation=1.5)
    assert done.exit_code == 0, done.output
    log = json.loads((work / "log.json").read_text())
    assert all(math.isfinite(value) for row in log for value in row.values())
    assert f"log-likelihood {log[1]['log_likelihood']:.4f}" in done.output
    assert sorted(f.name for f in (work / "round-01").iterdir() if f.suffix == ".safetensors") == ["prior.safetensors"]
    samples = sorted((work / "round-01/samples").glob("*.safetensors"))
    assert len(samples) == 4
    scans = {item.file.stem: item for item in map(CachedScan.open, (work / "cache").glob("*.h5"))}
    for file in samples:
        stem, n = file.stem.rsplit("-", 1)
        about = read_safetensors(file)[1]
        assert about["sigma0"] == pytest.approx(scans[stem].sigma0[int(n)])
        lines = round(float(scans[stem].mask[int(n)].sum()))
        assert 48 / about["R"] in (pytest.approx(lines), pytest.approx(lines - 1))  # one withheld of some
    best = max(log, key=lambda row: row["log_likelihood"])["round"]
    kept = work / (f"round-{best:02d}/prior.safetensors" if best else "gaussian.safetensors")
    assert out.read_bytes() == kept.read_bytes()
    assert load_prior(work / "gaussian.safetensors").metadata["matrix"] == [48, 48]
    first = load_prior(work / "round-01/prior.safetensors")
    assert [stage.get("updates") for stage in first.metadata["stages"]] == [None, 6]
    assert first.metadata["objective"] == "em"
    second = tmp_path / "q.safetensors"
    again = command("--start", "gaussian", "-o", second, "--rounds", 2, "--work", work, relaxation=1.5)
    assert again.exit_code == 0
    assert second.read_bytes() == out.read_bytes()


def test_the_m_step_goes_on_from_a_network(tmp_path: Path) -> None:
    settings = Protocol.model_validate(tomllib.loads(PROTOCOL.format(recipe="posterior", relaxation=1.0)))
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, file in enumerate(files):
        sample = 0.3 * torch.randn(2, 16, 12, 2, generator=torch.Generator().manual_seed(number))
        write_safetensors(file, {"image": sample.half()}, {"sigma0": 0.01, "R": 4.0})
    gaussian, one, two = (tmp_path / f"{name}/prior.safetensors" for name in ("zero", "one", "two"))
    save_gaussian(gaussian, Gaussian(torch.ones(BINS)), {"sigma_min": 0.01, "sigma_max": 20, "sigma_data": 0.4})
    said: list[str] = []
    learn_from_samples(files, gaussian, one, settings, device="cpu", report=said.append)
    assert "begins from scratch" in said[0]
    weights, metadata = read_safetensors(one)
    moved = {name: weight + 0.5 for name, weight in weights.items()}  # to a place that no other beginning leads to
    save_prior(one, moved, metadata)
    learn_from_samples(files, one, two, settings, device="cpu", report=said.append)
    assert any("goes on" in text for text in said)
    learned, metadata = read_safetensors(two)
    assert 0 < max(float((learned[name].float() - moved[name].float()).abs().max()) for name in moved) < 0.02
    assert [stage.get("updates") for stage in metadata["stages"]] == [None, 6, 3]
    warmups = [read_safetensors(prior)[1]["protocol"]["training"]["warmup"] for prior in (one, two)]
    assert warmups == [1, 0]  # a tenth of its 3 updates at most
    assert sorted(f.name for f in two.parent.iterdir()) == ["prior.safetensors", "training.csv", "training.png"]


def test_the_gate_counts_the_noise_beyond_that_of_the_cleanest() -> None:
    s = torch.tensor([0.04, 0.01, 0.02, 0.01, 0.05])
    expected = [2 * (0.04**2 - 1e-4) ** 0.5, 0, 2 * (0.02**2 - 1e-4) ** 0.5, 0, 2 * (0.05**2 - 1e-4) ** 0.5]
    assert noise_floors(s, 2.0).tolist() == pytest.approx(expected)
    assert not noise_floors(torch.full((7,), 0.3), 2.0).any()
    assert not noise_floors(s, 0.0).any()
    for count in range(1, 60):
        s = torch.rand(count, generator=torch.Generator().manual_seed(count))
        assert (noise_floors(s, 2.5) == 0).sum() >= 0.15 * count


def test_the_quietest_slices() -> None:
    noise = [0.3, 0.1, 0.2, 0.1, 0.4]
    assert quietest(noise, 1.0) == [0, 1, 2, 3, 4]
    assert quietest(noise, 0.6) == [1, 2, 3]
    assert quietest(noise, 0.2) == [1, 3]  # as both are alike
    assert quietest([1.0], 0.01) == [0]


@pytest.mark.parametrize("condition", [False, True])
def test_samples_are_read_once_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    images = {name: torch.randn(3, 8, 6, 2, generator=g).half() for name in ("image", "condition")}
    write_safetensors(tmp_path / "a.safetensors", images, {})
    whole = [torch.view_as_complex(images[name].float()) for name in images]
    wanted = [torch.stack([x[n] for x in whole]) if condition else whole[0][n] for n in range(2)]
    monkeypatch.setattr("mrgen.prior.mstep.HELD", wanted[0].nbytes)
    samples = SampleFiles([tmp_path / "a.safetensors"], 2, condition)
    assert all(torch.equal(a, b) for a, b in zip(samples, wanted, strict=True))
    (tmp_path / "a.safetensors").unlink()
    assert torch.equal(samples[0], wanted[0])
    with pytest.raises(MrgenError, match="no such file"):
        samples[1]


@pytest.mark.parametrize("condition", [False, True])
def test_the_m_step_learns_low_levels_from_the_cleanest_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: bool
) -> None:
    """Scans differ in sigma0 or in R; what a conditional network learns from is not gated."""
    given: list[TrainingSet] = []

    def stop(data: TrainingSet, *_: Any, **__: Any) -> None:
        given.append(data)
        raise Killed

    monkeypatch.setattr("mrgen.prior.mstep.train", stop)
    settings = Protocol.model_validate(tomllib.loads(PROTOCOL.format(recipe="posterior", relaxation=1.0)))
    settings = settings.model_copy(
        update={
            "network": settings.network.model_copy(update={"condition": condition}),
            "em": settings.em.model_copy(update={"samples": 2}),
        }
    )
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for file, sigma0, r in zip(files, (0.01, 0.03, 0.01), (1.0, 1.0, 4.0), strict=True):
        write_safetensors(file, {"image": torch.zeros(2, 16, 12, 2).half()}, {"sigma0": sigma0, "R": r})
    start = tmp_path / "gaussian.safetensors"
    save_gaussian(start, Gaussian(torch.ones(BINS)), {"sigma_min": 0.01, "sigma_max": 20, "sigma_data": 0.4})
    with pytest.raises(Killed):
        learn_from_samples(files, start, tmp_path / "prior.safetensors", settings, device="cpu", report=silent)
    assert given[0].floors is not None
    noisy, faster = 2.5 * (0.03**2 - 0.01**2) ** 0.5, 2.5 * (4 * 0.01**2 - 0.01**2) ** 0.5
    expected = [0.0] * 6 if condition else [0, 0, noisy, noisy, faster, faster]
    assert given[0].floors.tolist() == pytest.approx(expected)


def test_diffem_from_the_command(tmp_path: Path, command: Callable[..., Any]) -> None:
    """Rounds of conditional networks, and in the end a prior, unless it is worse than the one to begin with."""
    out, work = tmp_path / "p.safetensors", tmp_path / "work"
    done = command("--start", "gaussian", "-o", out, "--rounds", 1, "--work", work, "--diffem")
    assert done.exit_code == 0, done.output
    learned = load_prior(work / "round-01/prior.safetensors")
    assert learned.conditional
    log = json.loads((work / "log.json").read_text())
    assert [row["round"] for row in log] == [0, 1, "final"]
    assert "gain" not in log[1]  # another kind of samples than those before
    assert log[2]["gain"] == pytest.approx(log[2]["log_likelihood"] - log[0]["log_likelihood"], abs=1e-5)
    better = log[2]["gain"] > 0
    kept = work / ("final/prior.safetensors" if better else "gaussian.safetensors")
    assert out.read_bytes() == kept.read_bytes()
    assert not load_prior(out).conditional
    slice_ = next(iter(toy(covariance(), 1))).read()
    with pytest.raises(MrgenError, match="take the final one"):
        posterior_samples(slice_, learned, load(Recipe, "posterior"), torch.Generator())
    refused = command("--start", "gaussian", "-o", out, "--rounds", 1, "--work", work)
    assert "other protocol" in str(refused.exception)


def test_a_conditional_round_ends_in_an_unconditional_prior(tmp_path: Path) -> None:
    """On the toy, where a conditional "prior" is the covariance too: `finish` learns from samples of the best one."""
    cases, start, finished = toy(covariance(), 30), torch.eye(N, dtype=torch.complex128), []

    def finish(files: list[Path], before: Path, target: Path) -> None:
        finished.append((len(files), files[0].parents[1].name, before.name))
        maximise(files, before, target)

    again = measured_again(cases[0].read(), image(covariance(), 0), torch.Generator())
    assert not again.kspace[..., ~cases[0].mask.bool()].any()
    diffem = Steps(load_covariance, draw, maximise, zero_filled, finish)
    run = run_in(tmp_path, cases, start)
    log = expectation_maximisation(run, diffem, 1, tmp_path / "out.safetensors", silent)
    assert finished == [(30, "round-02", "start.safetensors")]
    assert log[-1]["round"] == "final"
    assert log[-1]["gain"] > 0
    assert (tmp_path / "out.safetensors").read_bytes() == (run.work / "final/prior.safetensors").read_bytes()
    spoiled = replace(run, work=tmp_path / "spoiled")
    bad = replace(diffem, finish=lambda files, before, target: save(target, 100 * start) and None)
    log = expectation_maximisation(spoiled, bad, 1, tmp_path / "bad.safetensors", silent)
    assert log[-1]["gain"] < 0
    assert (tmp_path / "bad.safetensors").read_bytes() == run.start.read_bytes()
    held = {case.name for case in held_out(run)}
    noise = []
    for case in [case for case in cases if case.name not in held]:
        x, u = (fft2c(read_samples(run.samples(1, case), name)) for name in ("image", "condition"))
        noise.append((u - x)[..., case.mask.bool()].flatten())  # of y', at the sampled points
        assert not (u[..., ~case.mask.bool()].abs() > 1e-2).any()
    assert float(torch.cat(noise).abs().square().mean()) == pytest.approx(SIGMA0**2, rel=0.1)


def test_samples_of_an_exact_conditional_denoiser_have_its_mean_and_spread() -> None:
    """x ~ CN(0, 1), u = x + CN(0, t^2): given u, x has the mean u / (1 + t^2) and the variance t^2 / (1 + t^2)."""
    t2, shape, g = 0.25, (24, 20), torch.Generator().manual_seed(2)

    def denoise(pair: Tensor, sigma: Tensor) -> Tensor:
        x_t, u = pair.unbind(1)
        s2 = sigma.reshape(-1, 1, 1).square()
        return (u / t2 + x_t / s2) / (1 + 1 / t2 + 1 / s2)

    prior = Prior(denoise, {"sigma_min": 0.01, "sigma_max": 20.0}, "")
    mask = torch.ones(shape[1])
    slice_ = Slice(torch.zeros(1, *shape) + 0j, mask, torch.ones(1, *shape) + 0j, 0.05, 1.0, None)
    recipe = Recipe(description="", steps=30, samples=200)
    u = torch.randn(shape, dtype=torch.complex64, generator=g) * (1 + t2) ** 0.5
    x = conditional_samples(slice_, prior, recipe, u, g)
    assert float((x.mean(0) - u / (1 + t2)).abs().square().mean()) < 2 * t2 / (1 + t2) / 200
    assert float(x.var(0).mean()) == pytest.approx(t2 / (1 + t2), rel=0.05)


def test_a_conditional_denoiser_learns_from_both_images() -> None:
    """The best linear D(x_t, u) is found by the objective, with u the image plus independent noise."""
    g = torch.Generator().manual_seed(1)
    x = white(g, 4000, 4, 4)
    pairs = torch.stack([x, x + 0.5 * white(g, 4000, 4, 4)], dim=1)
    exact = torch.tensor([1 / 0.64, 4.0]) / (1 + 1 / 0.64 + 4)

    def risk(a: float, b: float) -> float:
        objective = from_samples(None, 1.0, condition=True)
        levels = torch.full((len(x),), 0.8, dtype=torch.float64)
        batch, noise = CleanBatch(pairs), torch.Generator().manual_seed(2)
        return float(objective(lambda p, _: a * p[:, 0] + b * p[:, 1], batch, levels, noise, Training()).mean())

    a, b = exact.tolist()
    least = risk(a, b)
    assert least == pytest.approx(1 / (1 + 1 / 0.64 + 4), rel=0.02)
    assert all(risk(a + d, b + e) > least for d, e in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)))


def test_processes_that_learn_together_wait_for_the_one_that_writes(tmp_path: Path) -> None:
    cases, start = toy(covariance(), 6), torch.eye(N, dtype=torch.complex128)
    run = replace(run_in(tmp_path, cases, start), together=True)
    all_here, found = threading.Barrier(2), []

    def work(rank: int) -> None:
        def learn(files: list[Path], before: Path, target: Path) -> None:
            all_here.wait(20)
            if rank == 0:
                time.sleep(0.3)
                maximise(files, before, target)

        out = tmp_path / f"out{rank}.safetensors"
        expectation_maximisation(run, Steps(load_covariance, draw, learn), 1, out, silent)
        found.append(out.read_bytes())

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
