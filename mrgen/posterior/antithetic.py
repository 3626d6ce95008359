"""Samples in antithetic pairs, whose noise has opposite signs.

(Hammersley and Morton, Math Proc Camb Phil Soc 1956, doi 10.1017/S0305004100031455.) As -e is distributed as e, each of
the two is a draw of the posterior by itself. They err to opposite sides as far as a sample depends linearly on its
noise, which is nearly all of it where the data decide. So the mean of n samples is nearly the posterior mean, where
that of independent ones is off by std / sqrt(n). What it costs: n / 2 squares tell the variance, instead of n - 1.

With real values f_i of the samples, or complex ones, and in each of n / 2 independent pairs

    a = (f_1 - f_2) / 2,     c = (f_1 + f_2) / 2,     Var f = E |a|^2 + Var c,     Var mean = Var c / (n / 2)

without bias whatever the correlation of the two. Of a single pair Var c is not known, and taken for 0.
"""

from __future__ import annotations

from torch import Tensor


def moments(values: Tensor, antithetic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of `values` (n, ...) over the samples, estimated variance of one of them, and that of the mean.

    With `antithetic` samples 0 and 1, 2 and 3, ... are pairs. Raises ValueError for an odd number of those.
    """
    n = len(values)
    if not antithetic:
        variance = values.var(0)
        return values.mean(0), variance, variance / n
    if n % 2:
        raise ValueError(f"expected pairs, found {n} samples")
    first, second = values[::2], values[1::2]
    centre = (first + second) / 2
    even = centre.var(0) if n > 2 else centre[0].abs() * 0
    return centre.mean(0), ((first - second) / 2).abs().square().mean(0) + even, even / (n // 2)
