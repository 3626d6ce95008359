from __future__ import annotations

import numpy as np
import pytest

from mrgen.review.second_look import FIGURES, RULE, relative_spread, second_look, slice_figures


def checks(slices: int, first: int = 0, **changed: dict[int, float]) -> list[dict[str, object]]:
    """Unremarkable checks of mrgen.posterior.check, but for `changed` figures by slice."""
    found = []
    for number in range(first, first + slices):
        values = {"residual": 1.05, "null_space_share": 0.05, "ratio": 1.2}
        values |= {name: by_slice[number] for name, by_slice in changed.items() if number in by_slice}
        ratio = values.pop("ratio")
        withheld = {"ratio": ratio, "standard_error": 0.1, "lines": 2}
        found.append({"slice": number, "measured_share": 0.95, "withheld": withheld, **values})
    return found


def listed(*arguments: object) -> dict[int, list[str]]:
    return {flag["slice"]: flag["reasons"] for flag in second_look(*arguments)}


def test_figures_above_their_limits_are_listed_with_reasons():
    mean = np.ones((3, 4, 4))
    std = 0.1 * mean
    rows = slice_figures(mean, std, checks(3, 7, ratio={8: 1.51}, residual={9: 2.0}, null_space_share={9: 0.3}), 7)
    assert rows[1] == {
        "slice": 8, "relative_spread": pytest.approx(0.1), "residual": 1.05, "null_space_share": 0.05,
        "withheld_ratio": 1.51,
    }  # fmt: skip
    assert listed(rows) == {
        8: ["error at withheld lines, in multiples of what the spread predicts: 1.51, above 1.5"],
        9: [
            "misfit of the samples to the measured data, in multiples of the noise: 2.00, above 1.5",
            "share of the image's power that was not measured: 0.30, above 0.25",
        ],
    }
    for figure in FIGURES.values():
        assert f"{figure.name}: {figure.limit:g}" in RULE


def test_slices_that_stand_out_are_listed_from_five_on():
    """Of 1.00 1.01 1.02 1.03 1.3 the median is 1.02, the MAD 0.01: the limit 1.2 * 1.02 decides."""
    values = [1.02, 1.3, 1.0, 1.03, 1.01]
    residual = dict(enumerate(values))
    assert listed(slice_figures(np.ones((5, 2, 2)), None, checks(5, residual=residual), 0)) == {
        1: [f"{FIGURES['residual'].name}: 1.30, where the median slice has 1.02"]
    }
    assert not listed(slice_figures(np.ones((4, 2, 2)), None, checks(4, residual=residual), 0))
    residual[1] = 1.22  # 20 deviations, but not a fifth above the median
    assert not listed(slice_figures(np.ones((5, 2, 2)), None, checks(5, residual=residual), 0))
    spread_out = {0: 0.5, 1: 0.7, 2: 0.9, 3: 1.1, 4: 1.45}  # 0.9 + 3 * 1.4826 * 0.2 = 1.79
    assert not listed(slice_figures(np.ones((5, 2, 2)), None, checks(5, residual=spread_out), 0))


def test_the_spread_is_that_of_the_object():
    mean, std = np.zeros((2, 4, 4)), np.full((2, 4, 4), 5.0)
    mean[0, :2], std[0, :2] = 10, 3
    mean[0, 2] = 0.9  # below a tenth of the 99th percentile, so air
    assert relative_spread(mean, std) == [pytest.approx(0.3), 0]


def test_iterations_that_did_not_converge_are_listed():
    rows = slice_figures(np.ones((2, 2, 2)), None, [], 3)
    facts = [{"slice": 3, "converged": True}, {"slice": 4, "converged": False}]
    assert listed(rows, facts) == {4: ["the iteration did not converge"]}


def test_a_slice_without_lines_to_withhold_has_no_ratio():
    (check,) = checks(1)
    (row,) = slice_figures(np.ones((1, 2, 2)), None, [check | {"withheld": None}], 0)
    assert "withheld_ratio" not in row
