"""Image quality against a reference, in the definitions of fastmri.evaluate, and the spread's agreement with the error.

    NMSE = |x - r|^2 / |r|^2
    PSNR = 10 log10(peak^2 / mean |x - r|^2)
    SSIM = mean of (2 m_x m_r + C1)(2 c_xr + C2) / ((m_x^2 + m_r^2 + C1)(v_x + v_r + C2)),  C_i = (K_i peak)^2

with means m over 7 x 7 windows that lie inside the image, sample (co)variances v and c, K = (0.01, 0.03)
(Wang et al. 2004). All take images (y, x) or volumes (slice, y, x) as real arrays of one shape and compute in double
precision; the figure of a volume pools its slices (SSIM: their mean). `peak`, the data range, is the maximum of the
reference volume, or, where it is not given, of the `reference` given. With each slice's own maximum instead, a slice
whose maximum is lower by a factor f would lose 20 log10(f) dB of PSNR, and its SSIM would have smaller constants C.

The best scalar fit, s = <x, r> / |x|^2, removes the one ambiguity that a reconstruction's scale has; figures of s x are
named `_fit` wherever they appear, and psnr_fit is the project's headline figure.

    body = pixels where r > 10 % of its 99th percentile
    coverage = share of the body where |x - r| <= 1.645 std, 90 % for Gaussian errors of that std
    rank correlation, AUSE: of |x - r| and std in the body, as mrgen.review.uncertainty defines them
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # its parts, which are slow to import, load where they are first used
from numpy.typing import NDArray

from mrgen.review.uncertainty import ause, coverage, rank_correlation

Array = NDArray[np.floating[Any]]
WINDOW, K1, K2 = 7, 0.01, 0.03
BODY_FRACTION, BODY_PERCENTILE = 0.1, 99
HALF_WIDTH = 1.645  # in std; 90 % of a Gaussian


def _double(image: Array, reference: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if image.shape != reference.shape:
        raise ValueError(f"image {image.shape} and reference {reference.shape} differ in shape")
    return image.astype(np.float64), reference.astype(np.float64)


def _peak(reference: NDArray[np.float64], peak: float | None) -> float:
    top = float(reference.max() if peak is None else peak)  # a float32 peak would be squared in single precision
    if top == 0:
        raise ValueError("the data range is 0, expected a reference whose maximum is not: PSNR and SSIM need one")
    return top


def best_scale(image: Array, reference: Array) -> float:
    """The scalar s that minimises |s image - reference|^2; 0 for an image of zeros."""
    x, r = _double(image, reference)
    power = float((x * x).sum())
    return float((x * r).sum()) / power if power > 0 else 0.0


def nmse(image: Array, reference: Array) -> float:
    """Squared error over the power of the reference; ValueError for a reference of zeros."""
    x, r = _double(image, reference)
    power = float((r * r).sum())
    if power == 0:
        raise ValueError("the reference is all zeros, expected an image: NMSE divides by its power")
    return float(((x - r) ** 2).sum()) / power


def psnr(image: Array, reference: Array, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio, dB; infinite where image and reference agree exactly. ValueError for a peak of 0."""
    x, r = _double(image, reference)
    top, error = _peak(r, peak), float(((x - r) ** 2).mean())
    return float(10 * np.log10(top**2 / error)) if error > 0 else float("inf")


def psnr_fit(image: Array, reference: Array, peak: float | None = None) -> float:
    """PSNR, dB, after the best scalar fit of the image to the reference."""
    return psnr(best_scale(image, reference) * image.astype(np.float64), reference, peak)


def ssim(image: Array, reference: Array, peak: float | None = None) -> float:
    """Mean structural similarity; ValueError for a side shorter than the 7-pixel window and for a peak of 0."""
    if min(image.shape[-2:]) < WINDOW:
        height, width = image.shape[-2:]
        raise ValueError(f"the image is {height} x {width}, expected {WINDOW} x {WINDOW} or more for SSIM")
    x, r = _double(image, reference)
    top = _peak(r, peak)
    if image.ndim > 2:  # slice by slice, as what follows needs much memory
        return float(np.mean([ssim(*both, top) for both in zip(image, reference, strict=True)]))
    c1, c2 = (K1 * top) ** 2, (K2 * top) ** 2

    def mean(a: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = slice(WINDOW // 2, -(WINDOW // 2))
        filtered: NDArray[np.float64] = scipy.ndimage.uniform_filter(a, size=WINDOW, axes=(-2, -1))[..., inside, inside]
        return filtered

    m_x, m_r = mean(x), mean(r)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    v_x, v_r, c_xr = (sample * (mean(p) - m) for p, m in ((x * x, m_x**2), (r * r, m_r**2), (x * r, m_x * m_r)))
    similarity = (2 * m_x * m_r + c1) * (2 * c_xr + c2) / ((m_x**2 + m_r**2 + c1) * (v_x + v_r + c2))
    return float(similarity.mean())


def scores(image: Array, reference: Array, peak: float | None = None) -> dict[str, float]:
    """psnr (dB), ssim and nmse as they are, and the three after the best scalar fit: psnr_fit, ssim_fit, nmse_fit."""
    fitted = best_scale(image, reference) * image.astype(np.float64)
    return {
        name + suffix: value
        for suffix, x in (("", image), ("_fit", fitted))
        for name, value in (
            ("psnr", psnr(x, reference, peak)),
            ("ssim", ssim(x, reference, peak)),
            ("nmse", nmse(x, reference)),
        )
    }


def body(reference: Array) -> NDArray[np.bool_]:
    """Where the object is, of the reference's shape: above 10 % of the 99th percentile of the reference."""
    inside: NDArray[np.bool_] = reference > BODY_FRACTION * np.percentile(reference, BODY_PERCENTILE)
    return inside


def spread_scores(image: Array, std: Array, reference: Array) -> dict[str, float]:
    """How the std of posterior samples goes with the error of their mean, in the body of the reference.

    body: its share of the pixels. coverage: share of the body with |image - reference| <= 1.645 std. rank_correlation:
    Spearman's, of error and std; NaN where one of the two is constant. ause: area under the sparsification error, NaN
    where the error is zero. ValueError for an empty body.
    """
    x, r = _double(image, reference)
    s, _ = _double(std, reference)
    inside = body(r)
    if not inside.any():
        raise ValueError("the reference has no pixel above 10 % of its 99th percentile, expected an image")
    error, s = np.abs(x - r)[inside], s[inside]
    return {
        "body": float(inside.mean()),
        "coverage": coverage(error, s, HALF_WIDTH),
        "rank_correlation": rank_correlation(error, s),
        "ause": ause(error, s) if error.any() else float("nan"),
    }
