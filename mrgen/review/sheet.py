"""A sheet of images side by side, such as samples of a prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mrgen.review.figure import NOTICE
from mrgen.review.metrics import Array


def save_sheet(path: Path, images: Array, title: str, columns: int = 4) -> None:
    """Write a PNG of magnitude images (n, y, x), all in one window from 0 to their 99.8th percentile."""
    from matplotlib.figure import Figure  # here, as it is slow to import

    n, n_y, n_x = images.shape
    rows = -(-n // columns)
    figure = Figure(figsize=(2.5 * columns, 2.5 * rows * n_y / n_x + 0.8), layout="compressed")
    top = float(np.percentile(images, 99.8))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, image in zip(grid, images, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=top, interpolation="nearest")
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(NOTICE, fontsize=8)
    figure.savefig(path, dpi=120, format="png")
