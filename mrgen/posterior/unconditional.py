"""Samples of a prior by itself, without data: from noise of std sigma_max to images, by `multistep`.

x_t at sigma_max holds x, too, of which noise alone says nothing: for a Gaussian prior of power P(k) the ODE of
samplers.py scales F x_t with sqrt(P + sigma_t^2), so samples that start from CN(0, sigma_max^2) have the share

    sigma_max^2 / (P + sigma_max^2)

of its power. At the centre of k-space, where sqrt(P) is the mean of an image times the root of its number of pixels,
that is a third for a head and the sigma_max = 20 of most priors. So noise is brought to x + sigma_max n by restarts (Xu
et al., arXiv 2306.14878): from sigma_max down by a few steps of the ODE, and up again with fresh noise. With
rho = P / (P + sigma_max^2) the share of x_t's power that is missing after r of them is rho^(r + 1), up to the error of
the few steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.batch import Batch
from mrgen.posterior.draws import DrawPerSample
from mrgen.posterior.samplers import ddim, multistep, noise_levels
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import complex_noise

LEVELS = 20  # with more the samples stay what they are (docs/results/2026-11-22-samples.md)
RESTARTS, RESTART_LEVELS, RESTART_RATIO = 4, 4, 8.0  # from sigma_max to sigma_max / RESTART_RATIO and back


def unconditional_samples(
    denoise: Denoise,
    shape: tuple[int, int, int],
    sigmas: Tensor,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    batch: Batch | None = None,
) -> Tensor:
    """Complex samples of `shape` (n, y, x), in scaled units, at the falling noise levels `sigmas`.

    Sample i depends on `seed` and i, not on how many samples there are. `progress(done, total)` counts the images that
    the network has denoised, `batch` at a time. Raises MrgenError on NaN and as `Batch` does.
    """
    batch, draws = batch or Batch.on(device), DrawPerSample(torch.Generator().manual_seed(seed))
    total = shape[0] * (RESTARTS * RESTART_LEVELS + len(sigmas))
    sigma_max = float(sigmas[0])
    high = noise_levels(sigma_max, sigma_max / RESTART_RATIO, RESTART_LEVELS)

    in_batches = batch.counted(denoise, total, progress)
    with torch.inference_mode():
        x = sigma_max * complex_noise(torch.empty(shape, dtype=torch.complex64, device=device), draws)
        for _ in range(RESTARTS):
            x = ddim(in_batches, x, high, draws)
            x = x + sigma_max * complex_noise(x, draws)
        samples = multistep(in_batches, x, sigmas, draws)
    if not torch.isfinite(torch.view_as_real(samples)).all():
        raise MrgenError("sampling diverged (NaN): use more steps, or another prior")
    return samples
