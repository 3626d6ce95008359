"""How good a prior is, told from undersampled noisy data alone.

Some sampled lines y_w of a slice are withheld for good: from samplers, and so from training. n posterior samples x_i
given the other lines predict them, A_w x_i, with mean m and unbiased variance v over i. If the prior is right,

    y_w ~ CN(m, V),   V = (1 + 1/n) v + sigma0^2          (1/n: the error of m itself)

in each complex number, of which  -|y_w - m|^2 / V - log(pi V)  is the log-likelihood. A prior that believes in noise,
that is too sure, or that does not know what heads look like predicts worse. Besides, for a right prior and sampler,

    data fit     E ||y - A x_i||^2 / (sigma0^2 times the numbers in y) = 1   over the lines that were not withheld,
                 because (x_i, y) is distributed as (x, y)
    noise kept   (E sum_c |(F S_c x_i)_k|^2 - E sum_c |y_ck|^2 + coils sigma0^2) / sigma0^2 = 0   over the sampled
                 points of high |k|; 1 where samples keep the noise of a fully sampled scan
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from mrgen.physics.fourier import grid
from mrgen.physics.masks import acs_region
from mrgen.physics.operators import sense
from mrgen.prior.spectrum import excess_power
from mrgen.scans.scan import Slice

HIGH = 0.5  # |k| beyond which it is called high, relative to the Nyquist frequency


def outside_centre(mask: Tensor) -> Tensor:
    """Indices of the sampled lines of `mask` (kx,) that are not connected with the central one.

    Of a mask (ky, kx), indices into the flattened one of the points that do not lie in its fully sampled centre.
    """
    if mask.ndim == 2:
        outside = mask.clone()
        outside[acs_region(mask)] = 0
        return outside.flatten().nonzero().flatten()
    centre, gaps = len(mask) // 2, (mask == 0).nonzero().flatten()
    first = max(gaps[gaps <= centre].tolist(), default=-1)
    last = min(gaps[gaps >= centre].tolist(), default=len(mask))
    lines = mask.nonzero().flatten()
    return lines[(lines < first) | (lines > last)]


def withhold(slice_: Slice, share: float, generator: torch.Generator) -> tuple[Slice, Tensor]:
    """The slice without a `share` of its lines outside the centre, at least one, and the mask (kx,) of those lines.

    Points take the place of lines where the mask is (ky, kx).
    `generator` lives on the CPU. Raises ValueError where no line lies outside the centre.
    """
    candidates = outside_centre(slice_.mask.cpu())
    if not len(candidates):
        raise ValueError("expected a slice with sampled lines outside the centre of k-space")
    count = max(1, round(share * len(candidates)))
    withheld = torch.zeros_like(slice_.mask)
    withheld.view(-1)[candidates[torch.randperm(len(candidates), generator=generator)[:count]].to(withheld.device)] = 1
    mask = slice_.mask - withheld
    return replace(slice_, kspace=slice_.kspace * mask, mask=mask), withheld


@dataclass(frozen=True)
class Score:
    """What the samples of one slice, or the mean over slices, say of the prior that they are from."""

    log_likelihood: float  # per complex number withheld
    nrmse: float  # of the samples' mean at the withheld lines, noise of the data included
    data_fit: float
    noise_kept: float


def score(slice_: Slice, withheld: Tensor, samples: Tensor) -> Score:
    """`samples` (n, y, x) drawn without the lines `withheld` (kx,), held against all lines of `slice_`."""
    n = len(samples)
    y, noise, wanted = slice_.kspace, slice_.sigma0**2, withheld > 0
    predicted = sense(slice_.maps, torch.ones_like(slice_.mask)).forward(samples)
    mean, variance = predicted.mean(0)[..., wanted], predicted.var(0)[..., wanted]
    error, total = (y[..., wanted] - mean).abs().square(), (1 + 1 / n) * variance + noise
    given = (slice_.mask > 0) & ~wanted
    residual = (y - predicted)[..., given].abs().square().mean() / noise

    k_y, k_x = grid((y.shape[-2], y.shape[-1]))
    high = ((k_y.square() + k_x.square()).sqrt() > HIGH).to(y.device) & (slice_.mask > 0)
    excess = predicted.abs().square().sum(1).mean(0) - excess_power(y, slice_.sigma0)
    return Score(
        log_likelihood=float((-error / total - (math.pi * total).log()).mean()),
        nrmse=float((error.sum() / y[..., wanted].abs().square().sum()).sqrt()),
        data_fit=float(residual),
        noise_kept=float(excess[high].mean() / noise),
    )


def mean_score(scores: Sequence[Score]) -> Score:
    """Over slices that count alike."""
    rows = [asdict(s) for s in scores]
    return Score(**{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]})
