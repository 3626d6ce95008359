"""Guidance: a posterior denoiser E[x | x_t, y] is a denoiser that wraps the prior's E[x | x_t]. One class each:

| name | what is assumed of x given x_t | network, a level |
|---|---|---|
| `proximal` | Gaussian, covariance diagonal in Fourier space, with `local` also scaled over the image | 1 call |
| `fourier` | Gaussian, covariance diagonal in Fourier space; one coil with unit map, closed form | 1 call |
| `mmps` | Gaussian, covariance from the denoiser's Jacobian | 1 call and a backward pass for each CG iteration |
| `dps` | nothing: a gradient step on the residual | 1 call and 1 backward pass |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.dps import Dps
from mrgen.posterior.fourier import ClosedForm, diagonal_in_fourier
from mrgen.posterior.mmps import Mmps
from mrgen.posterior.proximal import Proximal
from mrgen.posterior.sets import power_shares
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import Source
from mrgen.prior.spectrum import power_spectrum
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe


@dataclass(frozen=True)
class Terms:
    """What the classes are built with; each takes what it needs."""

    recipe: Recipe
    power: Tensor | None  # P of V_t, None: from the residual
    draw: Source | None = None  # draws instead of means, for the sampler `decoupled`
    draw_above: float = 0.0  # at noise levels above this one


GUIDANCE: dict[str, Callable[[Denoise, Slice, Terms], Denoise]] = {
    "proximal": lambda prior, slice_, t: Proximal(
        prior,
        slice_,
        t.power,
        iterations=t.recipe.cg_iterations,
        settled=t.recipe.cg_settled,
        local=t.recipe.covariance == "local",
        draw=t.draw,
        draw_above=t.draw_above,
    ),
    "fourier": lambda prior, slice_, t: ClosedForm(prior, slice_, t.power, draw=t.draw, draw_above=t.draw_above),
    "mmps": lambda prior, slice_, t: Mmps(prior, slice_, iterations=t.recipe.cg_iterations),
    "dps": lambda prior, slice_, t: Dps(prior, slice_, zeta=t.recipe.zeta),
}


def guide(
    prior: Denoise,
    slice_: Slice,
    recipe: Recipe,
    *,
    sigma_data: float,
    draw: Source | None = None,
    draw_above: float = 0.0,
) -> Denoise:
    """The posterior denoiser that `recipe.guidance` names; `proximal` takes the closed form where it applies,
    which it does not with a local covariance.

    `sigma_data` is the rms of the prior's images, for an isotropic V_t. With `draw` it returns draws at levels above
    `draw_above`, if it can. Raises MrgenError where the guidance does not apply to the scan.
    """
    power = None
    if recipe.covariance == "spectral":
        power = power_shares(slice_) * power_spectrum(slice_)
    elif recipe.covariance == "isotropic":
        power = power_shares(slice_) * torch.tensor(sigma_data**2, device=slice_.kspace.device)
    local = recipe.guidance == "proximal" and recipe.covariance == "local"
    if local and recipe.ensemble:
        raise MrgenError('a mask ensemble has no Jacobian to probe: add covariance = "residual" to the recipe')
    closed = recipe.guidance == "proximal" and not local and diagonal_in_fourier(slice_)
    name = "fourier" if closed else recipe.guidance
    return GUIDANCE[name](prior, slice_, Terms(recipe, power, draw, draw_above))
