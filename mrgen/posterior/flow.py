"""A posterior sample with the noise of its scan, taken down again by the flow of the prior: a shorter way for EM.

With z = y - A x the noise that a sample x leaves to the scan, and B = (A^H A + EPSILON)^(-1/2),

    n = B (A^H z / sigma0 + EPSILON^(1/2) e),   e ~ CN(0, I),

is white and independent of x for a right prior, because (x, z) is distributed as the image and its noise. So the flow
of the prior (Song et al., arXiv 2011.13456) takes x + sigma n to sigma = 0 without drawing anything, and a right prior
stays as it is. A wrong one moves faster than by x, as x + sigma n knows more of y: in a direction that A stretches by
a, where images have variance C and the prior believes P, with s = sigma0 / a and g = P / (P + s^2),

    x alone:           P' = P + g^2 (C - P)
    the flow's end:    P' = P + P / (P + sigma^2) ((1 - c) g + c)^2 (C - P)

with c = sigma h / s and h^2 = a^2 / (a^2 + EPSILON). The second is g where h = 1 and P is small, and noise that a prior
believes in falls as s^2 / rounds instead of s^2 / sqrt(2 rounds). Stochastic forward-backward deconvolution (Lu, Wu and
Yu, arXiv 2502.05446) is the first for noise alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrgen.physics.lanczos import inverse_root
from mrgen.posterior.samplers import heun, last_level, noise_levels
from mrgen.posterior.sets import each_set
from mrgen.prior.draws import complex_noise
from mrgen.prior.files import Prior
from mrgen.scans.scan import Slice

EPSILON = 0.03  # of the eigenvalues of A^H A, which are 1 at most: below it, a direction counts as hardly measured
ITERATIONS = 25  # with a condition of 1 / EPSILON the error falls to 0.7 of itself in each


def own_noise(slice_: Slice, samples: Tensor, generator: torch.Generator) -> Tensor:
    """n of `samples` (n, y, x)."""
    operator, normal = slice_.operator(), slice_.normal()
    residual = slice_.kspace - operator.forward(samples)
    w = operator.adjoint(residual) / slice_.sigma0 + EPSILON**0.5 * complex_noise(samples, generator)
    return inverse_root(lambda x: normal(x) + EPSILON * x, w, ITERATIONS)


def flowed(slice_: Slice, samples: Tensor, prior: Prior, levels: int, generator: torch.Generator) -> Tensor:
    """`samples` (n, y, x) with the noise of their scan, and down again by Heun's method at so many noise levels.

    The first is sigma0, or twice the lowest that the prior was trained at where that is more, the last as for sampling.
    """
    first, last = max(slice_.sigma0, 2 * prior.sigma_min), last_level(prior.sigma_min, slice_.sigma0)
    with torch.inference_mode():
        x = samples + first * own_noise(slice_, samples, generator)
        return heun(each_set(prior, slice_.sets), x, noise_levels(first, last, levels, "log"), generator)
