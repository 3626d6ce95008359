"""Compare priors on measured scans by the lines of k-space that they were not shown.

    python examples/unseen_lines.py ../shared/data/scans head.safetensors better.safetensors -o result.json

A fully sampled scan has noise in its reference, and a reconstruction that keeps the noise of the lines that it was
given is nearer to that reference than one without. Lines that were not given have noise of their own, so what a
reconstruction misses of them, less the power of that noise, is the error of the image at those frequencies. The middle
slice of each scan is undersampled as fastMRI does; coil maps are those of all lines, in one set, the same for all
priors. Two figures of the mean and the variance of the samples, over all unseen points: the relative error in dB, and
the log-likelihood of a number (mrgen.prior.heldout). Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrgen.physics.masks import sampling_mask
from mrgen.posterior.reconstruct import posterior_samples
from mrgen.prior.files import Prior, load_prior
from mrgen.prior.heldout import score
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import default_center_fraction, prepare
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe, load


def figures(whole: Slice, acceleration: float, prior: Prior, recipe: Recipe, seed: int) -> dict[str, float]:
    """`whole` is fully sampled; the mask and the samples belong to the seed."""
    fraction, rng = default_center_fraction(acceleration), np.random.RandomState([seed, 7])
    mask = sampling_mask("equispaced", whole.kspace.shape[-1], acceleration, fraction, rng).to(whole.mask)
    given = replace(whole, kspace=whole.kspace * mask, mask=mask)
    samples = posterior_samples(given, prior, recipe, torch.Generator(whole.kspace.device).manual_seed(seed))
    found, unseen = score(whole, 1 - mask, samples), whole.kspace[..., mask == 0]
    power, noise = float(unseen.abs().square().sum()), whole.sigma0**2 * unseen.numel()
    return {**asdict(found), "error_db": float(10 * np.log10((found.nrmse**2 * power - noise) / (power - noise)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of fully sampled scans")
    parser.add_argument("priors", type=Path, nargs="+")
    parser.add_argument("--glob", nargs="+", default=["brain_t2*", "brain_vfa*"], help="heads that do not wrap")
    parser.add_argument("--R", type=float, nargs="+", default=[4.0, 6.0, 8.0, 10.0])
    parser.add_argument("--seeds", type=int, default=2, help="masks, each with samples of its own")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path)
    args = parser.parse_args()

    recipe = load(Recipe, "posterior").model_copy(update={"samples": args.samples})
    priors = {path.stem: load_prior(path, args.device, amp=args.device != "cpu") for path in args.priors}
    rows: list[dict[str, Any]] = []
    paths = sorted({path for pattern in args.glob for path in args.scans.glob(pattern)})
    if not paths:
        raise SystemExit(f"error: no file {' or '.join(args.glob)} in {args.scans}: name others with --glob")
    for path in paths:
        scan = open_scan(path)
        if scan.mask is not None:
            raise SystemExit(
                f"error: {path.name} is undersampled: expected a fully sampled scan, leave it out by --glob"
            )
        whole = prepare(scan, scan.slices // 2, device=args.device)
        for r in args.R:
            for name, prior in priors.items():
                for seed in range(args.seeds):
                    found = figures(whole, r, prior, recipe, seed)
                    rows.append({"scan": path.stem, "R": r, "prior": name, "seed": seed, **found})
                mine = rows[-args.seeds :]
                means = {key: np.mean([row[key] for row in mine]) for key in ("error_db", "log_likelihood")}
                print(f"{path.stem} R={r:g} {name}: error {means['error_db']:.2f} dB, "
                      f"log-likelihood {means['log_likelihood']:.3f}", flush=True)  # fmt: skip
    for r in args.R:
        for name in priors:
            mine = [row for row in rows if row["R"] == r and row["prior"] == name]
            error, likelihood = (np.mean([row[key] for row in mine]) for key in ("error_db", "log_likelihood"))
            print(f"mean R={r:g} {name}: error {error:.2f} dB, log-likelihood {likelihood:.3f}")
    if args.out:
        args.out.write_text(json.dumps({"recipe": recipe.model_dump(mode="json"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
