"""What the jobs of the experiment do: train a prior, better one by EM, evaluate one, evaluate classical methods.

Every figure is that of a magnitude after the best scalar fit to the RSS of the noise-free whitened coil images; its
peak is the reference's maximum. Files of figures hold rows {"R", "person", "sigma0", "psnr" (dB), "ssim"}.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiment.data import Arm, clean_set, measured_set, read, training_scans
from mrgen.posterior.baselines import cg_sense, l1_wavelet, zero_filled
from mrgen.posterior.em import network_steps, several_samples
from mrgen.posterior.reconstruct import posterior_samples
from mrgen.posterior.together import together_applies
from mrgen.prior.cache import CachedScan, alone
from mrgen.prior.data import item_of
from mrgen.prior.em import Case, Run, expectation_maximisation, quietest
from mrgen.prior.files import load_prior, read_safetensors, save_gaussian
from mrgen.prior.gaussian import fit_gaussian
from mrgen.prior.mstep import stages_of
from mrgen.prior.train import train
from mrgen.review.metrics import best_scale, psnr_fit, ssim
from mrgen.scans.scan import Slice
from mrgen.settings import Protocol, Recipe

Rows = list[dict[str, Any]]
CG_LAMBDAS = [0.001 * 4**k for k in range(6)]
L1_LAMBDAS = [0.0003 * 2**k for k in range(8)]
CG_ITERATIONS = 30
TOGETHER = 24  # scans that are evaluated at once on a GPU


def say(text: str) -> None:
    print(text, flush=True)


def train_prior(protocol: Protocol, scans: Path, arm: Arm, out: Path, device: str) -> None:
    """Train as the protocol says and write the prior to `out`, which appears when the training is complete."""
    data = clean_set if protocol.training.objective == "supervised" else measured_set
    unfinished = out.parent / "training" / out.name
    train(data(scans, arm, device), protocol, unfinished, device=device, report=say)
    os.replace(unfinished, out)
    write_story(out)
    unfinished.with_suffix(".checkpoint.safetensors").unlink()


def better_prior(
    protocol: Protocol,
    scans: Path,
    arm: Arm,
    start: Path | None,
    rounds: int,
    diffem: bool,
    out: Path,
    device: str,
) -> None:
    """EM, or DiffEM, from the prior `start`, or from a Gaussian fitted to the scans."""
    folder, stored = out.parent / "rounds" / out.stem, training_scans(scans, arm)
    stored = [stored[n] for n in quietest([scan.sigma0[0] for scan in stored], protocol.em.quietest)]  # R is the same
    if start is None:
        start = folder / "gaussian.safetensors"
        with alone(start, -1):
            if not start.exists():
                training = protocol.training
                about = {key: getattr(training, key) for key in ("sigma_min", "sigma_max", "sigma_data")}
                slices = (read(scan, arm) for scan in stored)
                r = arm.scans.acceleration
                save_gaussian(start, fit_gaussian((s, item_of(s, arm.sampling, r).weights) for s in slices), about)
    steps, settings = network_steps(protocol, device, say, diffem)
    cases = [Case(scan.file.stem, scan.mask[0], partial(read, scan, arm)) for scan in stored]
    run = Run(cases, start, folder, protocol.em, settings, protocol.training.seed, device)
    write_story(out, expectation_maximisation(run, steps, rounds, out, say))


def write_story(prior: Path, em_log: list[dict[str, Any]] | None = None) -> None:
    """How a prior came about, in a small file beside it."""
    digest = hashlib.sha256(prior.read_bytes()).hexdigest()
    stages = stages_of(read_safetensors(prior)[1])
    write_json(prior.with_suffix(".json"), {"sha256": digest, "stages": stages, "em_log": em_log})


def figures(image: Tensor, reference: Tensor, slice_: Slice, acceleration: float, person: int) -> dict[str, Any]:
    x, r = image.abs().numpy(force=True), reference.numpy(force=True)
    quality = {"psnr": psnr_fit(x, r), "ssim": ssim(best_scale(x, r) * x, r)}
    return {"R": acceleration, "person": person, "sigma0": slice_.sigma0, **quality}


def undersampled(file: Path, device: str) -> Iterable[tuple[float, Slice, Tensor, int]]:
    """R, slice, reference and person of everything in the test scan `file`, .h5."""
    scan = CachedScan.open(file)
    tensors, about = read_safetensors(file.with_suffix(".safetensors"))
    for n, acceleration in enumerate(scan.acceleration):
        assert acceleration is not None
        yield acceleration, scan.read(n).to(device), tensors["reference"], about["person"]


def write_json(path: Path, content: object) -> None:
    """The file appears as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def evaluate_prior(prior: Path, recipe: Recipe, seed: int, tests: list[Path], outs: list[Path], device: str) -> None:
    """Figures of the mean magnitude of `recipe.samples` samples for each test scan.

    On a GPU several scans are sampled at once, those of like noise together, as sampling ends at the same level.
    """
    loaded = load_prior(prior, device, amp=device != "cpu")
    together = device != "cpu" and together_applies(recipe)
    todo = [(CachedScan.open(file).sigma0[0], file, out) for file, out in zip(tests, outs, strict=True)]
    todo = sorted(case for case in todo if not case[2].exists())
    size = TOGETHER if together else 1
    for group in (todo[i : i + size] for i in range(0, len(todo), size)):
        rows: list[Rows] = [[] for _ in group]
        for cases in zip(*(undersampled(file, device) for _, file, _ in group), strict=True):  # of one R after another
            slices = [case[1] for case in cases]
            generators = [torch.Generator(device).manual_seed(1_000 * seed + int(file.stem)) for _, file, _ in group]
            if together:
                samples = several_samples(slices, loaded, recipe, generators)
            else:
                samples = [posterior_samples(s, loaded, recipe, g) for s, g in zip(slices, generators, strict=True)]
            for row, drawn, (acceleration, slice_, reference, person) in zip(rows, samples, cases, strict=True):
                row.append(figures(drawn.abs().mean(0), reference, slice_, acceleration, person))
        for row, (_, _, out) in zip(rows, group, strict=True):
            write_json(out, row)


def _classical(slice_: Slice, method: str, regularisation: float, iterations: int) -> Tensor:
    if method == "zero-filled":
        return zero_filled(slice_)
    if method == "cg-sense":
        return cg_sense(slice_, regularisation, CG_ITERATIONS)
    return l1_wavelet(slice_, regularisation, iterations)


def tune_classical(file: Path, iterations: int, out: Path) -> None:
    """Figures of every lambda on a scan of a person who is trained on, so not tested on."""
    rows: Rows = []
    for acceleration, slice_, reference, person in undersampled(file, "cpu"):
        for method, lambdas in (("cg-sense", CG_LAMBDAS), ("l1-wavelet", L1_LAMBDAS)):
            for regularisation in lambdas:
                image = _classical(slice_, method, regularisation, iterations)
                row = figures(image, reference, slice_, acceleration, person)
                rows.append({**row, "method": method, "lambda": regularisation})
    write_json(out, rows)


def best_lambdas(tuned: list[Path]) -> dict[tuple[str, float], float]:
    """By method and R: the lambda with the best mean PSNR over the tuning scans."""
    psnr: dict[tuple[str, float], dict[float, list[float]]] = {}
    for path in tuned:
        for row in json.loads(path.read_text()):
            by_lambda = psnr.setdefault((row["method"], row["R"]), {})
            by_lambda.setdefault(row["lambda"], []).append(row["psnr"])
    return {key: max(values, key=lambda lam: float(np.mean(values[lam]))) for key, values in psnr.items()}


def evaluate_classical(method: str, tuned: list[Path], iterations: int, file: Path, out: Path) -> None:
    """Figures of a classical method on a test scan, with the lambda that was tuned on others."""
    lambdas, rows = best_lambdas(tuned), []
    for acceleration, slice_, reference, person in undersampled(file, "cpu"):
        regularisation = lambdas.get((method, acceleration), 0.0)
        image = _classical(slice_, method, regularisation, iterations)
        row = figures(image, reference, slice_, acceleration, person)
        rows.append({**row, "lambda": regularisation})
    write_json(out, rows)
