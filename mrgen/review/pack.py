"""Images as text inside a page, small, and exact to a stated step.

    k = round(x / step)                   whole multiples; with step = max(x) / 2047 a pixel is off by 0.025 % of the
                                          largest at most, in samples and maps, whose step is twice that, by 0.05 %
    d = k_i - k_(i-1)                     along the pixels of an image in their order, or
    d = k_i - k'_i                        from another image k', as samples differ little from their mean
    z = 2 d where d >= 0, else -2 d - 1   small numbers for small differences of either sign

and then the low bytes of all z, the high bytes of all z, deflate (RFC 1950) and base64. Differences are taken modulo
2^16, so that every k from 0 to 65535 comes back. `report/decode.js` reads it.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.uint16]
STEPS = 2047  # from 0 to the largest value
COARSE = 2  # steps of the mean in one of samples and maps


def step_of(volume: NDArray[np.floating[Any]]) -> float:
    """The step for a volume; 1 where it is 0 everywhere."""
    return float(volume.max()) / STEPS or 1.0


def levels(image: NDArray[np.floating[Any]], step: float) -> Levels:
    """k of non-negative values; those above 65535 steps, 32 times the largest of what the step was made for, clip."""
    found: Levels = np.clip(np.rint(image / step), 0, 65535).astype(np.uint16)
    return found


def pack(images: Levels, relative_to: Levels | None = None) -> str:
    """The text for k of images (..., y, x), each as differences from `relative_to` (y, x) where that is given."""
    flat = images.reshape(-1)
    d = np.diff(flat, prepend=np.uint16(0)) if relative_to is None else (images - relative_to).reshape(-1)
    signed = d.view(np.int16)
    z = ((signed << 1) ^ (signed >> 15)).view(np.uint16)
    planes = np.concatenate([(z & 255).astype(np.uint8), (z >> 8).astype(np.uint8)])
    # differences hardly repeat but for runs of zeros: Z_RLE finds these alone, is smaller and takes half the time
    deflate = zlib.compressobj(strategy=zlib.Z_RLE)
    return base64.b64encode(deflate.compress(planes.tobytes()) + deflate.flush()).decode()
