"""Samplers: from noise at sigma_max to an image, given any denoiser; prior or posterior, they cannot tell.

Each is a plain function (denoise, x, sigmas, generator) -> x_0, with x (batch, y, x) at noise level sigmas[0] and
`sigmas` falling. `ddim`, `multistep` and `heun` follow dx/dsigma = (x - D(x, sigma)) / sigma, the probability-flow ODE
(Song et al., arXiv 2011.13456) in the notation of Karras et al., arXiv 2206.00364; `ancestral` and `decoupled` have the
same marginals with fresh noise at every level. All end with the denoised image at the last level, so what the posterior
still leaves open given x_t at sigma_min is missing from the spread: choose sigma_min well below sigma0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import Source, complex_noise

Sampler = Callable[[Denoise, Tensor, Tensor, Source], Tensor]


RHO = 7.0  # of Karras et al.

# A grid is evenly spaced in u(sigma): u and its inverse.
GRIDS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "karras": (lambda sigma: sigma ** (1 / RHO), lambda u: u**RHO),  # equation 5; dense near sigma_min
    "log": (torch.log, torch.exp),  # the same ratio at every step
    "cosine": (torch.atan, torch.tan),  # alpha_bar = cos(u)^2 of Nichol and Dhariwal, arXiv 2102.09672; dense near 1
}


def noise_levels(sigma_max: float, sigma_min: float, steps: int, grid: str = "karras") -> Tensor:
    """`steps` falling levels (steps,) from sigma_max to sigma_min, spaced as `grid`, one of `GRIDS`, says."""
    u, sigma = GRIDS[grid]
    high, low = u(torch.tensor([sigma_max, sigma_min], dtype=torch.float64))
    return sigma(torch.lerp(high, low, torch.linspace(0, 1, steps, dtype=torch.float64))).float()


def last_level(trained: float, sigma0: float) -> float:
    """Where sampling for a scan with noise sigma0 ends: well below it, but not where a denoiser was not `trained`."""
    return max(trained, sigma0 / 4)


def _at(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.device).expand(len(x))


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, generator: Source) -> Tensor:
    """Euler steps of the ODE, deterministic (Song et al., arXiv 2010.02502)."""
    for now, after in pairwise(sigmas):
        clean = denoise(x, _at(now, x))
        x = clean + (after / now) * (x - clean)
    return denoise(x, _at(sigmas[-1], x))


def multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, generator: Source) -> Tensor:
    """Second order at one call per step: DPM-Solver++(2M), Lu et al., arXiv 2211.01095, algorithm 2.

    With h = log(sigma_i / sigma_{i+1}): x <- (sigma_{i+1} / sigma_i) x + (1 - exp(-h)) (D_i + h / (2 h_before)
    (D_i - D_{i-1})).
    """
    before: Tensor | None = None
    h_before = torch.tensor(1.0)
    for now, after in pairwise(sigmas):
        clean = denoise(x, _at(now, x))
        h = (now / after).log()
        target = clean if before is None else clean + h / (2 * h_before) * (clean - before)
        x = (after / now) * x + (1 - after / now) * target
        before, h_before = clean, h
    return denoise(x, _at(sigmas[-1], x))


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, generator: Source) -> Tensor:
    """Heun's second-order steps, two calls each (Karras et al., algorithm 1)."""
    for now, after in pairwise(sigmas):
        slope = (x - denoise(x, _at(now, x))) / now
        ahead = x + (after - now) * slope
        slope_ahead = (ahead - denoise(ahead, _at(after, x))) / after
        x = x + (after - now) * (slope + slope_ahead) / 2
    return denoise(x, _at(sigmas[-1], x))


def ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, generator: Source) -> Tensor:
    """DDPM's stochastic steps (Ho et al., arXiv 2006.11239) in sigma: down to the mean, then fresh noise."""
    for now, after in pairwise(sigmas):
        clean = denoise(x, _at(now, x))
        ratio = (after / now).square()
        x = clean + ratio * (x - clean) + after * (1 - ratio).sqrt() * complex_noise(x, generator)
    return denoise(x, _at(sigmas[-1], x))


def decoupled(denoise: Denoise, x: Tensor, sigmas: Tensor, generator: Source) -> Tensor:
    """Decoupled annealing (Zhang et al., arXiv 2407.01521): an estimate of x_0, then all noise anew.

    For a denoiser that draws from p(x | x_t, y) instead of giving its mean; errors of one level do not accumulate.
    """
    for now, after in pairwise(sigmas):
        x = denoise(x, _at(now, x)) + after * complex_noise(x, generator)
    return denoise(x, _at(sigmas[-1], x))


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "multistep": multistep,
    "heun": heun,
    "ancestral": ancestral,
    "decoupled": decoupled,
}
