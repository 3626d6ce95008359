from __future__ import annotations

import numpy as np
import pytest

from mrgen.errors import MrgenError
from mrgen.review.flag import SMALLEST, check_threshold, rule, uncertain_regions


def slices(count: int = 1, shape: tuple[int, int] = (20, 30)) -> tuple[np.ndarray, np.ndarray]:
    """A narrow interval and an even image."""
    return np.full((count, *shape), 0.05), np.ones((count, *shape))


def test_a_wide_region_is_flagged_where_it_is():
    interval, image = slices(2)
    interval[1, 3:6, 20:27] = 0.3
    expected = np.zeros(image.shape, bool)
    expected[1, 3:6, 20:27] = True
    assert np.array_equal(uncertain_regions(interval, image, 0.2), expected)
    assert not uncertain_regions(interval, image, 0.3).any()  # not above it
    assert uncertain_regions(interval, image, 0.04).all()


def test_each_slice_has_its_own_brightest_tissue():
    interval, image = slices(2)
    image[1] *= 5
    interval[:, 3:6, 20:27] = 0.3
    assert uncertain_regions(interval, image, 0.2).any(axis=(1, 2)).tolist() == [True, False]
    image[0, 0, 0] = 1000  # a single bright pixel is no scale
    assert uncertain_regions(interval, image, 0.2)[0].sum() == 21


def test_nothing_outside_the_body_is_flagged():
    interval, image = slices()
    interval += 1
    image[0, :, :10] = 0.1  # of the brightest tissue, as docs and segment say
    image[0, :, 10:12] = 0.11
    assert uncertain_regions(interval, image, 0.2).any(axis=(0, 1)).tolist() == [False] * 10 + [True] * 20


def test_specks_are_no_regions():
    interval, image = slices()
    interval[0, 2:4, 2:6] = 0.3  # 8 pixels
    interval[0, 10:12, 2:6] = 0.3
    interval[0, 12, 6] = 0.3  # the ninth, at a corner
    mask = uncertain_regions(interval, image, 0.2)
    assert SMALLEST == 9
    assert (mask.sum(), mask[0, 10:13].sum()) == (9, 9)


def test_regions_of_other_slices_do_not_count():
    interval, image = slices(2)
    interval[:, 2:4, 2:6] = 0.3  # 8 pixels in each
    assert not uncertain_regions(interval, image, 0.2).any()


def test_an_empty_image_has_no_regions():
    assert not uncertain_regions(*np.zeros((2, 1, 5, 5)), 0.2).any()


@pytest.mark.parametrize("threshold", [0, 1, -0.1, float("nan")])
def test_a_threshold_is_a_share(threshold):
    with pytest.raises(MrgenError, match=r"--flag \S+: expected a share of the brightest tissue between 0 and 1"):
        check_threshold(threshold)


def test_the_rule_is_said_with_its_figures():
    assert rule(0.15).startswith("half-width of the calibrated interval above 0.15 x the slice's 99th percentile")
    assert "above 0.1 x that percentile" in rule(0.15)
    assert "9 pixels or more" in rule(0.15)
