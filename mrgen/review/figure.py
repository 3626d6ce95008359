"""One picture of one reconstructed slice: the images side by side, the spread, the error and the mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mrgen.review.metrics import Array, best_scale
from mrgen.review.uncertainty import std_sampling_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTICE = "Research use only. Not for diagnostic use."
_LABELS = {"zero_filled": "zero-filled", "l1_wavelet": "L1-wavelet"}


def label(name: str, samples: int | None) -> str:
    """What a reader sees for an image's name; `samples` is None for recipes without samples."""
    if name == "reconstruction":
        return "reconstruction" if samples is None else f"posterior mean, n = {samples}"
    return _LABELS.get(name, name)


def spread_title(samples: int, antithetic: bool) -> str:
    """Title of the std map with the relative sampling error of the std of n samples."""
    return f"std of n = {samples} samples\n(± {100 * std_sampling_error(samples, antithetic):.0f} % sampling error)"


def _show(figure: Figure, axes: Axes, image: Array, title: str, *, top: float, cmap: str = "gray") -> None:
    picture = axes.imshow(image, cmap=cmap, vmin=0, vmax=top, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    if cmap != "gray":
        figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)


def save_figure(
    path: Path,
    *,
    images: Mapping[str, Array],
    std: Array | None,
    samples: int | None,
    antithetic: bool = False,
    reference: Array | None,
    scores: Mapping[str, Mapping[str, float]],
    mask: Array,
    title: str,
) -> None:
    """Write a PNG of one slice.

    `images` (y, x) by name, the last one being the reconstruction, `std` (y, x) of its `samples` samples, which may
    be `antithetic`, and the
    `reference` (y, x) share one unit; `scores` holds psnr_fit and ssim_fit by image name; `mask` is (kx,) or (ky, kx).
    All grey panels share one window, from 0 to the 99.8th percentile of the reference (without one: of the
    reconstruction). The error is that of the reconstruction after the best scalar fit.
    """
    from matplotlib.figure import Figure  # here, as it is slow to import

    final = list(images)[-1]
    top = float(np.percentile(images[final] if reference is None else reference, 99.8))
    panels: list[tuple[Array, str, dict[str, Any]]] = []
    if reference is not None:
        panels.append((reference, "reference: coil combination\nof the fully sampled scan", {"top": top}))
    for name, image in images.items():
        score = scores.get(name)
        text = f"\nPSNR {score['psnr_fit']:.1f} dB, SSIM {score['ssim_fit']:.3f}" if score else ""
        panels.append((image, label(name, samples) + text, {"top": top}))
    if std is not None and samples is not None:
        spread = {"top": float(np.percentile(std, 99.8)), "cmap": "inferno"}
        panels.append((std, spread_title(samples, antithetic), spread))
    if reference is not None:
        error = np.abs(best_scale(images[final], reference) * images[final] - reference)
        panels.append(
            (error, f"absolute error (scalar fit)\nof the {label(final, samples)}", {"top": top / 4, "cmap": "inferno"})
        )

    if mask.ndim == 2:
        panels.append((mask, f"sampling\n{int(mask.sum())} of {mask.size} points", {"top": 1.0}))
    rows = 1 if len(panels) <= 4 else 2
    columns = -(-len(panels) // rows)
    n_y, n_x = images[final].shape
    spread_out = n_x < 0.9 * n_y  # narrow images side by side would have titles that overlap
    figure = Figure(figsize=(2.9 * columns, 2.75 * rows + 0.8), layout="constrained" if spread_out else "compressed")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[1.0] * rows, 0.06])
    for i in range(rows * columns):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        axes.set(xticks=[], yticks=[])  # which would be laid out, off or not
        axes.set_axis_off()
        if i < len(panels):
            image, text, style = panels[i]
            _show(figure, axes, image, text, **style)
    if mask.ndim == 1:
        strip = figure.add_subplot(grid[rows, :])
        strip.imshow(mask[None], cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        strip.set(xticks=[], yticks=[])
        strip.set_title(f"{int(mask.sum())} of {mask.size} phase-encode lines sampled", fontsize=8)
    figure.suptitle(title, fontsize=10)
    fit = "PSNR after the best scalar fit, peak of the reference volume. " if scores else ""
    figure.supxlabel(fit + NOTICE, fontsize=8)
    figure.savefig(path, dpi=120, format="png")
