"""How far a set of images is from another as a whole, such as samples of a prior from images of held-out people.

Two images of the sets need not be alike; what is compared is how local patterns are distributed, scale by scale. A
Laplacian pyramid (Burt and Adelson 1983, doi 10.1109/TCOM.1983.1095851) splits an image into bands, with G a binomial
filter of 5 x 5 taps that reflects at the edge, and v, ^ taking every other pixel and putting zeros between (times 4):

    g_0 = image,   g_l+1 = (G g_l) v,   band l = g_l - G (g_l+1 ^),   the last band = the last g

Of each band come patches of 7 x 7 pixels as points in R^49, divided by the std of that band of the reference. Their
distance is the sliced Wasserstein distance of order 1 (Rabin et al. 2011; for samples of generative models Karras et
al., arXiv 1710.10196, section 5), the mean over random directions theta on the sphere of

    W_1 of the projections = integral |F(v) - F_ref(v)| dv

with F the distribution function of theta . patch. In contrast to Karras et al. each set is not normalised by itself, so
brightness and contrast count. Gaussians of equal covariance whose means differ by m are at a distance of
|m| Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) in R^d. Two finite sets of one distribution are at a distance above 0,
which rises as they get smaller: compare figures of sets of one size, beside that floor.

The magnitude images are taken as they are, in one unit for both sets. Phase is not seen.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from mrgen.review.metrics import Array
from mrgen.scans.heads import radial_power

PATCH, PATCHES, DIRECTIONS = 7, 1024, 64  # pixels; of each band of an image; on the sphere
TAPS = np.array([1, 4, 6, 4, 1]) / 16
Double = NDArray[np.float64]


def _blur(images: Double) -> Double:
    """G of images (n, y, x)."""
    for axis in (1, 2):
        images = correlate1d(images, TAPS, axis=axis, mode="mirror")
    return images


def laplacian_pyramid(images: Array, bands: int) -> list[Double]:
    """`bands` bands of real images (n, y, x), the finest first; each has half the pixels of the one before, per axis.

    Raises ValueError where the last one would be smaller than a patch.
    """
    coarsest = [-(-n // 2 ** (bands - 1)) for n in images.shape[1:]]
    if min(coarsest) < PATCH:
        size = " x ".join(map(str, images.shape[1:]))
        raise ValueError(f"expected images large enough for {bands} bands of {PATCH} pixels or more, found {size}")
    pyramid, now = [], images.astype(np.float64)
    for _ in range(bands - 1):
        smaller = _blur(now)[:, ::2, ::2]
        spread = np.zeros_like(now)
        spread[:, ::2, ::2] = 4 * smaller
        pyramid.append(now - _blur(spread))
        now = smaller
    return [*pyramid, now]


def _patches(band: Double, rng: np.random.Generator) -> Double:
    """PATCHES patches of each image of a band (n, y, x), anywhere inside it, (n * PATCHES, PATCH^2)."""
    n, n_y, n_x = band.shape
    y, x = (rng.integers(size - PATCH + 1, size=(n, PATCHES, 1, 1)) for size in (n_y, n_x))
    offset, image = np.arange(PATCH), np.arange(n)[:, None, None, None]
    patches: Double = band[image, y + offset[:, None], x + offset].reshape(n * PATCHES, PATCH**2)
    return patches


def sliced_wasserstein(points: Double, reference: Double, directions: Double, weights: Double | None = None) -> Double:
    """The distance of points (n, d) from `reference` (m, d), the mean over unit `directions` (k, d).

    Exact for any n and m: the distribution functions are those of the points. With `weights` (b, n) of the points,
    whose rows sum to 1, it is one of each row, (b,); without, an array of shape ().
    """
    own = np.full((1, len(points)), 1 / len(points)) if weights is None else weights
    signed = np.hstack([own, np.full((len(own), len(reference)), -1 / len(reference))])
    total = np.zeros(len(own))
    for value in directions @ np.concatenate([points, reference]).T:
        order = np.argsort(value)
        total += np.abs(signed[:, order].cumsum(axis=1)[:, :-1]) @ np.diff(value[order])
    distance: Double = total / len(directions)
    return distance.squeeze() if weights is None else distance


def patch_distance(
    images: Array, reference: Array, bands: int = 4, weights: Double | None = None, seed: int = 0
) -> Double:
    """The distance of magnitude images (n, y, x) from `reference` (m, y, x) as above, by band, (bands,).

    In units of the std of the reference's band. Patches and directions are chosen by `seed`, at the same places in both
    sets. With `weights` (b, n) of the images, whose rows sum to 1, it is (b, bands): counts / n of a bootstrap, say.
    Raises ValueError where the sets differ in matrix or are too small for so many bands.
    """
    if images.shape[1:] != reference.shape[1:]:
        raise ValueError(f"images {images.shape} and reference {reference.shape} differ in their matrix")
    of_patches = None if weights is None else np.repeat(weights, PATCHES, axis=1) / PATCHES
    distances = []
    both = (laplacian_pyramid(each, bands) for each in (images, reference))
    for number, (band, of_reference) in enumerate(zip(*both, strict=True)):
        key = (seed, number)
        points, known = (
            _patches(each, np.random.default_rng(key)) / of_reference.std() for each in (band, of_reference)
        )
        directions = np.random.default_rng((*key, 0)).standard_normal((DIRECTIONS, PATCH**2))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        distances.append(sliced_wasserstein(points, known, directions, of_patches))
    return np.stack(distances, axis=-1)


def spectrum_ratio(images: Array, reference: Array, rings: int = 10) -> Double:
    """Mean k-space power of images (n, y, x) over that of `reference` (m, y, x), dB, (rings + 1,).

    In rings at |k| = 0, 1 / rings, ... 1 of Nyquist. The sets may differ in their matrix.
    """
    power, known = (
        np.mean([radial_power(torch.tensor(image).float(), rings).numpy() for image in each], axis=0, dtype=np.float64)
        for each in (images, reference)
    )
    ratio: Double = 10 * np.log10(power / known)
    return ratio
