"""Image quality against a reference, in the definitions of fastmri.evaluate.

    NMSE = |x - r|^2 / |r|^2
    PSNR = 10 log10(peak^2 / mean |x - r|^2)
    SSIM = mean of (2 m_x m_r + C1)(2 c_xr + C2) / ((m_x^2 + m_r^2 + C1)(v_x + v_r + C2)),  C_i = (K_i peak)^2

with means m over 7 x 7 windows that lie inside the image, sample (co)variances v and c, K = (0.01, 0.03)
(Wang et al. 2004). All take magnitude images (y, x) or volumes (slice, y, x) as real arrays of one shape; the
figure of a volume pools its slices (SSIM: their mean). `peak` is the reference volume's maximum, or, where it
is not given, the maximum of the `reference` given. A best scalar fit removes the one ambiguity that a
reconstruction's scale has: `psnr_fit` is the project's headline figure and named as such wherever it appears.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

Array = NDArray[np.floating[Any]]
WINDOW, K1, K2 = 7, 0.01, 0.03


def _double(image: Array, reference: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if image.shape != reference.shape:
        raise ValueError(f"image {image.shape} and reference {reference.shape} differ in shape")
    return image.astype(np.float64), reference.astype(np.float64)


def best_scale(image: Array, reference: Array) -> float:
    """The scalar s that minimises |s image - reference|^2; 0 for an image of zeros."""
    x, r = _double(image, reference)
    power = float((x * x).sum())
    return float((x * r).sum()) / power if power > 0 else 0.0


def nmse(image: Array, reference: Array) -> float:
    """Squared error over the power of the reference."""
    x, r = _double(image, reference)
    return float(((x - r) ** 2).sum() / (r**2).sum())


def psnr(image: Array, reference: Array, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio, dB; infinite where image and reference agree exactly."""
    x, r = _double(image, reference)
    error = float(((x - r) ** 2).mean())
    top = float(r.max()) if peak is None else peak
    return float(10 * np.log10(top**2 / error)) if error > 0 else float("inf")


def psnr_fit(image: Array, reference: Array, peak: float | None = None) -> float:
    """PSNR, dB, after the best scalar fit of the image to the reference."""
    return psnr(best_scale(image, reference) * image.astype(np.float64), reference, peak)


def ssim(image: Array, reference: Array, peak: float | None = None) -> float:
    """Mean structural similarity; ValueError where a side is shorter than the 7-pixel window."""
    x, r = _double(image, reference)
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} x {WINDOW} pixels, found {x.shape[-2:]}")
    top = float(r.max()) if peak is None else peak
    c1, c2 = (K1 * top) ** 2, (K2 * top) ** 2

    def mean(a: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = slice(WINDOW // 2, -(WINDOW // 2))
        filtered: NDArray[np.float64] = uniform_filter(a, size=WINDOW, axes=(-2, -1))[..., inside, inside]
        return filtered

    m_x, m_r = mean(x), mean(r)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    v_x, v_r, c_xr = (sample * (mean(p) - m) for p, m in ((x * x, m_x**2), (r * r, m_r**2), (x * r, m_x * m_r)))
    similarity = (2 * m_x * m_r + c1) * (2 * c_xr + c2) / ((m_x**2 + m_r**2 + c1) * (v_x + v_r + c2))
    return float(similarity.mean())


def scores(image: Array, reference: Array, peak: float | None = None) -> dict[str, float]:
    """Every figure of this module by its name: psnr_fit, psnr (dB), ssim, nmse."""
    return {
        "psnr_fit": psnr_fit(image, reference, peak),
        "psnr": psnr(image, reference, peak),
        "ssim": ssim(image, reference, peak),
        "nmse": nmse(image, reference),
    }
