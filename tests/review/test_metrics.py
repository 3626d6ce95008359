from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from mrgen.review.metrics import best_scale, body, nmse, psnr, psnr_fit, scores, spread_scores, ssim


def pair(shape: tuple[int, ...] = (3, 40, 33)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    reference = rng.random(shape)
    return np.abs(0.9 * reference + 0.1 * rng.standard_normal(shape)), reference


def test_the_best_scale_is_the_least_squares_one():
    image, reference = pair()
    assert best_scale(2 * reference, reference) == pytest.approx(0.5)
    assert best_scale(0 * image, reference) == 0
    s = best_scale(image, reference)
    errors = [nmse(f * s * image, reference) for f in (0.99, 1, 1.01)]
    assert errors[1] == min(errors)


def test_closed_forms():
    _, reference = pair()
    reference = reference / reference.max()
    assert psnr(reference + 0.1, reference) == pytest.approx(20)
    assert psnr(reference + 0.1, reference, peak=10) == pytest.approx(40)
    assert nmse(1.5 * reference, reference) == pytest.approx(0.25)
    assert nmse(0 * reference, reference) == 1
    assert psnr(reference, reference) == np.inf
    assert psnr_fit(3 * reference, reference) > 300


def test_the_fitted_psnr_ignores_the_scale_and_is_never_lower():
    image, reference = pair()
    assert psnr_fit(7 * image, reference) == pytest.approx(psnr_fit(image, reference))
    assert psnr_fit(image, reference) >= psnr(image, reference)


def test_ssim_closed_forms():
    image, reference = pair()
    assert ssim(reference, reference) == pytest.approx(1)
    flat = np.ones((9, 9))
    assert ssim(0.5 * flat, flat) == pytest.approx((2 * 0.5 + 1e-4) / (1.25 + 1e-4))  # only the means differ
    # one 7 x 7 window: the definition itself
    x, r = image[0, :7, :7], reference[0, :7, :7]
    c = np.cov(x.ravel(), r.ravel())
    c1, c2 = (0.01 * r.max()) ** 2, (0.03 * r.max()) ** 2
    means = (2 * x.mean() * r.mean() + c1) / (x.mean() ** 2 + r.mean() ** 2 + c1)
    assert ssim(x, r) == pytest.approx(means * (2 * c[0, 1] + c2) / (c[0, 0] + c[1, 1] + c2))


def test_a_volume_pools_its_slices():
    image, reference = pair()
    peak = reference.max()
    assert ssim(image, reference) == pytest.approx(
        np.mean([ssim(x, r, peak) for x, r in zip(image, reference, strict=True)])
    )
    assert 10 ** (-psnr(image, reference) / 10) == pytest.approx(
        np.mean([10 ** (-psnr(x, r, peak) / 10) for x, r in zip(image, reference, strict=True)])
    )


def test_shapes_that_do_not_fit_are_refused():
    image, reference = pair()
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(image[:1], reference)
    with pytest.raises(ValueError, match="expected 7 x 7 or more"):
        ssim(image[0, :6], reference[0, :6])


def test_the_arguments_keep_their_values():
    image, reference = pair()
    kept = image.copy(), reference.copy()
    scores(image, reference)
    assert np.array_equal(image, kept[0])
    assert np.array_equal(reference, kept[1])


def test_the_figures_after_the_fit_are_those_of_the_fitted_image():
    image, reference = pair()
    figures = scores(3 * image, reference, peak=2.0)
    fitted = best_scale(image, reference) * image
    assert list(figures) == ["psnr", "ssim", "nmse", "psnr_fit", "ssim_fit", "nmse_fit"]
    assert figures["psnr_fit"] == pytest.approx(psnr(fitted, reference, peak=2.0))
    assert figures["ssim_fit"] == pytest.approx(ssim(fitted, reference, peak=2.0))
    assert figures["nmse_fit"] == pytest.approx(nmse(fitted, reference))
    assert figures["nmse"] == nmse(3 * image, reference)
    # the residual of a least-squares fit is orthogonal to the image
    power = (image * reference).sum() ** 2 / ((image**2).sum() * (reference**2).sum())
    assert figures["nmse_fit"] == pytest.approx(1 - power)


def test_a_slices_own_maximum_would_cost_its_psnr_the_ratio_of_the_maxima():
    image, reference = pair()
    image[1], reference[1] = image[1] / 10, reference[1] / 10
    lost = 20 * np.log10(reference.max() / reference[1].max())
    assert lost == pytest.approx(20, abs=0.1)
    assert psnr(image[1], reference[1], reference.max()) - psnr(image[1], reference[1]) == pytest.approx(lost)
    assert ssim(image[1], reference[1]) < ssim(image[1], reference[1], reference.max())


def test_a_reference_without_a_data_range_is_refused():
    image = np.ones((9, 9))
    for figure in (psnr, ssim, psnr_fit, scores):
        with pytest.raises(ValueError, match="data range is 0"):
            figure(image, 0 * image)
    with pytest.raises(ValueError, match="all zeros"):
        nmse(image, 0 * image)


def test_the_body_is_above_a_tenth_of_the_99th_percentile():
    reference = np.zeros((1, 10, 100))
    reference[0, 0] = np.linspace(0.01, 1, 100)  # one pixel in ten: the 99th percentile is 0.9, but for interpolation
    assert np.percentile(reference, 99) == pytest.approx(0.9, abs=0.01)
    assert np.array_equal(body(reference), reference > 0.0902)


def test_the_coverage_counts_the_bodys_pixels_within_the_spread():
    reference = np.zeros((2, 10, 10))
    reference[:, :5] = 1.0
    std = np.full_like(reference, 0.1)
    image = reference.copy()
    image[:, :4] += 0.16  # within 1.645 std
    image[:, 4] -= 0.17  # outside it
    image[:, 5:] += 9  # not in the body
    figures = spread_scores(image, std, reference)
    assert figures["body"] == 0.5
    assert figures["coverage"] == pytest.approx(0.8)
    assert np.isnan(figures["rank_correlation"])  # this std has no order
    assert spread_scores(image, 0.17 / 1.645 * np.ones_like(std) + 1e-9, reference)["coverage"] == 1


def test_a_gaussian_error_of_the_given_std_is_covered_to_90_percent():
    rng = np.random.default_rng(1)
    reference, std = np.full((4, 100, 100), 5.0), 0.1 + rng.random((4, 100, 100))
    image = reference + std * rng.standard_normal(std.shape)
    assert spread_scores(image, std, reference)["coverage"] == pytest.approx(0.9, abs=0.005)


def test_the_rank_correlation_is_spearmans_over_the_body():
    rng = np.random.default_rng(2)
    reference = np.ones((2, 12, 9))
    reference[:, :2] = 0
    error, std = rng.standard_normal(reference.shape), rng.random(reference.shape).round(1)  # with ties
    figures = spread_scores(reference + error, std, reference)
    expected = spearmanr(abs(error[:, 2:]).ravel(), std[:, 2:].ravel()).statistic
    assert figures["rank_correlation"] == pytest.approx(expected)
    assert spread_scores(reference + error, np.exp(abs(error)), reference)["rank_correlation"] == pytest.approx(1)
    with pytest.raises(ValueError, match="no pixel above"):
        spread_scores(error, std, 0 * reference)


@settings(max_examples=60, deadline=None)
@given(
    slices=st.integers(1, 4),
    height=st.integers(7, 33),
    width=st.integers(7, 33),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-6, 6),
    scale=st.floats(0.5, 1.5),
    signed=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_the_figures_agree_with_fastmri(slices, height, width, seed, exponent, scale, signed, dtype):
    evaluate = pytest.importorskip("fastmri.evaluate", reason="fastmri is not installed")
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((slices, height, width)) if signed else rng.random((slices, height, width))
    image = scale * reference + 0.1 * rng.standard_normal(reference.shape)
    image, reference = ((10.0**exponent * a).astype(dtype) for a in (image, reference))

    assert psnr(image, reference) == pytest.approx(evaluate.psnr(reference, image), abs=1e-6)
    assert nmse(image, reference) == pytest.approx(evaluate.nmse(reference, image).item(), abs=1e-6)
    assert ssim(image, reference) == pytest.approx(evaluate.ssim(reference, image).item(), abs=1e-6)
    peak, i = reference.max(), slices - 1
    assert psnr(image[i], reference[i], peak) == pytest.approx(evaluate.psnr(reference[i], image[i], peak), abs=1e-6)
    assert ssim(image[i], reference[i], peak) == pytest.approx(
        evaluate.ssim(reference[i:], image[i:], peak).item(), abs=1e-6
    )


def test_single_precision_costs_fastmri_digits_but_not_us():
    evaluate = pytest.importorskip("fastmri.evaluate", reason="fastmri is not installed")
    image, reference = ((1 + 1e-3 * a).astype(np.float32) for a in pair((3, 65, 71)))  # bright and flat
    exact = evaluate.ssim(reference.astype(float), image.astype(float)).item()
    assert ssim(image, reference) == pytest.approx(exact, abs=1e-12)
    assert evaluate.ssim(reference, image).item() != pytest.approx(exact, abs=1e-8)
