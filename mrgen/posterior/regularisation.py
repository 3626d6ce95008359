"""lambda without a reference: by lines that are withheld, or by the discrepancy principle.

held-out      Lines outside the centre are withheld, the image is made from the others, and lambda is the one whose
              image predicts them best, min_lambda ||y_w - A_w x_lambda||^2. It needs no noise level.
discrepancy   ||A x_lambda - y||^2 = sigma0^2 times the numbers in y (Morozov 1966). The residual rises with lambda, so
              there is one solution at most. As x_lambda fits part of the noise, lambda tends to come out too large.

Both search over lambda = start * 2^k, from `start` on, held-out as far as it improves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mrgen.prior.heldout import withhold
from mrgen.scans.scan import Slice

SHARE = 0.2  # of the lines outside the centre that are withheld
REACH = 10  # the search ends at start * 2^-REACH and start * 2^REACH
Rule = Literal["held-out", "discrepancy"]
RULES: tuple[Rule, ...] = get_args(Rule)
Solve = Callable[[Slice, float], Tensor]
"""(slice, lambda) -> image (y, x), complex."""


@dataclass(frozen=True)
class Choice:
    """A lambda and what it rests on."""

    regularisation: float
    chosen_by: str  # in words


def choose(rule: Rule, solve: Solve, slice_: Slice, start: float) -> Choice:
    """lambda for a slice by `rule`, searched from `start` on; the same for every seed.

    Where no line lies outside the centre of k-space, nothing can be withheld, and the discrepancy decides.
    """
    if rule == "held-out":
        try:
            given, withheld = withhold(slice_, SHARE, torch.Generator().manual_seed(0))
        except ValueError:
            k, ended = _bracket(solve, slice_, start)
            return Choice(start * 2**k, f"discrepancy, as no line lies outside the centre{ended}")
        k = _descend(lambda k: prediction_error(solve(given, start * 2**k), slice_, withheld))
        return Choice(start * 2**k, f"held-out lines{_ended(k)}")
    k, ended = _bracket(solve, slice_, start)
    return Choice(start * 2**k, f"discrepancy{ended}")


def prediction_error(image: Tensor, slice_: Slice, withheld: Tensor) -> float:
    """||y_w - A_w x||^2 over the noise's share of it, for an image (y, x) and the lines or points `withheld`."""
    error = (withheld * slice_.kspace - slice_.operator(withheld).forward(image)).norm() ** 2
    return float(error) / (_numbers(slice_, withheld) * slice_.sigma0**2)


def discrepancy(image: Tensor, slice_: Slice) -> float:
    """||y - A x||^2 / (sigma0^2 times the numbers in y), 1 for the true image."""
    error = (slice_.kspace - slice_.operator().forward(image)).norm() ** 2
    return float(error) / (_numbers(slice_, slice_.mask) * slice_.sigma0**2)


def _numbers(slice_: Slice, mask: Tensor) -> int:
    return int(mask.expand(slice_.kspace.shape).sum())


def _ended(k: float) -> str:
    return f", at the end of the search (2^{k:.0f} times its start)" if abs(k) == REACH else ""


def _descend(loss: Callable[[int], float]) -> int:
    """k of the first local minimum that lies downhill of 0, within REACH."""
    best, least = 0, loss(0)
    for direction in (1, -1):
        while abs(best) < REACH and (found := loss(best + direction)) < least:
            best, least = best + direction, found
        if best:
            break
    return best


def _bracket(solve: Solve, slice_: Slice, start: float) -> tuple[float, str]:
    """log2(lambda / start) where the residual is the noise, between two powers of 2, and a remark where it is not."""

    def surplus(k: int) -> float:
        return math.log(max(discrepancy(solve(slice_, start * 2**k), slice_), 1e-12))

    k, here = 0, surplus(0)
    direction = -1 if here > 0 else 1
    while abs(k) < REACH:
        there = surplus(k + direction)
        if (there > 0) != (here > 0):
            return k + direction * here / (here - there), ""
        k, here = k + direction, there
    return k, _ended(k)
