"""Seconds for posterior samples of a slice of 320 x 320 with 15 coils, and where the time goes.

    python examples/benchmark_sampling.py --device cuda --dps 1000

The slice is a numerical head seen by a ring of loops, undersampled by R = 8, prior and recipe are the bundled ones.
Each row is the median of three runs after one to warm up, all of one process; with --dps N the recipe `dps` with N
levels, for one sample (timed once) and for eight (not timed), stands beside them. PSNR (dB) is of the mean of the
magnitudes against the noise-free head, after the best scalar fit; coverage the share of the body within 1.645 std of
that mean, of which 8 exact samples have 84 %. On a GPU each row tells the memory at most in use, and the end how many
kernels the CPU launched for one sample.

Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from benchmark_espirit import scan
from compare_guidance import Counted
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mrgen.physics.fourier import ifft2c
from mrgen.physics.masks import fastmri_rng, sampling_mask
from mrgen.posterior.antithetic import moments
from mrgen.posterior.reconstruct import posterior_samples
from mrgen.prior.files import Prior, bundled_prior, load_prior
from mrgen.review.metrics import best_scale, psnr_fit, spread_scores
from mrgen.scans.prepare import default_center_fraction, prepare_slice
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe, load

R, SIGMA, REPETITIONS = 8.0, 0.05, 3


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, repetitions: int = REPETITIONS) -> float:
    times = []
    for _ in range(repetitions + 1):
        wait(device)
        begun = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - begun)
    return median(times[1:])


def sample(slice_: Slice, prior: Prior, recipe: Recipe) -> Tensor:
    return posterior_samples(slice_, prior, recipe, torch.Generator().manual_seed(0)).abs()


def row(
    name: str, slice_: Slice, truth: Tensor, prior: Prior, recipe: Recipe, device: str, repetitions: int = REPETITIONS
) -> None:
    """Print a row of the table: of one run, and of `repetitions` that are timed after one that is not."""
    counted = Counted(prior)
    images = sample(slice_, replace(prior, denoiser=counted), recipe)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    took = f"{seconds(partial(sample, slice_, prior, recipe), device, repetitions):.2f}" if repetitions else ""
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device != "cpu" else "-"
    mean, reference, covered = images.mean(0).numpy(force=True), truth.numpy(), ""
    if len(images) > 1:
        fit = best_scale(mean, reference)
        std = moments(images, recipe.antithetic)[1].sqrt().numpy(force=True)
        found = spread_scores(fit * mean, fit * std, reference)
        covered = f"{found['coverage']:.0%}"
    calls = f"{counted.calls / len(images):.0f}"
    print(f"| {name} | {took} | {calls} | {psnr_fit(mean, reference):.2f} | {covered} | {peak} |", flush=True)


def launches(work: Callable[[], object]) -> None:
    """Print the kernels launched, and the five operations that keep the CPU, and the GPU, longest by themselves."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    events = found.key_averages()
    print(f"\n{sum(e.count for e in events if 'LaunchKernel' in e.key)} launches for one sample")
    for what in ("self_cpu_time_total", "self_device_time_total"):
        most = sorted(events, key=lambda e: float(getattr(e, what)), reverse=True)[:5]
        print(f"{what}: " + ", ".join(f"{e.key[:50]} {getattr(e, what) / 1e3:.0f} ms" for e in most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--samples", type=int, nargs="+", default=(1, 8, 16))
    parser.add_argument("--dps", type=int, metavar="LEVELS", help="compare with DPS")
    args = parser.parse_args()
    device = args.device
    kspace, maps, _ = scan(SIGMA)
    fraction = default_center_fraction(R)
    mask = sampling_mask("equispaced", kspace.shape[-1], R, fraction, fastmri_rng("head"))
    raw = kspace.to(device)
    prepared = partial(prepare_slice, raw, None, undersample=mask, keep_reference=False)
    slice_, prior, recipe = prepared(), load_prior(bundled_prior(), device), load(Recipe, "posterior")
    truth = (maps.conj() * ifft2c(scan(0.0)[0])).sum(0).abs()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device != 'cpu' else 'cpu'}\n")
    print("| | s | network calls a sample | PSNR, dB | coverage | GB |\n|---|---|---|---|---|---|")
    print(f"| noise, whitening and maps | {seconds(prepared, device):.3f} | | | | |")
    for n in args.samples:
        name = f"{n} sample{'s' if n > 1 else ''}"
        row(name, slice_, truth, prior, recipe.model_copy(update={"samples": n}), device)
    if args.dps:
        for n, timed in ((1, 1), (8, 0)):
            dps = load(Recipe, "dps").model_copy(update={"steps": args.dps, "samples": n})
            row(f"dps, {args.dps} levels, {n} sample{'s' if n > 1 else ''}", slice_, truth, prior, dps, device, timed)
    if device != "cpu":
        launches(partial(sample, slice_, prior, recipe.model_copy(update={"samples": 1})))


if __name__ == "__main__":
    main()
