"""Compare the guidances on one fully sampled scan: image quality, spread, cost, and how far their CG is converged.

    python examples/compare_guidance.py examples/data/brain.h5 --R 4 8 --samples 4 --steps 16 --crop 128

Every guidance sees the same undersampled slice, prior and noise grid, and starts from the same noise. The sampler is
`--sampler` for all, as only `proximal` can go with `decoupled`; the default recipe's own pair stands beside them. dps
takes `--dps-steps` levels and the grid `log`, for it needs many. sigma_max = 0.5 leaves out the levels at which a
learned Jacobian says little about the covariance.

PSNR (dB, after a best scalar fit) is of the mean of n magnitudes, and the average over single samples, against the
magnitude of the fully sampled coil combination S^H y: the RSS has a background of noise that no coil combination has.
"spread" is the mean std over the support. Calls are those of the network for one sample, backward passes apart; times
are ratios within this run. The last table is the relative error of what the default recipe's guidance gives at a few
levels, of means and of draws, against `--converged` CG iterations: after 10 of them, and where the recipe stops.

Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop
from mrgen.posterior.antithetic import moments
from mrgen.posterior.baselines import cg_sense
from mrgen.posterior.proximal import Proximal
from mrgen.posterior.reconstruct import posterior_samples
from mrgen.prior.draws import complex_noise
from mrgen.prior.files import Prior, bundled_prior, load_prior
from mrgen.review.metrics import psnr_fit
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import default_center_fraction, prepare_slice, undersampling_mask
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Recipe, Sampling

LEVELS = (5.0, 2.0, 1.0, 0.5, 0.3, 0.1, 0.03)  # of the CG table


@dataclass
class Counted:
    """A denoiser that counts its images, and the backward passes through them."""

    prior: Prior
    calls: int = 0
    backward: int = 0

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        self.calls += len(x_t)
        out = self.prior(x_t, sigma)
        if out.requires_grad:
            out.register_hook(self._count)  # type: ignore[no-untyped-call]
        return out

    def _count(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def undersampled(scan: Scan, acceleration: float, crop: int, seed: int, device: str) -> tuple[Slice, Tensor]:
    """The middle slice, cropped to crop x crop in k-space where it is larger, and its fully sampled magnitude.

    The crop makes it small and blurred, and leaves its noise what it was.
    """
    raw = scan.read_slice(scan.slices // 2)
    size = (min(crop, raw.shape[-2]), min(crop, raw.shape[-1])) if crop else (raw.shape[-2], raw.shape[-1])
    raw, small = centre_crop(raw, size).clone(), replace(scan, shape=(*scan.shape[:2], *size))
    fraction = default_center_fraction(acceleration)
    sampling = Sampling(pattern="equispaced", acceleration=(acceleration,), center_fraction=fraction)
    mask = undersampling_mask(small, sampling, acceleration, seed, slice_index=0)
    slice_ = prepare_slice(raw, None, undersample=mask, keep_reference=False)
    full = prepare_slice(raw, None, undersample=torch.ones_like(mask), keep_reference=False)
    reference = full.operator().adjoint(full.kspace).abs() * (slice_.maps != 0).any(0)
    return slice_.to(device), reference


def row(slice_: Slice, reference: Tensor, prior: Prior, recipe: Recipe, seed: int) -> dict[str, float]:
    """The figures of one recipe."""
    counted = Counted(prior)
    generator = torch.Generator(slice_.kspace.device).manual_seed(seed)
    begun = time.perf_counter()
    samples = posterior_samples(slice_, replace(prior, denoiser=counted), recipe, generator).abs()
    seconds = time.perf_counter() - begun
    target, support = reference.numpy(force=True), (slice_.maps != 0).any(0)
    return {
        "mean": psnr_fit(samples.mean(0).numpy(force=True), target),
        "single": sum(psnr_fit(s.numpy(force=True), target) for s in samples) / len(samples),
        "spread": float(moments(samples, recipe.antithetic)[1].sqrt()[support].mean()),
        "calls": counted.calls / len(samples),
        "backward": counted.backward / len(samples),
        "seconds": seconds,
    }


def quality(slice_: Slice, reference: Tensor, prior: Prior, arguments: argparse.Namespace) -> str:
    """The first table, in Markdown."""
    basic = Recipe(description="", samples=arguments.samples, steps=arguments.steps)
    common = {"sampler": arguments.sampler}
    changes = {
        "proximal, decoupled (the default)": {},
        "proximal, decoupled, residual": {"covariance": "residual"},
        "proximal": common,
        "proximal, spectral": {**common, "covariance": "spectral"},
        "mmps": {**common, "guidance": "mmps", "cg_iterations": arguments.mmps_iterations},
        "proximal, sigma_max 0.5": {**common, "sigma_max": 0.5},
        "mmps, sigma_max 0.5": {
            **common,
            "guidance": "mmps",
            "cg_iterations": arguments.mmps_iterations,
            "sigma_max": 0.5,
        },
        "dps": {"guidance": "dps", "sampler": "ancestral", "grid": "log", "steps": arguments.dps_steps},
    }
    rows = {}
    for name, change in changes.items():
        recipe = Recipe.model_validate({**basic.model_dump(), **change})
        rows[name] = row(slice_, reference, prior, recipe, arguments.seed)
        print(f"{name}: {rows[name]['mean']:.2f} dB", flush=True)
    mmps = rows["mmps"]["seconds"]
    lines = ["| guidance | mean | single | spread | calls | backward | time / mmps |", "|---|---|---|---|---|---|---|"]
    for name, r in rows.items():
        lines.append(
            f"| {name} | {r['mean']:.2f} | {r['single']:.2f} | {r['spread']:.4f} | {r['calls']:.0f} "
            f"| {r['backward']:.0f} | {r['seconds'] / mmps:.2f} |"
        )
    return "\n".join(lines)


def solved(
    prior: Prior, slice_: Slice, x_t: Tensor, sigma: Tensor, *, iterations: int, settled: float, draw: int | None
) -> tuple[Tensor, int]:
    """What the default guidance makes of x_t, a draw with seed `draw` or the mean, and the CG iterations taken."""
    generator = None if draw is None else torch.Generator(x_t.device).manual_seed(draw)
    guided = Proximal(prior, slice_, None, iterations=iterations, settled=settled, local=True, draw=generator)
    normal, products = guided.normal, 0

    def counted(x: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return normal(x)

    guided.normal = counted
    return guided(x_t, sigma), products - 1  # one makes the right-hand side


def convergence(slice_: Slice, prior: Prior, converged: int, seed: int) -> str:
    """The CG table, in Markdown: each level starts from the converged image of the one before."""
    generator, recipe = torch.Generator(slice_.kspace.device).manual_seed(seed), Recipe(description="")
    image = cg_sense(slice_, 0.01, 10)[None]
    lines = ["| sigma_t | mean, 10 | mean | iterations | draw, 10 | draw | iterations |", "|---" * 7 + "|"]
    with torch.inference_mode():
        for level in LEVELS:
            x_t, sigma = image + level * complex_noise(image, generator), torch.tensor([level], device=image.device)
            cells = [f"{level:g}"]
            for draw in (None, seed):
                solve = partial(solved, prior, slice_, x_t, sigma, draw=draw)
                exact, _ = solve(iterations=converged, settled=0.0)
                ten, _ = solve(iterations=10, settled=0.0)
                default, iterations = solve(iterations=recipe.cg_iterations, settled=recipe.cg_settled)
                cells += [f"{100 * float((x - exact).norm() / exact.norm()):.2f}" for x in (ten, default)]
                cells.append(str(iterations))
                image = exact if draw is None else image
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="fully sampled scan in the fastMRI layout")
    parser.add_argument("--R", type=float, nargs="+", default=[4.0, 8.0], help="accelerations (4 8)")
    parser.add_argument("--samples", type=int, default=4, help="n (4)")
    parser.add_argument("--steps", type=int, default=16, help="noise levels (16)")
    parser.add_argument("--dps-steps", type=int, default=100, help="noise levels of dps (100)")
    parser.add_argument("--sampler", default="multistep", help="of proximal and mmps (multistep)")
    parser.add_argument("--mmps-iterations", type=int, default=3, help="CG iterations of mmps (3)")
    parser.add_argument("--crop", type=int, default=0, help="crop k-space to this size; 0: leave it (0)")
    parser.add_argument("--converged", type=int, default=200, help="CG iterations of the converged answer (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior", type=Path, help="prior file (the bundled one)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args(given)
    try:
        scan = open_fastmri(arguments.scan)
        prior = load_prior(arguments.prior or bundled_prior(), arguments.device)
        for acceleration in arguments.R:
            slice_, reference = undersampled(scan, acceleration, arguments.crop, arguments.seed, arguments.device)
            print(f"\nR = {acceleration:g}, n = {arguments.samples}, {arguments.steps} levels, {arguments.sampler}\n")
            print(quality(slice_, reference, prior, arguments))
            print(f"\nCG error of proximal in %, means and draws, against {arguments.converged} iterations\n")
            print(convergence(slice_, prior, arguments.converged, arguments.seed), flush=True)
    except MrgenError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
