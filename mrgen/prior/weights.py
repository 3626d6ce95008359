"""How likely each phase-encode line was sampled, and the weights w_k = 1 / Pr(line k is sampled) that GSURE needs."""

from __future__ import annotations

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.masks import sampling_probability
from mrgen.settings import Sampling

FAR = 0.25  # relative difference between a scan's number of lines and the protocol's that is taken for another R
EDGE = 0.05  # fraction of lines on either side that may be never sampled (partial Fourier edge, rounding)


def line_probability(mask: Tensor, sampling: Sampling, acceleration: float | None = None) -> Tensor:
    """Pr(line is sampled), (kx,), for a scan with sampling mask (kx,) whose lines were drawn as `sampling` says.

    R, where it is not given, is the one of `sampling` whose expected number of lines comes closest, counted between
    the first and the last line sampled: outside, the scanner may have measured none. Raises MrgenError when none is
    close, and for masks of points.
    """
    if mask.ndim != 1:
        raise MrgenError("the scan samples points in two phase-encode directions; training takes scans of whole lines")
    n, lines = len(mask), mask.nonzero().flatten()
    span = slice(int(lines[0]), int(lines[-1]) + 1)

    def drawn(r: float) -> Tensor:
        try:
            return sampling_probability(sampling.pattern, n, r, sampling.fraction(r))
        except ValueError as error:
            raise MrgenError(f"the protocol cannot sample {n} lines with R = {r:g}: {error}") from None

    def surplus(r: float) -> float:
        return float(drawn(r)[span].sum()) / len(lines) - 1

    r = acceleration or min(sampling.acceleration, key=lambda r: abs(surplus(r)))
    if acceleration is None and abs(surplus(r)) > FAR:
        raise MrgenError(
            f"the scan was undersampled to {len(lines)} of {n} lines, which no R of the protocol "
            f"({', '.join(f'{a:g}' for a in sampling.acceleration)}) explains: name its R and centre in a protocol"
        )
    return drawn(r).to(mask)


def gsure_weights(probability: Tensor) -> Tensor:
    """1 / Pr(line k is sampled), (kx,); 0 for lines never sampled.

    Raises MrgenError when a line further in than the outer 5 % on either side is never sampled: no scan says anything
    about it, so the risk cannot be estimated there.
    """
    n = len(probability)
    edge = round(EDGE * n)
    never = (probability == 0).nonzero().flatten().tolist()
    inner = [k for k in never if edge <= k < n - edge]
    if inner:
        raise MrgenError(
            f"{len(inner)} of {n} phase-encode lines (the first is {inner[0]}) are never sampled by this protocol, "
            "so GSURE cannot learn them: vary the mask offset or pattern, or lower R"
        )
    return torch.where(probability > 0, 1 / probability.clamp_min(1e-12), 0.0)
