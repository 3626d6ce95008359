"""Regions whose calibrated interval is wide: where the samples leave a value open, whatever the image shows there.

In each slice, with t the threshold, u the half-width of the interval, x the reconstruction and p99 its 99th percentile
over the slice, the pixels with

    u > t p99(x)    and    x > 0.1 p99(x)

that hang together, diagonally too, as regions of `SMALLEST` pixels or more. The second condition is the body, in which
the interval was calibrated. A region is a statement about the samples, not about the patient: a lesion that the prior
has never seen may lie outside all of them, and nothing be wrong within.
"""

from __future__ import annotations

import numpy as np
import scipy  # its parts, which are slow to import, load where they are first used
from numpy.typing import NDArray

from mrgen.errors import MrgenError
from mrgen.review.metrics import body
from mrgen.review.stored import Volume

SMALLEST = 9  # pixels of a region: what a sample's noise alone makes is smaller
_PERCENTILE = 99
_NEIGHBOURS = np.ones((3, 3))


def check_threshold(threshold: float) -> None:
    """Raises MrgenError for a threshold that is no share of an intensity."""
    if not 0 < threshold < 1:
        raise MrgenError(
            f"--flag {threshold:g}: expected a share of the brightest tissue between 0 and 1, for example 0.1"
        )


def uncertain_regions(interval: Volume, image: Volume, threshold: float) -> NDArray[np.bool_]:
    """Where regions are flagged, (slice, y, x), by the half-width of the interval and the image of the same shape."""
    wide = np.zeros(image.shape, np.bool_)
    for i, (u, x) in enumerate(zip(interval, image, strict=True)):
        wide[i] = _without_specks((u > threshold * np.percentile(x, _PERCENTILE)) & body(x))
    return wide


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The regions of `mask` (y, x) that are large enough."""
    regions, _ = scipy.ndimage.label(mask, _NEIGHBOURS)
    large = np.bincount(regions.ravel()) >= SMALLEST
    large[0] = False  # what is in no region
    kept: NDArray[np.bool_] = large[regions]
    return kept


def rule(threshold: float) -> str:
    """What `uncertain_regions` takes, in words."""
    return (
        f"half-width of the calibrated interval above {threshold:g} x the slice's 99th percentile of the mean, within "
        f"the body (mean above 0.1 x that percentile), regions of {SMALLEST} pixels or more"
    )
