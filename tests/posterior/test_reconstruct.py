"""`posterior_samples` with a mask ensemble: what the network is shown, how often, and for which priors."""

from __future__ import annotations

from typing import Any

import gaussian
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.reconstruct import posterior_samples, reconstruct
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


def test_gaussian_recipe_gives_statistics_of_magnitudes() -> None:
    found = reconstruct(
        slice_(), None, recipe(method="gaussian").model_copy(update={"samples": 5}), torch.Generator().manual_seed(0)
    )
    assert found.samples is not None
    assert found.std is not None
    assert found.samples.shape == (5, *gaussian.SHAPE)
    torch.testing.assert_close(found.mean, found.samples.mean(0))
    torch.testing.assert_close(found.std, found.samples.std(0))
    assert (found.samples >= 0).all()


@pytest.mark.parametrize("method", ["pnp", "red"])
def test_learned_recipes_say_lambda_and_whether_they_converged(method: str) -> None:
    seen: list[Tensor] = []
    gauss = prior(seen, "supervised", Sampling())
    few, many = (
        reconstruct(
            slice_(),
            gauss,
            recipe(method=method, regularisation=1.0, sigma_max=1.0, sigma_min=0.3, iterations=n),
            torch.Generator(),
        ).facts
        for n in (3, 200)
    )
    assert (few["regularisation"], few["chosen_by"]) == (1.0, "the recipe")
    assert (len(few["changes"]), few["converged"], many["converged"]) == (3, False, True)
    assert many["changes"][:3] == few["changes"]
    assert len(many["changes"]) < 200
    assert len(seen) == 3 + len(many["changes"])


@pytest.mark.parametrize(("method", "key"), [("pnp", "sigma_max"), ("red", "sigma_min")])
def test_learned_recipes_stay_within_the_priors_noise_and_need_it(method: str, key: str) -> None:
    loud = recipe(method=method, regularisation=1.0, **{key: 50.0})
    with pytest.raises(MrgenError, match=f"{key} = 50, the prior was trained up to 20: lower {key}"):
        reconstruct(slice_(), prior([], "supervised", Sampling()), loud, torch.Generator())
    with pytest.raises(MrgenError, match="needs a prior"):
        reconstruct(slice_(), None, loud, torch.Generator())


def test_a_rule_chooses_lambda() -> None:
    chosen = reconstruct(slice_(), None, recipe(method="sense", regularisation="discrepancy"), torch.Generator())
    given = recipe(method="sense", regularisation=chosen.facts["regularisation"])
    assert chosen.facts["chosen_by"].startswith("discrepancy")
    torch.testing.assert_close(reconstruct(slice_(), None, given, torch.Generator()).mean, chosen.mean)
