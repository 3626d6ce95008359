from __future__ import annotations

import numpy as np
import pytest

from mrgen.review.metrics import best_scale, nmse, psnr, psnr_fit, scores, ssim


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
    with pytest.raises(ValueError, match="at least 7 x 7"):
        ssim(image[0, :6], reference[0, :6])


def test_the_arguments_keep_their_values():
    image, reference = pair()
    kept = image.copy(), reference.copy()
    scores(image, reference)
    assert np.array_equal(image, kept[0])
    assert np.array_equal(reference, kept[1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_figures_agree_with_fastmri(dtype):
    pytest.importorskip("skimage")
    pytest.importorskip("runstats")
    evaluate = pytest.importorskip("fastmri.evaluate")
    image, reference = (a.astype(dtype) for a in pair())
    exact = image.astype(float), reference.astype(float)  # fastmri itself rounds in single precision
    assert psnr(image, reference) == pytest.approx(evaluate.psnr(exact[1], exact[0]), abs=1e-6)
    assert nmse(image, reference) == pytest.approx(evaluate.nmse(exact[1], exact[0]).item(), abs=1e-6)
    assert ssim(image, reference) == pytest.approx(evaluate.ssim(exact[1], exact[0]).item(), abs=1e-6)
