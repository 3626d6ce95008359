"""`posterior_samples` with a mask ensemble: what the network is shown, how often, and for which priors."""

from __future__ import annotations

from typing import Any

import gaussian
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.reconstruct import posterior_samples
from mrgen.prior.files import Prior
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe, Sampling


def slice_() -> Slice:
    c = gaussian.case().slice_
    return Slice(c.kspace.to(torch.complex64), c.mask.float(), c.maps.to(torch.complex64), c.sigma0, 1.0, None)


def prior(seen: list[Tensor], objective: str, sampling: Sampling) -> Prior:
    """The exact denoiser of the Gaussian image, which keeps what it is shown."""

    def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x_t)
        return gaussian.denoise(x_t, sigma).to(x_t.dtype)

    metadata: dict[str, Any] = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 0.4, "objective": objective}
    metadata["protocol"] = {"sampling": sampling.model_dump(mode="json")}
    return Prior(denoise, metadata, "")  # type: ignore[arg-type]


def recipe(**changes: Any) -> Recipe:
    return Recipe(description="d", samples=2, steps=3, **changes)


def samples(prior_: Prior, recipe_: Recipe, **arguments: Any) -> Tensor:
    return posterior_samples(slice_(), prior_, recipe_, torch.Generator().manual_seed(0), **arguments)


@pytest.mark.parametrize("ensemble", [0, 1, 4])
def test_every_mask_is_a_network_call(ensemble: int) -> None:
    seen: list[Tensor] = []
    told: list[tuple[int, int]] = []
    samples(
        prior(seen, "gsure-fourier", Sampling(acceleration=(2.0,), center_fraction=0.3)),
        recipe(ensemble=ensemble),
        progress=lambda done, total: told.append((done, total)),
    )
    count = 2 * 3 * max(1, ensemble)  # samples, noise levels, masks; on a CPU one image a call
    assert sum(len(x_t) for x_t in seen) == count
    assert told == [(i + 1, count) for i in range(count)]


def test_masks_of_all_lines_change_nothing() -> None:
    """But for the sequence of random numbers, so with a sampler that draws none after the start."""
    everything = prior([], "gsure-fourier", Sampling(acceleration=(1.0,)))
    one, other = (samples(everything, recipe(sampler="ddim", ensemble=k)) for k in (0, 3))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_prior_of_another_basis_is_refused() -> None:
    with pytest.raises(MrgenError, match="trained by gsure-sense"):
        samples(prior([], "gsure-sense", Sampling()), recipe(ensemble=2))
