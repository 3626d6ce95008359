"""How far samples of priors are from images of people that none of them was trained on.

    python examples/compare_samples.py gsure.safetensors oracle.safetensors --images brain_t1_slices.npz \
        --volume head_t1_volume.npz -n 16 -o result.json

Images are varied and prepared as for training (examples/train_bundled_prior.py), in one matrix and, as training turns
them at random, mirrored at random. Distances are those of mrgen/review/distribution.py between magnitudes, to
held-out people (subjects 53 and above): of each prior's samples, with the std over bootstraps of them; of images of
training people, a floor; and of images drawn as the training draws them, other head and slice directions included,
which is where a perfect prior would be. The latter two are means over random sets of as many images as there are
samples, with the std over those. A table goes beside the result, as .md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from train_bundled_prior import Head, simulated_slice, template_heads, training_sources

from mrgen.posterior.reconstruct import refuse_conditional
from mrgen.posterior.samplers import noise_levels
from mrgen.posterior.unconditional import LEVELS, unconditional_samples
from mrgen.prior.files import load_prior
from mrgen.review.distribution import patch_distance, spectrum_ratio
from mrgen.review.figure import NOTICE
from mrgen.scans.simulate import uniform
from mrgen.settings import Protocol, Sampling, load

REPEATS = 40  # bootstraps, and random sets
Images = NDArray[np.float32]


def prepared(heads: list[Head], matrix: tuple[int, int], sampling: Sampling, seed: int, device: str) -> Images:
    """Magnitudes (n, y, x) of heads as training has them, in this matrix."""
    images = []
    for number, (pixels, (canvas, _)) in enumerate(heads):
        generator = torch.Generator().manual_seed(seed + number)
        _, target, _ = simulated_slice((pixels, (canvas, (matrix,))), sampling, seed + number, generator, device)
        image = target.abs() if target.shape == matrix else target.abs().mT
        images.append(image.flip([axis for axis in (0, 1) if uniform(0, 1, generator) < 0.5]).numpy(force=True))
        if (number + 1) % 16 == 0:
            print(f"prepared {number + 1} of {len(heads)} images", flush=True)
    return np.stack(images)


def as_training(sources: list[list[Head]], matrix: tuple[int, int], rng: np.random.Generator) -> Iterator[Head]:
    """Heads drawn as the training draws those of one matrix, without end."""
    while True:
        heads = sources[rng.integers(len(sources))]
        pixels, (canvas, matrices) = heads[rng.integers(len(heads))]
        if matrices[rng.integers(len(matrices))] == matrix:
            yield pixels, (canvas, matrices)


def spread_over(images: Images, known: Images, weights: NDArray[np.float64]) -> tuple[Any, Any]:
    """Of distances with `weights` (b, n): each, (b, band), and their std with that of their mean over bands."""
    each = patch_distance(images, known, weights=weights)
    return each, [*each.std(0, ddof=1).tolist(), float(each.mean(1).std(ddof=1))]


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown."""
    bands, rings = len(next(iter(rows.values()))["distance"]), (0, 2, 5, 8)
    power = f"power at {', '.join(f'0.{ring}' for ring in rings)} of Nyquist, dB"
    lines = [["", "mean of bands", *(f"band {band}" for band in range(1, bands + 1)), power], ["---"] * (bands + 3)]
    for name, row in rows.items():
        distances = zip([*row["distance"], np.mean(row["distance"])], row["std"], strict=True)
        *each, mean = (f"{distance:.3f} ± {std:.3f}" for distance, std in distances)
        lines.append([name, mean, *each, ", ".join(f"{row['spectrum'][ring]:+.1f}" for ring in rings)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", type=Path, nargs="+")
    parser.add_argument("--images", type=Path, required=True, help="brain_t1_slices.npz")
    parser.add_argument("--volume", type=Path, required=True, help="head_t1_volume.npz")
    parser.add_argument("--matrix", type=int, nargs=2, default=(208, 176))
    parser.add_argument("-n", type=int, default=16, help="samples of each prior")
    parser.add_argument("--people", type=int, default=48, help="images of held-out and of training people, at most")
    parser.add_argument("--steps", type=int, default=LEVELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("-o", "--out", type=Path, required=True, help="result, .json")
    args = parser.parse_args(given)

    priors = {path.stem: load_prior(path, args.device) for path in args.priors}
    for prior in priors.values():
        refuse_conditional(prior)
    matrix, rng = (args.matrix[0], args.matrix[1]), np.random.default_rng(args.seed)
    sampling, sources = load(Protocol, "head").sampling, training_sources(args.images, args.volume)

    def some(heads: list[Head]) -> list[Head]:
        return [heads[i] for i in np.linspace(0, len(heads) - 1, min(args.people, len(heads))).round().astype(int)]

    drawn = as_training(sources, matrix, rng)
    known = prepared(some(template_heads(args.images, validation=True)), matrix, sampling, 9_100_000, args.device)
    settings = {"matrix": matrix, "n": args.n, "steps": args.steps, "seed": args.seed, "held_out_images": len(known)}
    rows: dict[str, dict[str, Any]] = {}
    for name, heads in (
        ("images of training people", some(sources[0])),
        ("images as training draws them", [next(drawn) for _ in range(args.people)]),
    ):
        images = prepared(heads, matrix, sampling, 9_200_000 + 1000 * len(rows), args.device)
        n = min(args.n, len(images))
        sets = np.stack([rng.permutation(np.arange(len(images)) < n) / n for _ in range(REPEATS)])
        each, std = spread_over(images, known, sets)
        distance = each.mean(0).tolist()
        rows[name] = {"distance": distance, "std": std, "spectrum": spectrum_ratio(images, known).tolist()}
    for name, prior in priors.items():
        levels = noise_levels(prior.sigma_max, prior.sigma_min, args.steps)
        samples = unconditional_samples(prior, (args.n, *matrix), levels, args.seed, args.device).abs()
        images = samples.numpy(force=True)
        _, std = spread_over(images, known, rng.multinomial(args.n, np.full(args.n, 1 / args.n), REPEATS) / args.n)
        distance = patch_distance(images, known).tolist()
        spectrum = spectrum_ratio(images, known).tolist()
        rows[name] = {"sha256": prior.sha256, "distance": distance, "std": std, "spectrum": spectrum}
        print(f"{name}: {np.mean(distance):.3f} ± {std[-1]:.3f}", flush=True)
        args.out.write_text(json.dumps({"notice": NOTICE, **settings, "rows": rows}, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table(rows))
    print(table(rows), end="")


if __name__ == "__main__":
    main()
