"""What `mrgen recon` says of posterior samples beside their images."""

from __future__ import annotations

import math
from typing import Any

from mrgen.review.second_look import FIGURES
from mrgen.review.uncertainty import std_sampling_error


def spread_lines(n: int, antithetic: bool, interval: dict[str, Any] | None) -> list[str]:
    """What the std of n samples is, and what it is not."""
    off = f"the std of a pixel is off by {std_sampling_error(n, antithetic):.0%} of itself"
    of_mean = "by little, as pairs err to opposite sides" if antithetic else f"by {n**-0.5:.2f} std (one sigma)"
    lines = [f"spread  n = {n} samples: {off}, the mean {of_mean}"]
    if interval is None:
        return [*lines, "        posterior spread, not calibrated: see mrgen calibrate"]
    return [
        *lines,
        f"        mean ± {interval['factor']:.2f} std is to cover {interval['coverage']:.0%} of the body, as it did on "
        "average over the calibration scans",
    ]


def check_lines(checks: list[dict[str, Any]]) -> list[str]:
    """What the data say of the samples, averaged over slices: see mrgen.posterior.check."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    measured, residual = (mean([check[key] for check in checks]) for key in ("measured_share", "residual"))
    lines = [
        f"shares  {measured:.1%} of the image's power is measured, {1 - measured:.1%} the prior's (null space); "
        f"residual {residual:.2f} of the noise"
    ]
    if residual > FIGURES["residual"].limit:
        lines.append(
            "note    NO IMAGE EXPLAINS THE DATA to their noise: wrong coil maps, motion, or a noise level that is too "
            "low; see mrgen inspect, try --map-sets 2 or --calibration-scan"
        )
    withheld = [check["withheld"] for check in checks if check.get("withheld")]
    if withheld:
        ratio = math.sqrt(mean([w["ratio"] ** 2 for w in withheld]))
        error = math.sqrt(sum((w["ratio"] * w["standard_error"]) ** 2 for w in withheld)) / len(withheld) / ratio
        count = sum(w["lines"] for w in withheld)
        lines.append(
            f"check   at {count} withheld lines the error is {ratio:.2f} ± {error:.2f} of what the spread predicts (1 "
            "is right)"
        )
        if ratio > FIGURES["withheld_ratio"].limit and ratio - 2 * error > 1:
            lines.append(
                "note    THE SPREAD IS TOO SMALL for this scan: the prior may not know such an object, or the maps are "
                "wrong; do not rely on the std, and hold the image against --recipe l1-wavelet"
            )
    elif "withheld" in checks[0]:
        lines.append("check   no line outside the centre of k-space can be withheld")
    return lines
