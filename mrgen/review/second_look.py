"""Which slices of a result are worth a second look, from what the result itself tells, without a reference.

A figure f_i of slice i, of which more is worse, flags the slice where it is above a fixed limit, or stands out:

    f_i > limit      or      f_i > median + 3 * 1.4826 * MAD   and   f_i > 1.2 * median

over the slices of the result, from 5 on (1.4826 MAD is the std of Gaussian values without outliers; the last
condition keeps slices that are nearly alike from being told apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrgen.review.metrics import Array, body

FEWEST, DEVIATIONS, MARGIN = 5, 3.0, 1.2


@dataclass(frozen=True)
class Figure:
    """One figure of a slice."""

    name: str  # in words
    limit: float


FIGURES = {
    "withheld_ratio": Figure("error at withheld lines, in multiples of what the spread predicts", 1.5),
    "residual": Figure("misfit of the samples to the measured data, in multiples of the noise", 1.5),
    "relative_spread": Figure("std over mean inside the object", 0.25),
    "null_space_share": Figure("share of the image's power that was not measured", 0.25),
}
RULE = (
    "A slice is listed where one of these figures is above its limit ("
    + "; ".join(f"{figure.name}: {figure.limit:g}" for figure in FIGURES.values())
    + f"), or, in results of {FEWEST} slices or more, where it lies more than {DEVIATIONS:g} robust standard "
    f"deviations and {100 * (MARGIN - 1):.0f} % above the median of the slices, or where an iteration did not "
    "converge. The rule uses no reference and knows nothing of anatomy: a slice that is not listed is not therefore "
    "right."
)


def relative_spread(mean: Array, std: Array) -> list[float]:
    """sum of std / sum of mean over the object, which is where the mean is above 10 % of its 99th percentile.

    `mean` and `std` are (slice, y, x), the percentile is the volume's; 0 for a slice without a pixel of the object.
    """
    inside = body(mean)
    sums = [(float(s[at].sum()), float(m[at].sum())) for m, s, at in zip(mean, std, inside, strict=True)]
    return [spread / total if total > 0 else 0.0 for spread, total in sums]


def slice_figures(
    mean: Array, std: Array | None, checks: Sequence[dict[str, Any]], first: int
) -> list[dict[str, float]]:
    """Of every slice its number and those of FIGURES that are known.

    `mean`, `std` are (slice, y, x), the first being slice `first`; `checks` are those of mrgen.posterior.check.
    """
    rows: list[dict[str, float]] = [{"slice": first + i} for i in range(len(mean))]
    if std is not None:
        for row, spread in zip(rows, relative_spread(mean, std), strict=True):
            row["relative_spread"] = spread
    for check in checks:
        row = rows[check["slice"] - first]
        row |= {name: check[name] for name in ("residual", "null_space_share")}
        if check.get("withheld"):
            row["withheld_ratio"] = check["withheld"]["ratio"]
    return rows


def second_look(rows: Sequence[dict[str, float]], facts: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The slices that the rule lists, each with its reasons.

    `rows` are those of `slice_figures`, `facts` say by slice whether an iteration `converged`.
    """
    reasons: dict[int, list[str]] = {int(row["slice"]): [] for row in rows}
    for key, figure in FIGURES.items():
        known = {int(row["slice"]): row[key] for row in rows if key in row}
        values = np.array([*known.values()])
        outlying = np.inf
        if len(values) >= FEWEST:
            median = float(np.median(values))
            outlying = max(median + DEVIATIONS * 1.4826 * float(np.median(np.abs(values - median))), MARGIN * median)
        for number, value in known.items():
            if value > figure.limit:
                reasons[number].append(f"{figure.name}: {value:.2f}, above {figure.limit:g}")
            elif value > outlying:
                reasons[number].append(f"{figure.name}: {value:.2f}, where the median slice has {median:.2f}")
    for fact in facts:
        if not fact.get("converged", True):
            reasons[fact["slice"]].append("the iteration did not converge")
    return [{"slice": number, "reasons": why} for number, why in reasons.items() if why]
