"""Coverage, ranking and calibration of spreads against closed forms, scipy, and simulated calibrations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm, spearmanr
from scipy.stats import t as student

from mrgen.posterior.antithetic import moments
from mrgen.review.uncertainty import (
    ause,
    calibrated_factor,
    coverage,
    exact_factor,
    guaranteed_coverage,
    local_rms,
    quantiles,
    rank_correlation,
    relative_error,
    sparsification,
    std_sampling_error,
    without_one,
)

RNG = np.random.default_rng


def test_gaussian_errors_need_1645_and_heavy_tails_more():
    error = abs(RNG(0).standard_normal((5, 40_000)))
    assert calibrated_factor(list(error), 0.9) == pytest.approx(1.645, rel=0.01)
    assert calibrated_factor(list(error), 0.68) == pytest.approx(norm.ppf(0.84), rel=0.01)
    heavy = abs(RNG(0).standard_t(2, (5, 40_000)))
    assert calibrated_factor(list(heavy), 0.9) == pytest.approx(student.ppf(0.95, 2), rel=0.02)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_exact_samples_need_students_factor(n):
    rng = RNG(1)
    scale = np.exp(rng.standard_normal(100_000))  # any: the factor does not depend on it
    truth, samples = scale * rng.standard_normal(100_000), scale * rng.standard_normal((n, 100_000))
    error, std = abs(truth - samples.mean(0)), samples.std(0, ddof=1)
    assert coverage(error, std, exact_factor(n, 0.9, False)) == pytest.approx(0.9, abs=0.004)
    assert calibrated_factor([error / std], 0.9) == pytest.approx(exact_factor(n, 0.9, False), rel=0.015)


def test_the_factor_of_many_samples_is_the_gaussian_one():
    assert exact_factor(8, 0.9, False) == pytest.approx(2.0096, abs=1e-3)
    assert exact_factor(100_000, 0.9, False) == pytest.approx(1.6449, abs=1e-3)


def test_the_sampling_error_of_the_std_is_that_of_many_repetitions():
    std = RNG(2).standard_normal((8, 100_000)).std(0, ddof=1)
    assert std.std() / std.mean() == pytest.approx(std_sampling_error(8, False), rel=0.04)
    std = RNG(2).standard_normal((64, 20_000)).std(0, ddof=1)
    assert std.std() / std.mean() == pytest.approx(std_sampling_error(64, False), rel=0.03)


@pytest.mark.parametrize("n", [4, 8])
def test_antithetic_samples_need_students_factor_of_half_as_many(n):
    rng = RNG(3)
    truth, first = rng.standard_normal(100_000), rng.standard_normal((n // 2, 100_000))
    samples = torch.from_numpy(np.stack([first, -first], axis=1).reshape(n, -1))
    mean, variance, of_mean = (values.numpy() for values in moments(samples, True))
    assert abs(mean).max() < 1e-12
    assert abs(of_mean).max() < 1e-12
    std = np.sqrt(variance)
    assert coverage(abs(truth), std, exact_factor(n, 0.9, True)) == pytest.approx(0.9, abs=0.004)
    assert std.std() / std.mean() == pytest.approx(std_sampling_error(n, True), rel=0.2 if n == 4 else 0.08)


def test_scans_count_alike_whatever_their_size():
    small, large = np.linspace(0, 1, 101), np.linspace(10, 20, 100_001)
    assert calibrated_factor([small, large], 0.5) == pytest.approx(1, abs=0.02)
    assert calibrated_factor([small, large], 0.75) == pytest.approx(15, abs=0.02)


def test_the_factor_is_the_smallest_that_reaches_the_share():
    scores = [np.array([3.0, 1.0, 2.0, 5.0, 4.0])]
    assert [calibrated_factor(scores, share) for share in (0.2, 0.21, 0.4, 0.8, 1.0)] == [1, 2, 2, 4, 5]
    rising = [calibrated_factor([RNG(3).random(77), RNG(4).random(31) ** 2], c) for c in np.linspace(0.05, 1, 40)]
    assert np.all(np.diff(rising) >= 0)


def test_the_next_scan_is_covered_as_guaranteed():
    """Scans differ a lot from each other: the mean coverage of the next one lies between the bound and the share."""
    rng, scans, share = RNG(5), 6, 0.9
    covered = []
    for _ in range(600):
        difficulty = np.exp(rng.standard_normal(scans + 1))
        scores = [d * abs(rng.standard_normal(60)) for d in difficulty]
        covered.append((scores[-1] <= calibrated_factor(scores[:-1], share)).mean())
    mean, error = np.mean(covered), np.std(covered) / np.sqrt(len(covered))
    bound = guaranteed_coverage(share, scans)
    assert bound == pytest.approx(0.9 * 6 / 7)
    assert mean > bound - 2 * error
    assert mean < share  # the plain share is not reached: the bound is not idle


def test_the_guarantee_is_met_with_equality_by_one_pixel_a_scan():
    """Without ties the next of K + 1 exchangeable numbers is below the m-th smallest of the K others in m of K + 1."""
    rng, scans = RNG(6), 10
    draws = rng.random((20_000, scans + 1))
    factors = [calibrated_factor(list(row[:-1, None]), 0.9) for row in draws[:4000]]
    assert (draws[:4000, -1] <= factors).mean() == pytest.approx(guaranteed_coverage(0.9, scans), abs=0.02)


def test_leaving_one_out_takes_the_factor_of_the_others():
    scores = [np.linspace(0, s, 1001) for s in (1, 1, 2)]
    left = without_one(scores, 0.9)
    assert left[2] == pytest.approx(0.45, abs=2e-3)  # 0.9 of a scan that is twice as hard
    assert left[0] == left[1] == 1
    with pytest.raises(ValueError, match="two scans"):
        without_one(scores[:1], 0.9)


def test_what_cannot_be_calibrated_is_refused():
    for scores in ([], [np.array([1.0]), np.array([])]):
        with pytest.raises(ValueError, match="at least one scan"):
            calibrated_factor(scores, 0.9)
    error, spread = np.array([0.0, 1.0, 1.0]), np.array([0.0, 0.0, 2.0])
    assert relative_error(error, spread).tolist() == [0, np.inf, 0.5]
    assert calibrated_factor([relative_error(error, spread)], 0.6) == 0.5
    with pytest.raises(ValueError, match="spread is 0"):
        calibrated_factor([relative_error(error, spread)], 0.9)


def test_the_rank_correlation_is_spearmans():
    error, spread = RNG(7).random(500), RNG(8).random(500).round(1)
    assert rank_correlation(error, spread) == pytest.approx(spearmanr(error, spread).statistic)
    assert np.isnan(rank_correlation(error, np.ones(500)))


def test_local_rms_is_a_mean_over_the_pixels_inside():
    values, inside = RNG(11).standard_normal((40, 30)), np.ones((40, 30), bool)
    inside[:, 20:] = False
    values[:, 20:] = 1e6  # outside: not to be seen
    assert np.allclose(local_rms(np.where(inside, -3.0, 9.0), inside, 2), 3)
    wide = local_rms(values, inside, 200)
    assert np.allclose(wide, np.sqrt((values[:, :20] ** 2).mean()), rtol=0.01)
    assert np.allclose(local_rms(values, inside, 0.01), abs(values[inside]))


def test_chance_bounds_the_ranks_of_pixels_and_not_those_of_regions():
    """A right spread that varies by exp(0.3 N) over smooth regions."""
    spread = np.exp(0.3 * np.repeat(np.repeat(RNG(12).standard_normal((12, 12)), 16, 0), 16, 1))
    error, inside = abs(spread * RNG(13).standard_normal(spread.shape)), np.ones(spread.shape, bool)
    assert rank_correlation(error, spread) < 0.35
    assert rank_correlation(local_rms(error, inside, 2), local_rms(spread, inside, 2)) > 0.75


def test_sparsification_of_a_ramp():
    """Errors uniform on [0, 1]: with the largest share f taken out the mean falls as 1 - f, by chance it stays 1."""
    error = np.arange(1, 10_001) / 10_000
    curve = sparsification(error, error)
    assert curve[0] == 1
    assert np.allclose(curve, 1 - np.arange(10_000) / 10_000, atol=2e-4)
    assert ause(error, error) == 0
    assert ause(error, RNG(9).random(10_000)) == pytest.approx(0.5, abs=0.02)
    assert ause(error, -error) == pytest.approx(1, abs=0.01)  # the curve rises as 1 + f instead
    assert ause(5 * error, error**3) == pytest.approx(0, abs=1e-9)  # ranks alone matter, and no unit
    with pytest.raises(ValueError, match="zero everywhere"):
        ause(0 * error, error)


def test_quantiles_cover_a_new_sample_as_often_as_they_say():
    rng = RNG(10)
    for n, repetitions in ((19, 20_000), (40, 20_000)):
        found = quantiles(rng.standard_normal((n, repetitions)), 0.9)
        assert found is not None
        new = rng.standard_normal(repetitions)
        assert ((found[0] <= new) & (new <= found[1])).mean() == pytest.approx(0.9, abs=0.01)
    assert quantiles(rng.standard_normal((18, 3)), 0.9) is None
