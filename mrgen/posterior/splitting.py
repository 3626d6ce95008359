"""Linear and learned reconstructions by the data step of mrgen.posterior.proximal, x ~ N(D(x_t), V) given y.

Gaussian      D = 0, V = F^H diag(P) F: the posterior of a stationary Gaussian image, P estimated from the scan itself.
              Its draws are exact, up to the convergence of CG.

Half-quadratic splitting alternates the denoiser with that step at V = sigma^2 / lambda:

    x <- argmin_x ||A x - y||^2 / sigma0^2 + lambda ||x - D(x, sigma)||^2 / sigma^2

pnp           sigma falls, then stays: plug and play as in DPIR (Zhang et al., arXiv 2008.13751, equations 6 and 7).
red           sigma stays: the fixed-point iteration of regularisation by denoising (Romano et al., arXiv 1611.02862,
              equation 37). Its fixed point solves A^H (y - A x) / sigma0^2 + lambda (D(x, sigma) - x) / sigma^2 = 0.

As (D - x) / sigma^2 is the gradient of log p_sigma, the prior's density blurred by noise sigma, lambda = 1 makes the
fixed point a maximum a posteriori under p_sigma; for a Gaussian prior of power P it is the posterior mean for P +
sigma^2. Whether a network's iteration converges is not known beforehand: the changes are reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.proximal import Proximal
from mrgen.posterior.sets import each_set, power_shares
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import Source
from mrgen.prior.spectrum import power_spectrum
from mrgen.scans.scan import Slice

CONVERGED = 1e-3  # an iteration that changes the image by less than this share of its norm is the last


class _Stationary(Proximal):
    """x ~ N(0, F^H diag(P) F) given y; the x_t and sigma that it is called with play no part."""

    def covariance(self, mean: Tensor, sigma: Tensor) -> Tensor:
        assert self.power is not None
        return self.power


def gaussian_posterior(
    slice_: Slice, samples: int, iterations: int, generator: Source | None, power: Tensor | None = None
) -> Tensor:
    """`samples` exact draws (n, y, x), complex, or without a `generator` that many times the posterior mean.

    `power` is P (ky, kx), without it the one that the sampled points of the slice tell.
    """
    posterior = _Stationary(
        lambda x_t, sigma: torch.zeros_like(x_t),
        slice_,
        power_shares(slice_) * power_spectrum(slice_) if power is None else power,
        iterations=iterations,
        draw=generator,
    )
    blank = slice_.kspace.new_zeros(samples, *slice_.support.shape)
    return posterior(blank, torch.ones(samples, device=blank.device))


class _Splitting(Proximal):
    """The data step after a denoiser, V = sigma^2 / lambda."""

    def __init__(self, prior: Denoise, slice_: Slice, regularisation: float, iterations: int) -> None:
        super().__init__(each_set(prior, slice_.sets), slice_, None, iterations=iterations)
        self.regularisation = regularisation

    def covariance(self, mean: Tensor, sigma: Tensor) -> Tensor:
        return sigma.square() / self.regularisation


@dataclass(frozen=True)
class Iterated:
    """Where an iteration ended."""

    image: Tensor  # (y, x), complex
    changes: tuple[float, ...] = ()  # ||x_k - x_(k-1)|| / ||x_k|| of each iteration, where that was watched

    @property
    def converged(self) -> bool:
        """Whether the last iteration changed next to nothing."""
        return self.changes[-1] < CONVERGED


def split(
    slice_: Slice,
    prior: Denoise,
    start: Tensor,
    sigmas: Tensor,
    regularisation: float,
    *,
    iterations: int,
    cg_iterations: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterated:
    """Half-quadratic splitting from `start` (y, x) at the levels `sigmas`, then at the last one until it converges.

    `iterations` is the most it takes, the levels included; `regularisation` is lambda, `cg_iterations` of one data
    step. `progress(done, total)` counts iterations. Raises MrgenError on NaN.
    """
    step = _Splitting(prior, slice_, regularisation, cg_iterations)
    x, changes = start.unsqueeze(0), []
    with torch.inference_mode():
        for k in range(iterations):
            sigma = sigmas[min(k, len(sigmas) - 1)].to(x.device).reshape(1)
            before, x = x, step(x, sigma)
            changes.append(float((x - before).norm() / x.norm()))
            if not changes[-1] < float("inf"):
                raise MrgenError("the iteration diverged (NaN): raise the recipe's sigma_min or cg_iterations")
            if progress is not None:
                progress(k + 1, iterations)
            if k + 1 >= len(sigmas) and changes[-1] < CONVERGED:
                break
    return Iterated(x[0], tuple(changes))
