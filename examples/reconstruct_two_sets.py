"""Recipes with one and two sets of coil maps, on a fully sampled scan whose object wraps into the field of view.

    python examples/reconstruct_two_sets.py SCAN --R 2 3 4
    python examples/reconstruct_two_sets.py examples/data/brain.h5 --half-fov --R 2 -o out/two_sets.png

The middle slice, undersampled as `mrgen recon` does with the same R and seed 0. Truth is the coil images of the fully
sampled scan, not their combination by one set of maps, which is wrong where two places share a pixel:

- withheld: | k - F S x | / | k | over the lines that were left out, of all coils, and what noise alone would leave. For
  a posterior x is the mean of the samples.
- fold-over, elsewhere: | m - RSS | / | RSS | with m the magnitude that `mrgen recon` writes and RSS that of the coil
  images, where the second set of the fully sampled scan has maps inside the object, and in the rest of the object.
- PSNR against the RSS, after the best scalar fit, in dB.
- chosen: the number of sets that `--map-sets auto` takes.

`--half-fov` leaves out every other phase line of the scan first, which halves its field of view. The picture is of the
last R. Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor
from two_sets_of_maps import opened

from mrgen.errors import MrgenError
from mrgen.posterior.reconstruct import draw, regularised
from mrgen.prior.files import Prior, bundled_prior, load_prior
from mrgen.review.figure import NOTICE
from mrgen.review.metrics import psnr_fit
from mrgen.review.run import slice_generator
from mrgen.scans.prepare import default_center_fraction, prepare_slice, undersampling_mask
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe, Sampling, load


def images(slice_: Slice, recipe: Recipe, prior: Prior) -> tuple[Tensor, Tensor]:
    """Complex image, or mean of the samples, and the magnitude that is written."""
    if recipe.draws:
        samples = draw(slice_, prior, recipe, slice_generator(0, 0))
        return samples.mean(0), slice_.magnitude(samples).mean(0)
    image, _ = regularised(slice_, prior, recipe)
    return image, slice_.magnitude(image)


def picture(path: Path, shown: dict[str, Tensor], rss: Tensor) -> None:
    """Images, and below their errors times 5."""
    figure = Figure(figsize=(2.2 * len(shown), 2.3 * 2 * rss.shape[0] / rss.shape[1]), layout="constrained")
    axes = figure.subplots(2, len(shown))
    for (above, below), (title, image) in zip(axes.T, shown.items(), strict=True):
        above.set_title(title)
        above.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        below.imshow((image - rss).abs().numpy() * 5, cmap="gray", vmin=0, vmax=1)
        below.set_title("error x 5" if title != "RSS" else "")
    for axis in axes.flat:
        axis.axis("off")
    figure.supxlabel(NOTICE, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=55, metadata={"Software": None})
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="fully sampled scan of any format that mrgen reads")
    parser.add_argument("--R", type=float, nargs="+", default=[2.0, 3.0, 4.0], help="undersampling factors")
    parser.add_argument("--recipe", nargs="+", default=["sense", "l1-wavelet", "posterior"], help="names of recipes")
    parser.add_argument("--center-fraction", type=float, help="of the lines; without it, fastMRI's for the R")
    parser.add_argument("--half-fov", action="store_true", help="leave out every other phase line")
    parser.add_argument("-o", "--output", type=Path, help="picture of the last R")
    given = parser.parse_args(arguments)
    try:
        scan, raw = opened(given.scan, given.half_fov)
    except MrgenError as error:
        raise SystemExit(f"error: {error}") from None
    prior = load_prior(bundled_prior(), "cpu")
    whole = prepare_slice(raw, None, noise=scan.noise, map_sets=2, keep_reference=True)
    print("| R | recipe | sets | withheld (noise) | fold-over | elsewhere | PSNR |")
    print("|---|---|---|---|---|---|---|")
    for acceleration in given.R:
        fraction = given.center_fraction or default_center_fraction(acceleration)
        sampling = Sampling(acceleration=(acceleration,), center_fraction=fraction)
        mask = undersampling_mask(scan, sampling, acceleration, 0, slice_index=0)
        shown: dict[str, Tensor] = {}
        for name in given.recipe:
            for sets in (1, 2):
                slice_ = prepare_slice(
                    raw, None, undersample=mask, noise=scan.noise, map_sets=sets, keep_reference=True
                )
                assert slice_.rss is not None
                rss, left_out = slice_.rss, 1 - slice_.mask
                object_ = rss > 0.1 * rss.quantile(0.99)
                folded = object_ & whole.support[1]
                image, magnitude = images(slice_, load(Recipe, name), prior)
                measured = left_out * whole.kspace * (slice_.sigma0 / whole.sigma0)  # in the units of the slice
                unexplained = float((measured - slice_.operator(left_out).forward(image)).norm() / measured.norm())
                noise = slice_.sigma0 * float(left_out.expand(measured.shape).sum().sqrt() / measured.norm())
                parts = [float((magnitude - rss)[a].norm() / rss[a].norm()) for a in (folded, object_ & ~folded)]
                psnr = psnr_fit(magnitude.numpy(), rss.numpy())
                cells = f"{unexplained:.3f} ({noise:.3f}) | {parts[0]:.3f} | {parts[1]:.3f} | {psnr:.1f}"
                print(f"| {acceleration:g} | {name} | {sets} | {cells} |", flush=True)
                shown |= {"RSS": rss, f"{name}, {sets} set{'s' * (sets > 1)}": magnitude}
        chosen = prepare_slice(raw, None, undersample=mask, noise=scan.noise, map_sets=None, keep_reference=False)
        share = f"a second set holds {chosen.second_share:.2%} of the calibration image"
        print(
            f"\nR = {acceleration:g}: chosen {chosen.sets}, {share}; {float(folded.sum() / object_.sum()):.0%} folded\n"
        )
    if given.output:
        picture(given.output, shown, rss)


if __name__ == "__main__":
    main()
