"""The picture of an examined scan: sampling over log |k-space|, coil images, maps, image and noise correlation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mrgen.physics.fourier import ifft2c
from mrgen.review.figure import NOTICE
from mrgen.review.metrics import Array
from mrgen.scans.checks import Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COILS, _MAPS = 8, 4  # shown at most
_COLUMNS = 8


def _panel(axes: Axes, image: Array, title: str, top: float, cmap: str = "gray", low: float = 0.0) -> None:
    axes.imshow(image, cmap=cmap, vmin=low, vmax=top, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _kspace(axes: Axes, e: Evidence) -> None:
    """log |k-space| with what was not measured in blue."""
    magnitude = torch.linalg.vector_norm(e.raw, dim=0).numpy()
    measured = (magnitude > 0) if e.scan.mask is None else (e.scan.mask.numpy() > 0) & np.ones(magnitude.shape, bool)
    shown = np.ma.masked_array(np.log10(np.maximum(magnitude, 1e-30)), ~measured | (magnitude == 0))
    axes.set_facecolor("#1f4e79")
    axes.imshow(
        shown,
        cmap="gray",
        vmin=float(np.percentile(shown.compressed(), 1)),
        vmax=float(shown.max()),
        interpolation="nearest",
    )
    axes.set(xticks=[], yticks=[])
    axes.set_title("log |k-space|\nblue: not measured", fontsize=8)


def _correlation(figure: Figure, axes: Axes, e: Evidence) -> None:
    axes.set_axis_off()
    if e.covariance is None:
        return
    std = e.covariance.diagonal().real.clamp_min(1e-30).sqrt()
    picture = axes.imshow((e.covariance / std[:, None] / std).abs().numpy(), cmap="viridis", vmin=0, vmax=1)
    axes.set_title("noise correlation\nof the coils", fontsize=8)
    figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.02).ax.tick_params(labelsize=6)


def save_inspection(path: Path, e: Evidence, title: str) -> None:
    """Write a PNG of what was examined; coil images share one window, maps and image are left out where unknown."""
    from matplotlib.figure import Figure  # here, as it is slow to import

    coils = torch.linspace(0, len(e.raw) - 1, min(_COILS, len(e.raw))).round().long().tolist()
    n_y, n_x = e.raw.shape[-2:]
    tall = min(2.0, max(0.5, n_y / n_x)) * 1.35  # inches of a small panel, which is 1.35 wide
    figure = Figure(figsize=(1.5 * _COLUMNS, 4 * tall + 2.6), layout="constrained")
    grid = figure.add_gridspec(4, _COLUMNS)
    images = ifft2c(e.raw).abs()
    combined = images.norm(dim=0) if e.slice is None else (e.slice.maps.conj() * ifft2c(e.slice.kspace)).sum(0).abs()
    how = "root of sum of squares" if e.slice is None else "combined by the maps"
    name = "image" if e.scan.mask is None else "zero-filled image"
    limit = float(np.percentile(combined.numpy(), 99.8))
    _kspace(figure.add_subplot(grid[0:2, 0:2]), e)
    _panel(figure.add_subplot(grid[0:2, 2:4]), combined.numpy(), f"{name}\n{how}", limit)
    _panel(figure.add_subplot(grid[0:2, 4:6]), combined.numpy(), "the same, ten times\nas bright", limit / 10)
    _correlation(figure, figure.add_subplot(grid[0:2, 6:8]), e)
    top = float(np.percentile(images.numpy(), 99.8))
    for column, coil in enumerate(coils):
        _panel(figure.add_subplot(grid[2, column]), images[coil].numpy(), f"coil {coil}", top)
    if e.slice is not None:
        for column, coil in enumerate(coils[:: max(1, len(coils) // _MAPS)][:_MAPS]):
            one = e.slice.maps[coil]
            _panel(figure.add_subplot(grid[3, 2 * column]), one.abs().numpy(), f"|map {coil}|", 1.0)
            axes = figure.add_subplot(grid[3, 2 * column + 1])
            _panel(axes, one.angle().numpy(), "its phase", np.pi, "twilight", -np.pi)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(NOTICE, fontsize=8)
    figure.savefig(path, dpi=110, format="png", bbox_inches="tight")
