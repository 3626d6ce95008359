"""What choosing lambda without a reference costs: held-out lines and discrepancy beside the oracle.

    python examples/choose_lambda.py examples/data/brain.h5 --R 4 8

For each method and R the oracle takes the lambda of a grid, in steps of 2, with the best PSNR against the slice's own
reference, which no real reconstruction can do. The rules see the undersampled slice alone. The loss is the oracle's
PSNR less the rule's.

PSNR (dB) of magnitude images after the best scalar fit to the RSS of the whitened, fully sampled coil images.
Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.reconstruct import CLASSICAL, START
from mrgen.posterior.regularisation import RULES, choose, discrepancy
from mrgen.review.metrics import psnr_fit
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import default_center_fraction, prepare, undersampling_mask
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe, Sampling, load

GRID = range(-3, 6)  # lambda = START 2^k


def psnr(image: Tensor, slice_: Slice) -> float:
    assert slice_.rss is not None
    return float(psnr_fit(image.abs().numpy(force=True), slice_.rss.numpy(force=True)))


def compare(slice_: Slice, method: str) -> list[str]:
    """Rows of the table: the oracle's, then one for each rule."""
    iterations = load(Recipe, method).iterations

    def solve(s: Slice, regularisation: float) -> Tensor:
        return CLASSICAL[method](s, regularisation, iterations)

    def row(name: str, regularisation: float, image: Tensor, loss: float) -> str:
        fit = discrepancy(image, slice_)
        return f"{name} | {regularisation:.2g} | {fit:.2f} | {psnr(image, slice_):.2f} | {loss:.2f} |"

    images = {START[method] * 2**k: solve(slice_, START[method] * 2**k) for k in GRID}
    best = max(images, key=lambda regularisation: psnr(images[regularisation], slice_))
    top = psnr(images[best], slice_)
    rows = [row("oracle", best, images[best], 0.0)]
    for rule in RULES:
        choice = choose(rule, solve, slice_, START[method])
        image = solve(slice_, choice.regularisation)
        rows.append(row(choice.chosen_by, choice.regularisation, image, top - psnr(image, slice_)))
    return rows


def main(given: list[str] | None = None, say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="fully sampled scan")
    parser.add_argument("--R", type=float, nargs="+", default=[4, 8], help="accelerations (4 8)")
    parser.add_argument("--methods", nargs="+", choices=sorted(CLASSICAL), default=list(CLASSICAL))
    parser.add_argument("--seed", type=int, default=0, help="of the mask (0)")
    arguments = parser.parse_args(given)
    try:
        scan = open_scan(arguments.scan)
        if scan.mask is not None:
            raise MrgenError(f"{arguments.scan.name} is undersampled: a comparison needs a fully sampled scan")
        say("| R | method | lambda by | lambda | residual / noise | PSNR (dB) | loss (dB) |")
        say("|---|---|---|---|---|---|---|")
        for acceleration in arguments.R:
            fraction = default_center_fraction(acceleration)
            sampling = Sampling(pattern="equispaced", acceleration=(acceleration,), center_fraction=fraction)
            mask = undersampling_mask(scan, sampling, acceleration, arguments.seed, slice_index=0)
            slice_ = prepare(scan, scan.slices // 2, undersample=mask, keep_reference=True)
            for method in arguments.methods:
                for row in compare(slice_, method):
                    say(f"| {acceleration:g} | {method} | {row}")
    except MrgenError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
