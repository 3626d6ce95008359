"""Compare priors on simulated scans of people that none of them was trained on.

    python examples/evaluate_prior.py gsure.safetensors oracle.safetensors --images brain_t1_slices.npz -o result.json

Scans are simulated as for training (examples/train_bundled_prior.py) from subjects 53 and above, then undersampled
with fastMRI's equispaced masks. Every prior sees the same scans, masks, sampler and seeds. The reference is the RSS of
the noise-free whitened coil images; PSNR and SSIM
are those of magnitudes after a best scalar fit, averaged over slices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from train_bundled_prior import coil_images, prepare, simulate_scan, template_heads

from mrgen.physics.masks import sampling_mask
from mrgen.posterior.baselines import cg_sense, zero_filled
from mrgen.posterior.reconstruct import posterior_samples
from mrgen.prior.files import load_prior
from mrgen.review.metrics import best_scale, psnr_fit, ssim
from mrgen.scans.prepare import default_center_fraction
from mrgen.settings import Recipe, load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True, help="brain_t1_slices.npz")
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--R", type=float, nargs="+", default=[4.0, 8.0])
    parser.add_argument("--recipe", default="posterior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()

    recipe = load(Recipe, args.recipe)
    priors = {p.stem: load_prior(p, args.device, amp=args.device != "cpu") for p in args.priors}
    heads = template_heads(args.images, validation=True)
    chosen = np.linspace(0, len(heads) - 1, args.slices).round().astype(int)
    figures: dict[str, dict[str, list[float]]] = {}
    for number, index in enumerate(chosen):
        generator = torch.Generator().manual_seed(9_000_000 + args.seed * 1_000 + number)
        noisy, clean = simulate_scan(heads[index], generator, args.device)
        for acceleration in args.R:
            fraction = default_center_fraction(acceleration)
            rng = np.random.RandomState([args.seed, number])
            mask = sampling_mask("equispaced", noisy.shape[-1], acceleration, fraction, rng)
            slice_, _ = prepare(noisy, clean, mask.to(args.device))
            reference = coil_images(noisy, clean).abs().square().sum(0).sqrt().numpy(force=True)
            results = {"zero-filled": zero_filled(slice_).abs(), "cg-sense": cg_sense(slice_, 0.01, 30).abs()}
            for name, prior in priors.items():
                draw = torch.Generator(args.device).manual_seed(args.seed * 1_000 + number)
                results[name] = posterior_samples(slice_, prior, recipe, draw).abs().mean(0)
            for name, image in results.items():
                row = figures.setdefault(f"R={acceleration:g}", {})
                fitted = best_scale(image.numpy(force=True), reference) * image.numpy(force=True)
                row.setdefault(name, []).append(psnr_fit(fitted, reference))
                row.setdefault(f"{name} ssim", []).append(ssim(fitted, reference))
        print(f"slice {number + 1} of {len(chosen)}", flush=True)
    means = {r: {name: float(np.mean(v)) for name, v in row.items()} for r, row in figures.items()}
    for r, mean in means.items():
        line = "  ".join(f"{k} {mean[k]:.2f} dB ({mean[k + ' ssim']:.3f})" for k in mean if not k.endswith("ssim"))
        print(f"{r} n={recipe.samples} slices={len(chosen)}: {line}")
    if args.out:
        args.out.write_text(
            json.dumps({"recipe": recipe.model_dump(), "seed": args.seed, "mean": means, "each": figures}, indent=1)
        )


if __name__ == "__main__":
    main()
