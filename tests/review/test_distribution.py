"""Distances of sets of images: closed forms, what raises them, and the floor of a finite set."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.review.distribution import Double, laplacian_pyramid, patch_distance, sliced_wasserstein, spectrum_ratio
from mrgen.scans.phantom import head_phantom, phantom_kspace

SHAPE = (80, 72)
RADIUS = (grid(SHAPE)[0].square() + grid(SHAPE)[1].square()).sqrt()  # |k| over Nyquist


@pytest.fixture(scope="module")
def heads() -> Double:
    """24 heads, each of another anatomy and height."""
    one = [
        ifft2c(phantom_kspace(head_phantom(torch.Generator().manual_seed(n)), 0.06 * (n % 5 - 2), SHAPE)).abs().numpy()
        for n in range(24)
    ]
    return np.stack(one)


def directions(count: int, d: int) -> Double:
    drawn = np.random.default_rng(9).standard_normal((count, d))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def filtered(images: Double, gain: torch.Tensor) -> Double:
    return ifft2c(gain * fft2c(torch.from_numpy(images) + 0j)).real.numpy()


def blurred(images: Double, width: float) -> Double:
    return filtered(images, torch.exp(-width * RADIUS.square()))


def noisy(images: Double, sigma: float) -> Double:
    noise = np.random.default_rng(5).standard_normal((2, *images.shape)) / math.sqrt(2)
    return np.abs(images + sigma * (noise[0] + 1j * noise[1]))


def test_it_is_the_distance_of_each_projection() -> None:
    rng = np.random.default_rng(0)
    a, b, weights = rng.standard_normal((40, 5)), rng.standard_normal((31, 5)), rng.random((2, 40))
    theta, weights = directions(6, 5), weights / weights.sum(1, keepdims=True)
    plain = sum(wasserstein_distance(a @ t, b @ t) for t in theta) / 6
    assert float(sliced_wasserstein(a, b, theta)) == pytest.approx(plain, rel=1e-12)
    for row, found in zip(weights, sliced_wasserstein(a, b, theta, weights), strict=True):
        each = [wasserstein_distance(a @ t, b @ t, row) for t in theta]
        assert found == pytest.approx(sum(each) / 6, rel=1e-12)


@pytest.mark.parametrize("d", [2, 49])
def test_shifted_gaussians_have_the_closed_form(d: int) -> None:
    rng = np.random.default_rng(1)
    points, other, shift = rng.standard_normal((3000, d)), rng.standard_normal((3000, d)), np.linspace(0, 3, d)
    closed = np.linalg.norm(shift) * math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
    theta = directions(1000, d)  # of |cos| the standard error is below 2.5 % of its mean
    assert float(sliced_wasserstein(points + shift, points, theta)) == pytest.approx(closed, rel=0.06)
    assert float(sliced_wasserstein(other + shift, points, theta)) == pytest.approx(closed, rel=0.06)


def test_patches_of_brighter_noise_have_the_closed_form() -> None:
    """A shift by m of every pixel is one by 7 m of a patch, in units of the reference's std."""
    noise = 3 * np.random.default_rng(2).standard_normal((4, 64, 64))
    closed = 7 * 0.5 * math.exp(math.lgamma(49 / 2) - math.lgamma(50 / 2)) / math.sqrt(math.pi)
    found = patch_distance(noise + 1.5, noise, 1)
    assert float(found[0]) == pytest.approx(closed, rel=0.3)  # 3 standard errors of 64 directions


def test_a_band_holds_what_the_coarser_ones_miss() -> None:
    """A constant is in the last band alone, a checkerboard in the first."""
    flat = np.full((1, 37, 30), 2.5)
    *fine, last = laplacian_pyramid(flat, 3)
    assert [band.shape[1:] for band in (*fine, last)] == [(37, 30), (19, 15), (10, 8)]
    assert all(np.abs(band[:, 3:-4, 3:-4]).max() < 1e-12 for band in fine)
    np.testing.assert_allclose(last, 2.5)
    board = (1.0 - 2 * (np.indices((36, 28)).sum(0) % 2))[None]
    first, *coarse = laplacian_pyramid(board, 3)
    np.testing.assert_allclose(first[:, 4:-4, 4:-4], board[:, 4:-4, 4:-4], atol=1e-12)
    assert all(np.abs(band).max() < 1e-12 for band in coarse)


def test_identical_sets_are_at_no_distance(heads: Double) -> None:
    assert (patch_distance(heads, heads, 3) < 1e-12).all()
    assert np.abs(spectrum_ratio(heads, heads)).max() == 0


@pytest.mark.parametrize(("spoil", "amounts"), [(blurred, (0.3, 1.0, 3.0)), (noisy, (0.03, 0.1, 0.3))])
def test_it_rises_with_blur_and_with_noise(heads: Double, spoil, amounts: tuple[float, ...]) -> None:
    known = heads[::3]
    found = [patch_distance(spoil(known, amount), known, 2) for amount in (0, *amounts)]
    assert (np.diff(found, axis=0) > 0).all()
    assert found[-1][0] > 3 * patch_distance(heads[1::3], known, 2)[0]


def test_two_halves_of_one_set_are_the_floor(heads: Double) -> None:
    """Other brightness is above it; it is larger for smaller sets, and much the same with other patches."""
    floor = patch_distance(heads[::2], heads[1::2], 3)
    assert (floor > 0).all()
    assert patch_distance(1.5 * heads[::2], heads[1::2], 3)[-1] > 1.5 * floor[-1]
    assert (patch_distance(heads[:3], heads[12:15], 3) > floor).all()
    np.testing.assert_allclose(patch_distance(heads[::2], heads[1::2], 3, seed=1), floor, rtol=0.4)


def test_weights_choose_images(heads: Double) -> None:
    """Half of them twice as bright: those that weigh nothing might as well not be there."""
    both, weights = np.concatenate([heads[:3], 2 * heads[3:6]]), np.array([[1, 1, 1, 1, 1, 1], [2, 2, 2, 0, 0, 0]]) / 6
    plain, chosen = patch_distance(both, heads[6:12], 2, weights)
    np.testing.assert_allclose(plain, patch_distance(both, heads[6:12], 2))
    other_patches = np.concatenate([heads[:3], heads[:3]])
    np.testing.assert_allclose(chosen, patch_distance(other_patches, heads[6:12], 2), rtol=0.3)
    assert (plain > 2 * chosen).all()


def test_the_unit_is_that_of_the_reference(heads: Double) -> None:
    once = patch_distance(heads[:4], heads[8:12], 2)
    np.testing.assert_allclose(patch_distance(5 * heads[:4], 5 * heads[8:12], 2), once)


def test_spectra_are_compared_ring_by_ring(heads: Double) -> None:
    np.testing.assert_allclose(spectrum_ratio(2 * heads, heads), 20 * math.log10(2), rtol=1e-5)
    halved = filtered(heads, torch.where(RADIUS > 0.55, 0.5, 1.0))
    expected = [0.0] * 6 + [-20 * math.log10(2)] * 5
    np.testing.assert_allclose(spectrum_ratio(halved, heads), expected, atol=0.05)


def test_other_matrices_and_small_images_are_refused(heads: Double) -> None:
    with pytest.raises(ValueError, match="differ in their matrix"):
        patch_distance(heads[:, 1:], heads)
    with pytest.raises(ValueError, match=r"5 bands .* found 80 x 72"):
        patch_distance(heads, heads, 5)
