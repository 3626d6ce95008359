"""`posterior_samples`: independent of company, batch and device; what the network is shown with a mask ensemble."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gaussian
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.antithetic import moments
from mrgen.posterior.batch import Batch
from mrgen.posterior.reconstruct import posterior_samples, reconstruct
from mrgen.prior.denoiser import Denoiser
from mrgen.prior.files import Prior
from mrgen.scans.scan import Slice
from mrgen.settings import Network, Recipe, Sampling


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
    return Recipe(description="d", **{"samples": 2, "steps": 3, "covariance": "residual"} | changes)


def samples(prior_: Prior, recipe_: Recipe, **arguments: Any) -> Tensor:
    return posterior_samples(slice_(), prior_, recipe_, torch.Generator().manual_seed(0), **arguments)


def test_with_several_sets_of_maps_sampling_starts_at_a_level_of_its_own() -> None:
    one, levels = slice_(), list[float]()
    two = replace(one, maps=torch.stack([one.maps, one.maps.flip(-1)]) / 2**0.5, sets=2)

    def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma[0]))
        return x_t

    known = replace(prior([], "supervised", Sampling()), denoiser=denoise)
    for sets, given, expected in ((one, 0.5, 5.0), (two, 0.5, 0.5), (two, None, 5.0)):
        levels.clear()
        posterior_samples(sets, known, recipe(sigma_max_sets=given), torch.Generator().manual_seed(0))
        assert levels[0] == max(levels) == expected
    with pytest.raises(MrgenError, match="sigma_max_sets = 30"):
        posterior_samples(two, known, recipe(sigma_max_sets=30.0), torch.Generator())


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
    wanted = recipe(method="gaussian")
    five, eight = (
        reconstruct(slice_(), None, wanted.model_copy(update={"samples": n}), torch.Generator().manual_seed(0))
        for n in (5, 8)
    )
    assert five.samples is not None
    assert eight.samples is not None
    assert five.std is not None
    assert five.samples.shape == (5, *gaussian.SHAPE)
    torch.testing.assert_close(five.mean, five.samples.mean(0))
    torch.testing.assert_close(five.std, five.samples.std(0))
    assert (five.samples >= 0).all()
    torch.testing.assert_close(eight.samples[:5], five.samples)  # a sample does not depend on the others


def test_statistics_of_antithetic_samples_are_those_of_pairs() -> None:
    wanted = recipe(method="gaussian").model_copy(update={"samples": 6, "antithetic": True})
    found = reconstruct(slice_(), None, wanted, torch.Generator().manual_seed(0))
    assert found.samples is not None
    assert found.std is not None
    mean, variance, _ = moments(found.samples, antithetic=True)
    torch.testing.assert_close(found.mean, mean)
    torch.testing.assert_close(found.std, variance.sqrt())
    with pytest.raises(MrgenError, match="5 samples: antithetic ones come in pairs, expected an even number"):
        reconstruct(slice_(), None, wanted.model_copy(update={"samples": 5}), torch.Generator())


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


KINDS = [
    {"covariance": covariance, "sampler": sampler, "ensemble": ensemble}
    for covariance, sampler, ensemble in (
        ("local", "decoupled", 0),
        ("residual", "decoupled", 0),
        ("spectral", "ancestral", 0),
        ("isotropic", "heun", 2),
        ("residual", "decoupled", 2),
    )
]


def network() -> Prior:
    """An untrained network of the size of the scan."""
    torch.manual_seed(0)
    denoiser = Denoiser(Network(widths=(16,), blocks=1, patch=2), 0.4).eval().requires_grad_(False)
    metadata = prior([], "gsure-fourier", Sampling(acceleration=(2.0,), center_fraction=0.3)).metadata
    return Prior(denoiser, metadata, "")


def draw(n: int, images: int, seed: int = 0, device: str = "cpu", **kind: Any) -> Tensor:
    wanted = Recipe(description="d", samples=n, steps=4, **kind)
    with_network = network()
    with_network.denoiser.to(device)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(seed)
    return posterior_samples(slice_().to(device), with_network, wanted, generator, batch=Batch(images)).cpu()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_a_sample_depends_neither_on_the_others_nor_on_the_batch(kind: dict[str, Any]) -> None:
    four = draw(4, 1, **kind)
    for images in (2, 4):
        assert torch.equal(draw(4, images, **kind), four), "on a CPU to the bit"
    assert torch.equal(draw(8, 1, **kind)[:4], four)
    assert (four[1:] - four[0]).abs().amax((1, 2)).min() > 1e-2
    assert (draw(4, 1, seed=1, **kind) - four).abs().max() > 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_a_gpu_gives_the_samples_of_a_cpu(kind: dict[str, Any]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    here, there = draw(4, 4, **kind), draw(4, 4, device="cuda", **kind)
    assert (there - here).abs().max() < 5e-3 * here.abs().max()  # convolutions in TF32
    assert torch.equal(there, draw(4, 4, device="cuda", **kind)), "on one GPU to the bit"
    assert (draw(8, 2, device="cuda", **kind)[:4] - there).abs().max() < 5e-3 * here.abs().max()


def test_the_batch_is_halved_when_memory_is_short() -> None:
    sizes: list[int] = []
    told: list[str] = []

    def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
        sizes.append(len(x_t))
        if len(x_t) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x_t * sigma[:, None, None]

    x_t, sigma = torch.randn(14, 2, 3, dtype=torch.complex64), torch.rand(14)
    counted: list[int] = []
    batch = Batch(32, told.append)
    assert torch.equal(batch.denoise(denoise, x_t, sigma, counted.append), x_t * sigma[:, None, None])
    assert sizes == [14, 7, *[3] * 4, 2]
    assert counted == [*[3] * 4, 2]
    assert told == [
        f"note    the device has no memory for {n} images at a time: going on with {n // 2}" for n in (14, 7)
    ]
    batch.denoise(denoise, x_t[:4], sigma[:4], counted.append)
    assert sizes[7:] == [3, 1]
    assert len(told) == 2


def test_a_device_too_small_for_one_image_is_an_error_with_a_way_out() -> None:
    def full(x_t: Tensor, sigma: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MrgenError, match=r"memory for the network on one image of 2 x 3.*--device cpu"):
        Batch(2).denoise(full, torch.zeros(2, 2, 3), torch.ones(2), lambda _: None)
