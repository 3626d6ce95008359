"""One and two sets of coil maps on a fully sampled scan whose object wraps into the field of view.

    python examples/two_sets_of_maps.py SCAN -o out/two_sets.png
    python examples/two_sets_of_maps.py examples/data/brain.h5 --half-fov

Where an object wraps, two places with different coil sensitivities share a pixel, and one map cannot serve both. The
middle slice is reconstructed by CG-SENSE from all lines, R = 1, and from every other line and 24 at the centre, R = 2:

- unexplained: | k - F S x | / | k | over the lines that were left out, at R = 1 over all lines, and what noise alone
  would leave. At R = 1 the image is made of the same lines, so the noise of coils - sets dimensions is left.
- fold-over, elsewhere: | x - RSS | / | RSS | where the second set has support inside the object, and in the rest of it.
  x is the root of the sum of squares of the sets' images, after the best scalar fit; RSS that of all whitened coils.

lambda, at R = 2, is the best of five for the lines that were left out. `--half-fov` leaves out every other phase line
of the scan first, which halves its field of view.
Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.espirit import espirit_maps
from mrgen.physics.operators import sense, sense_normal
from mrgen.review.figure import NOTICE
from mrgen.review.metrics import best_scale
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import calibration_data, prepare_slice
from mrgen.scans.scan import Scan, Slice

LAMBDAS = torch.tensor([0.003, 0.01, 0.03, 0.1, 0.3])  # scaled image units
ITERATIONS = 50


def opened(path: Path, half_fov: bool) -> tuple[Scan, Tensor]:
    """The scan and its middle slice. Raises MrgenError for one that is not fully sampled."""
    scan = open_scan(path)
    if scan.mask is not None:
        raise MrgenError(f"{path.name} is undersampled: expected a fully sampled scan to compare with")
    raw = scan.read_slice(scan.slices // 2)
    if half_fov:
        raw = raw[..., raw.shape[-1] // 2 % 2 :: 2]
        scan = replace(scan, shape=(*scan.shape[:3], raw.shape[-1]), padding=(0, 0))
    return scan, raw


def line_mask(n: int, acceleration: int) -> Tensor:
    mask = torch.zeros(n)
    mask[n // 2 % acceleration :: acceleration] = 1
    mask[n // 2 - 12 : n // 2 + 12] = 1
    return mask


def judging(mask: Tensor) -> Tensor:
    """Lines (kx,) to judge by: those that were left out, or all where none was."""
    return 1 - mask if mask.min() == 0 else mask


def reconstruct(slice_: Slice, maps: Tensor, mask: Tensor) -> tuple[Tensor, float, float]:
    """The sets' images (set, y, x), what they leave unexplained, and lambda."""
    model = sense(maps, mask, sets=True)
    normal, adjoint = sense_normal(maps, mask, sets=True), model.adjoint(slice_.kspace * mask)
    shrink = LAMBDAS[:, None, None, None] if mask.min() == 0 else torch.zeros(1, 1, 1, 1)
    images = conjugate_gradient(
        lambda x: normal(x) + shrink * x, adjoint.expand(len(shrink), -1, -1, -1), iterations=ITERATIONS
    )
    predict, measured = sense(maps, judging(mask), sets=True).forward, slice_.kspace * judging(mask)
    left = [float((measured - predict(x)).norm() / measured.norm()) for x in images]
    best = min(range(len(left)), key=left.__getitem__)
    return images[best], left[best], float(shrink[best])


def noise_share(slice_: Slice, maps: Tensor, mask: Tensor) -> float:
    """What noise alone would leave unexplained."""
    coils, n_y, _ = slice_.kspace.shape
    samples = coils * n_y * float(judging(mask).sum())
    if mask.min() > 0:
        samples -= float(maps.abs().square().sum())  # the images take up as many dimensions of the noise
    return slice_.sigma0 * math.sqrt(samples) / float((slice_.kspace * judging(mask)).norm())


def picture(path: Path, reference: Tensor, images: dict[str, Tensor], second: Tensor) -> None:
    """RSS and images; below, the second eigenvalue and the errors times 5."""
    figure = Figure(figsize=(3.2 * (1 + len(images)), 7), layout="constrained")
    axes = figure.subplots(2, 1 + len(images))
    axes[0, 0].set_title("RSS")
    axes[0, 0].imshow(reference.numpy(), cmap="gray", vmin=0, vmax=1)
    axes[1, 0].set_title("second eigenvalue")
    axes[1, 0].imshow(second.numpy(), cmap="viridis", vmin=0, vmax=1)
    for column, (title, image) in enumerate(images.items(), start=1):
        axes[0, column].set_title(title)
        axes[0, column].imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        axes[1, column].set_title("error x 5")
        axes[1, column].imshow((image - reference).abs().numpy() * 5, cmap="gray", vmin=0, vmax=1)
    for axis in axes.flat:
        axis.axis("off")
    figure.supxlabel(NOTICE, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})
    print(f"wrote {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="fully sampled scan of any format that mrgen reads")
    parser.add_argument("--half-fov", action="store_true", help="leave out every other phase line")
    parser.add_argument("-o", "--output", type=Path, help="picture of R = 2")
    given = parser.parse_args(arguments)
    try:
        scan, raw = opened(given.scan, given.half_fov)
    except MrgenError as error:
        raise SystemExit(f"error: {error}") from None
    slice_ = prepare_slice(raw, None, noise=scan.noise, keep_reference=True)
    reference = slice_.rss
    assert reference is not None
    shape = (reference.shape[0], reference.shape[1])
    _, acs = calibration_data(slice_.kspace, slice_.mask)
    maps = {n: espirit_maps(acs[None], shape, slice_.sigma0, sets=n) for n in (1, 2)}
    object_ = reference > 0.1
    folded = object_ & (maps[2][0][0, 1].norm(dim=0) > 0)
    print(f"fold-over: {float(folded.sum() / object_.sum()):.0%} of the object\n")
    print("| R | sets | lambda | unexplained (noise) | fold-over | elsewhere |")
    print("|---|---|---|---|---|---|")
    pictures = {}
    for acceleration in (1, 2):
        mask = line_mask(shape[1], acceleration)
        for sets, (found, _) in maps.items():
            images, left, regularisation = reconstruct(slice_, found[0], mask)
            noise = noise_share(slice_, found[0], mask)
            image = images.abs().square().sum(0).sqrt()
            image = image * best_scale(image.numpy(), reference.numpy())
            errors = [float((image - reference)[a].norm() / reference[a].norm()) for a in (folded, object_ & ~folded)]
            cells = f"{regularisation:g} | {left:.3f} ({noise:.3f}) | {errors[0]:.3f} | {errors[1]:.3f}"
            print(f"| {acceleration} | {sets} | {cells} |", flush=True)
            pictures[f"{sets} set{'s' * (sets - 1)}"] = image  # those of R = 2 remain
    if given.output:
        picture(given.output, reference, pictures, maps[2][1][0, 1])


if __name__ == "__main__":
    main()
