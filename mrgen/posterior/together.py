"""Posterior samples of several slices at once, for E-steps on a GPU.

A slice alone keeps a GPU waiting for the next small kernel. Slices of one matrix size, sampled along lines, are stacked
instead, with coils of zeros where they have fewer, and every step of `Proximal` is one for all their samples; noise,
covariance and random numbers stay those of each slice. Only the lowest noise level is common: that of the cleanest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.operators import line_gram, line_normal
from mrgen.posterior.proximal import Proximal, probe
from mrgen.posterior.reconstruct import START_ITERATIONS, refuse_nan
from mrgen.posterior.samplers import SAMPLERS, last_level, noise_levels
from mrgen.posterior.sets import each_image
from mrgen.posterior.system import (
    Map,
    fourier_diagonal,
    inverse_rows,
    local_gram,
    scaled,
    transform,
    transform_back,
    twice,
)
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import DrawPerItem, Source, complex_noise
from mrgen.prior.files import Prior
from mrgen.prior.spectrum import Rings
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe


def stack(slices: Sequence[Slice]) -> Slice:
    """Slices as one: k-space and maps (slice, coil, y, x), mask (slice, 1, 1, kx), sigma0 (slice, 1, 1).

    Raises ValueError for slices of different matrix sizes or sampled at points.
    """
    shapes, coils = {s.kspace.shape[1:] for s in slices}, max(len(s.maps) for s in slices)
    if len(shapes) > 1 or any(s.mask.ndim > 1 for s in slices):
        raise ValueError("expected slices of one matrix size, sampled along lines")

    def padded(arrays: Sequence[Tensor]) -> Tensor:
        whole = arrays[0].new_zeros(len(arrays), coils, *arrays[0].shape[1:])
        for row, array in zip(whole, arrays, strict=True):
            row[: len(array)] = array
        return whole

    sigma0: Any = torch.tensor([s.sigma0 for s in slices], device=slices[0].kspace.device)[:, None, None]
    return replace(
        slices[0],
        kspace=padded([s.kspace for s in slices]),
        maps=padded([s.maps for s in slices]),
        mask=torch.stack([s.mask for s in slices])[:, None, None],
        sigma0=sigma0,
    )


class Together(Proximal):
    """`Proximal`, Lambda from the residual, for a stack; call it as D(x_t (n, slice, y, x), sigma (n,)), one sigma.

    All n samples of a slice share the E of the first one, and so the matrices of the preconditioner.
    """

    def __init__(
        self,
        prior: Denoise,
        slices: Sequence[Slice],
        *,
        iterations: int,
        settled: float,
        local: bool,
        draw: Source | None,
        above: float,
    ) -> None:
        """The other arguments are those of `Proximal`, `above` its `draw_above`."""
        self.prior, self.slice, self.power = each_image(prior), stack(slices), None
        self.iterations, self.settled = iterations, settled
        self.draw, self.draw_above = draw, above
        self.support = (self.slice.maps != 0).any(1)
        self.probe = probe(self.support) if local else None
        self.operator, self.columns = self.slice.operator(), slice(None)
        self.data = self.slice.kspace
        self.adjoint_data = self.operator.adjoint(self.data)
        self.normal = line_normal(self.slice.maps, self.slice.mask)
        mask = self.slice.mask[:, 0]
        self.lines = torch.fft.ifftshift(mask, dim=-1)
        self.measured = fourier_diagonal(self.slice.maps, self.lines)
        grams = [line_gram(s.maps, s.mask) for s in slices] if local else []
        self.gram = torch.stack(grams) if grams else None  # type: ignore[arg-type]
        self.system = self.systems  # type: ignore[assignment]
        self.axes, self.coils = 2, torch.tensor([len(s.maps) for s in slices], device=mask.device)[:, None, None]
        self.rings = Rings(mask, (self.data.shape[-2], self.data.shape[-1]))

    def systems(self, q: Tensor, spread: Tensor | None) -> Map:
        """As `System`, for q (n, slice, ky, kx) and E^(1/2) (1, slice, y, x)."""
        if spread is None or self.gram is None:
            diagonal = twice(1 / (1 + q * self.measured))
            return lambda r: scaled(diagonal, r)
        measured = fourier_diagonal(self.slice.maps * spread[0].unsqueeze(-3), self.lines)
        number = q[0].log().mean((-2, -1), keepdim=True).exp()
        inverse = inverse_rows(local_gram(self.gram, spread[0]), number[..., None])
        points = q.shape[-2] * q.shape[-1]
        g = twice(((1 + number * measured) / ((1 + q * measured) * points)).sqrt())

        def precondition(r: Tensor) -> Tensor:
            rows = inverse @ transform_back(scaled(g, r)).movedim(0, -1)  # one reading of the matrices for all samples
            return scaled(g, transform(rows.movedim(-1, 0)))

        return precondition


def together_applies(recipe: Recipe) -> bool:
    """Whether `sample_together` knows what the recipe asks for."""
    return recipe.guidance == "proximal" and recipe.covariance in ("local", "residual") and not recipe.ensemble


def sample_together(
    slices: Sequence[Slice], prior: Prior, recipe: Recipe, generators: Sequence[torch.Generator]
) -> Tensor:
    """`recipe.samples` complex samples (slice, n, y, x), in scaled units, as `posterior_samples` draws them.

    Slices are as for `stack`; each has a generator of its own. Raises MrgenError on NaN.
    """
    draws = DrawPerItem(generators, axis=1)
    lowest = last_level(prior.sigma_min, min(s.sigma0 for s in slices))
    sigmas = noise_levels(recipe.sigma_max, lowest, recipe.steps, recipe.grid)
    draw = draws if recipe.sampler == "decoupled" else None
    above, local = float(sigmas[-1]), recipe.covariance == "local"
    denoise = Together(
        prior,
        slices,
        iterations=recipe.cg_iterations,
        settled=recipe.cg_settled,
        local=local,
        draw=draw,
        above=above,
    )
    with torch.inference_mode():
        start = conjugate_gradient(
            lambda x: denoise.normal(x) + 0.01 * x, denoise.adjoint_data, iterations=START_ITERATIONS
        )
        start = start.expand(recipe.samples, *start.shape)
        x = start + recipe.sigma_max * complex_noise(start, draws)
        samples = SAMPLERS[recipe.sampler](denoise, x, sigmas, draws)
    refuse_nan(samples, "use more steps or CG iterations")
    return samples.transpose(0, 1)
