"""What the data themselves say about a posterior: withheld lines, the residual, and what A measures of an image.

Withheld lines. Some acquired lines outside the centre are withheld, n samples x_i are drawn without them, and their
spread is held against the error of their mean m at these lines w (mrgen.prior.heldout):

    ratio^2 = sum_w |y_w - (A m)_w|^2 / sum_w (v_w + v_w / n + sigma0^2),   v = unbiased variance over i of A x_i

is 1 if the spread is right, however few the samples, as the two sums have equal expectations; 2 says that errors are
twice what the spread predicts. For v / n stands the variance of the mean of antithetic samples where they are such
(mrgen.posterior.antithetic), of which a single pair tells nothing: it is taken for 0. The square is a ratio of sums
over blocks b of k-space, a_b / v_b in short, of standard error

    sqrt(B / (B - 1) sum_b (a_b - ratio^2 v_b)^2) / sum_b v_b        (of ratio^2)

The samples have fewer lines than the reconstruction, so it is a harder problem with a spread of its own that is
checked, and strong frequencies count most, as in an image.

Residual. (x_i, y) is distributed as (x, y), so ||y - A x_i||^2 / (sigma0^2 times the numbers in y) is 1 on average;
more where no image explains the data, such as with wrong coil maps.

Measured and null space. With P = (A^H A + lambda I)^-1 A^H A, lambda = sigma0^2 / (mean power of m in the support),

    measured share = <m, P m> / <m, m>,     null-space share = 1 - measured share,     map = |m - P m|

P has eigenvalues s^2 / (s^2 + lambda) in the singular directions of A: 1 where the noise is far below an image as
strong as m, 0 in the null space, where all that m holds comes from the prior. It is the averaging kernel, or resolution
matrix, of a linear retrieval with a white prior (Rodgers, Inverse Methods for Atmospheric Sounding, 2000, chapter 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.posterior.antithetic import moments
from mrgen.posterior.regularisation import discrepancy
from mrgen.prior.heldout import withhold
from mrgen.scans.scan import Slice

SHARE = 0.1  # of the lines outside the centre that are withheld
SAMPLES = 2  # drawn without them: a quarter of the time of the 8 of a reconstruction
BLOCKS = 8  # that the points of k-space at the withheld lines are cut into
ITERATIONS, TOLERANCE = 200, 1e-4  # of the projection
TINY = 1e-12  # for images that are 0 everywhere


@dataclass(frozen=True)
class Ratio:
    """Error over predicted error, rms, at withheld lines; 1 if the spread is right."""

    ratio: float
    standard_error: float
    lines: int  # withheld, or points where the mask is one of points


def withheld_ratio(slice_: Slice, withheld: Tensor, samples: Tensor, antithetic: bool) -> Ratio:
    """`samples` (n, y, x), complex, drawn without `withheld` (kx,) or (ky, kx), against all of `slice_`."""
    predicted = slice_.operator(torch.ones_like(slice_.mask)).forward(samples)
    mean, variance, of_mean = moments(predicted, antithetic)
    wanted = withheld.expand(slice_.kspace.shape[-2:]) > 0
    error = (slice_.kspace - mean).abs().square().sum(0)[wanted]
    expected = (variance + of_mean + slice_.sigma0**2).sum(0)[wanted]
    a, v = (torch.stack([part.sum() for part in values.tensor_split(BLOCKS)]).double() for values in (error, expected))
    square = a.sum() / v.sum()
    deviation = ((a - square * v).square().sum() * BLOCKS / (BLOCKS - 1)).sqrt() / v.sum()
    return Ratio(float(square.sqrt()), float(deviation / (2 * square.sqrt())), int(withheld.sum()))


def check_withheld(
    slice_: Slice, draw: Callable[[Slice, int], Tensor], generator: torch.Generator, antithetic: bool
) -> dict[str, Any] | None:
    """The ratio above with samples by `draw` (slice, n) -> (n, y, x), ready for JSON; None without a line to withhold.

    `generator`, on the CPU, chooses the lines.
    """
    try:
        given, withheld = withhold(slice_, SHARE, generator)
    except ValueError:
        return None
    found = withheld_ratio(slice_, withheld, draw(given, SAMPLES), antithetic)
    return {"ratio": found.ratio, "standard_error": found.standard_error, "lines": found.lines}


def measured_part(slice_: Slice, image: Tensor) -> Tensor:
    """P m for a complex image (y, x)."""
    power = image.abs().square().sum() / slice_.support.sum()
    weight = slice_.sigma0**2 / power.clamp_min(TINY)
    normal = slice_.normal()
    return conjugate_gradient(
        lambda x: normal(x) + weight * x, normal(image[None]), iterations=ITERATIONS, tolerance=TOLERANCE
    )[0]


def audit(slice_: Slice, samples: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """|m - P m| (y, x) of the mean of complex samples (n, y, x), and its shares and the residual of the samples."""
    mean = samples.mean(0)
    measured = measured_part(slice_, mean)
    share = float((mean.conj() * measured).real.sum() / mean.abs().square().sum().clamp_min(TINY))
    residual = sum(discrepancy(sample, slice_) for sample in samples) / len(samples)
    return slice_.magnitude(mean - measured), {
        "measured_share": share,
        "null_space_share": 1 - share,
        "residual": residual,
    }
