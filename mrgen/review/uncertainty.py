"""How well a spread s (std of n posterior samples) tells the size of the error e = |m - r| of their mean m.

All arrays are errors and spreads of the same pixels, real and of one shape; which pixels, the caller says.

    coverage           share of the pixels with e <= q s
    rank correlation   Spearman's, of e and s
    AUSE               area under the sparsification error (Ilg et al., ECCV 2018, arXiv 1802.07095). Of the mean error
                       of the pixels that are left when a share f of them, those of largest s, is taken out, less the
                       same with those of largest e taken out, as a multiple of the mean error of all: its mean over f.
                       0 for a spread that ranks the pixels as the error does.

Chance bounds the last two: of a pixel whose spread is right, e = s |z| for a normal z, and |z| varies more than s does.
Ranks of exact samples, each held against the others, tell what is to be expected. What a region's spread says of the
region's error is told with local rms values in place of e and s, in which chance averages out.

Sampling error. Of Gaussian pixels the std of n samples is off by 1 / sqrt(2 (n - 1)) of itself and their mean by
s / sqrt(n). So were the samples exact and Gaussian, r - m would be s sqrt(1 + 1/n) t with Student's t of n - 1 degrees
of freedom, and the interval of coverage c is m +- q s with q = t_{n-1}((1 + c) / 2) sqrt(1 + 1/n): 2.01 for n = 8 and
c = 0.9, which tends to the 1.645 of a Gaussian for many samples. Of antithetic pairs (mrgen.posterior.antithetic) that
cancel in the mean, n / 2 squares tell the std, so that it is off by 1 / sqrt(n), and q = t_{n/2}((1 + c) / 2): 2.13.

Calibration. The factor is the q that would have covered a share c of the pixels of K fully sampled scans, each of which
counts alike:

    q = min { q : 1/K sum_k F_k(q) >= c },    F_k(q) = share of scan k's pixels with e <= q s

The pixels of a scan are not exchangeable with those of another, but scans are, if they come alike. Then conformal risk
control (Angelopoulos et al., ICLR 2024, arXiv 2208.02814, theorem 1) with the loss 1 - F_k, monotone and at most 1,
holds for the next scan, on average over it and over the K:

    E F_{K+1}(q) >= c K / (K + 1)

and to ask for c (K + 1) / K instead of c guarantees c. In the form of Lee, Barber and Willett (arXiv 2306.06342) this
is split conformal prediction of a pixel, drawn at random, of the next scan. It says nothing of a particular pixel,
region or patient, and nothing of scans of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy  # its parts, which are slow to import, load where they are first used
from numpy.typing import NDArray

Values = NDArray[np.floating[Any]]


def relative_error(error: Values, spread: Values) -> Values:
    """e / s; where both are 0 it is 0, and where s alone is, infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Values = np.where(error > 0, error / spread, 0.0)
    return ratio


def coverage(error: Values, spread: Values, factor: float) -> float:
    """Share of the pixels with error <= factor * spread."""
    return float((error <= factor * spread).mean())


def _ranks(values: Values) -> Values:
    """1 to N by rising value, (N,); equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Values = (np.cumsum(counts) - (counts - 1) / 2)[which.ravel()]
    return ranks


def rank_correlation(error: Values, spread: Values) -> float:
    """Spearman's; NaN where one of the two is constant."""
    ranks = _ranks(error), _ranks(spread)
    constant = any(np.ptp(rank) == 0 for rank in ranks)
    return float("nan") if constant else float(np.corrcoef(*ranks)[0, 1])


def local_rms(values: Values, inside: NDArray[np.bool_], width: float) -> Values:
    """Root of the mean square over the pixels `inside` (y, x) that are near, weighted by a Gaussian of std `width`.

    `values` is (y, x); the result holds the pixels inside, (N,). `width` is in pixels.
    """
    weights = scipy.ndimage.gaussian_filter(inside.astype(np.float64), width)
    total = scipy.ndimage.gaussian_filter(np.where(inside, values, 0).astype(np.float64) ** 2, width)
    rms: Values = np.sqrt(total[inside] / weights[inside])
    return rms


def sparsification(error: Values, order: Values) -> Values:
    """Mean error of what is left when 0, 1, ... N - 1 pixels of largest `order` are out, over that of all, (N,)."""
    kept = error.ravel()[np.argsort(order, axis=None, kind="stable")].astype(np.float64)
    means = (np.cumsum(kept) / np.arange(1, kept.size + 1))[::-1]
    relative: Values = means / means[0]
    return relative


def ause(error: Values, spread: Values) -> float:
    """Area under the sparsification error; ValueError for errors that are all zero."""
    if not error.any():
        raise ValueError("the error is zero everywhere, expected an image that differs from its reference")
    return float((sparsification(error, spread) - sparsification(error, error)).mean())


def freedom(n: int, antithetic: bool) -> int:
    """Degrees of freedom of the std of n Gaussian samples."""
    return n // 2 if antithetic else n - 1


def std_sampling_error(n: int, antithetic: bool) -> float:
    """Relative standard error of the std of n Gaussian samples."""
    return float(1 / np.sqrt(2 * freedom(n, antithetic)))


def exact_factor(n: int, share: float, antithetic: bool) -> float:
    """q of the interval that covers `share` if the n samples are exact draws of a Gaussian posterior."""
    # scipy.stats has it too, and takes a second to import
    of_mean = 0 if antithetic else 1 / n
    return float(scipy.special.stdtrit(freedom(n, antithetic), (1 + share) / 2) * np.sqrt(1 + of_mean))


def calibrated_factor(scores: Sequence[Values], share: float) -> float:
    """The smallest q for which the mean over scans of the share of `scores` e / s below q is at least `share`.

    `scores` holds an array for each scan. Raises ValueError without a scan or for a scan without pixels, and where no
    finite factor is enough because s is 0.
    """
    if not scores or not all(s.size for s in scores):
        raise ValueError("expected at least one scan, and pixels in each")
    values = np.concatenate([np.ravel(s) for s in scores])
    weights = np.concatenate([np.full(s.size, 1 / (len(scores) * s.size)) for s in scores])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    # rounding of the sum must not ask for one pixel more
    first = min(int(np.searchsorted(reached, share - 1e-12)), values.size - 1)
    factor = float(values[order][first])
    if not np.isfinite(factor):
        raise ValueError("the spread is 0 in too many pixels, expected samples that differ")
    return factor


def guaranteed_coverage(share: float, scans: int) -> float:
    """share K / (K + 1), what a factor fitted to `share` on K scans covers of the next one at least, on average."""
    return share * scans / (scans + 1)


def without_one(scores: Sequence[Values], share: float) -> list[float]:
    """The coverage of each scan by the factor of all others; ValueError for fewer than two scans."""
    if len(scores) < 2:
        raise ValueError("expected two scans at least, to leave one out")
    factors = [calibrated_factor([*scores[:k], *scores[k + 1 :]], share) for k in range(len(scores))]
    return [float((own <= factor).mean()) for own, factor in zip(scores, factors, strict=True)]


def quantiles(samples: Values, share: float) -> tuple[Values, Values] | None:
    """The (1 - share) / 2 and (1 + share) / 2 quantiles over the first axis, None where n is too small to have them.

    Of quantiles at p (n + 1), "Weibull" ones, so that a new sample falls between the two with probability `share`
    (Hyndman and Fan 1996, definition 6); that takes p (n + 1) >= 1, 19 samples for 90 %. Of antithetic pairs nearly so.
    """
    low = (1 - share) / 2
    if low * (len(samples) + 1) < 1 - 1e-9:
        return None
    lower, upper = np.quantile(samples, (low, 1 - low), axis=0, method="weibull")
    return lower, upper
