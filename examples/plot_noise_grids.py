"""Plot the noise levels of every grid (`grid` in a recipe).

python examples/plot_noise_grids.py --steps 20 -o docs/figures/noise-grids.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mrgen.posterior.samplers import GRIDS, noise_levels


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sigma-max", type=float, default=5.0)
    parser.add_argument("--sigma-min", type=float, default=0.01)
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture")
    arguments = parser.parse_args(given)
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for grid in GRIDS:
        levels = noise_levels(arguments.sigma_max, arguments.sigma_min, arguments.steps, grid)
        axes.semilogy(range(1, arguments.steps + 1), levels.numpy(), ".-", label=grid)
    axes.set(xlabel="level", ylabel="sigma_t (scaled image units)")
    axes.legend(frameon=False)
    figure.savefig(arguments.output, dpi=120)


if __name__ == "__main__":
    main()
