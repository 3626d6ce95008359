"""Averages that sample different lines, combined so that all lines have the same noise.

fastMRI prostate T2 scans (Tibrewala et al., arXiv 2304.09254) have three: the first and third sample every other
phase-encoding line, the second the lines between. Together they are fully sampled. A line measured a times and averaged
has noise sigma / sqrt(a), so a mean over all averages leaves half of the lines with less noise than the others, while
every method here relies on one sigma for all of k-space. Instead

    k(line) = mean of the first m averages that measured the line,    m = the smallest number that any line has

which is exact at the cost of the measurements left out (for 2 and 1 averages: 15 % of the SNR).
"""

from __future__ import annotations

import torch
from torch import Tensor


def measured_lines(averages: Tensor) -> Tensor:
    """(average, kx) bool: which lines of (average, coil, ky, kx) hold anything but zeros."""
    return (averages != 0).flatten(1, 2).any(1)


def average_weights(measured: Tensor) -> Tensor:
    """The weights (average, kx) of k(line), from the lines that each average measured, (average, kx) bool."""
    times = measured.sum(0)
    m = times[times > 0].min()
    return (measured & (measured.cumsum(0) <= m)) / m


def combine_averages(averages: Tensor, weights: Tensor) -> Tensor:
    """k (coil, ky, kx) from (average, coil, ky, kx) and the weights (average, kx)."""
    return torch.einsum("acyx,ax->cyx", averages, weights.to(averages))


def describe_averages(measured: Tensor) -> str:
    """What became of the averages, in one sentence."""
    taken = average_weights(measured) > 0
    return (
        f"{len(measured)} averages: each phase-encoding line is the mean of the first {int(taken.sum(0).max())} that "
        f"measured it, so that all lines have the same noise; {int(measured.sum() - taken.sum())} of "
        f"{int(measured.sum())} measured lines are left out."
    )
