"""Slices sampled together give what they give one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.baselines import cg_sense
from mrgen.posterior.em import several_samples
from mrgen.posterior.guidance import Proximal
from mrgen.posterior.reconstruct import START_ITERATIONS, posterior_samples
from mrgen.posterior.samplers import SAMPLERS, noise_levels
from mrgen.posterior.together import sample_together, stack
from mrgen.prior.draws import complex_noise
from mrgen.prior.files import Prior
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe


def measured(seed: int, coils: int, sigma0: float, shape: tuple[int, int] = (20, 32)) -> Slice:
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(coils, *shape, dtype=torch.complex64, generator=g)
    maps = maps / maps.abs().square().sum(0).sqrt()
    maps[:, : 3 + seed] = 0
    line = (torch.arange(shape[1]) + seed) % (2 + seed) == 0
    line[shape[1] // 2 - 3 : shape[1] // 2 + 3] = True
    slice_ = Slice(torch.zeros_like(maps), line.float(), maps, sigma0, 1.0, None)
    image, noise = (torch.randn(s, dtype=torch.complex64, generator=g) for s in (shape, maps.shape))
    return replace(slice_, kspace=slice_.operator().forward(image) + sigma0 * slice_.mask * noise)


def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
    """Not linear: each sample has an E of its own, of which that of the first is to be taken."""
    power = x_t.abs().square() + 3
    return x_t * power / (power + sigma.reshape(-1, 1, 1).square())


PRIOR = Prior(denoise, {"sigma_min": 0.05, "sigma_max": 20.0, "sigma_data": 0.4}, "")


def by_itself(slice_: Slice, recipe: Recipe, seed: int) -> Tensor:
    """Samples (n, y, x) by `Proximal`; its solve should converge: a stack may be preconditioned otherwise."""
    g, levels = torch.Generator().manual_seed(seed), noise_levels(recipe.sigma_max, 0.05, recipe.steps)
    draw = g if recipe.sampler == "decoupled" else None
    alone = Proximal(
        denoise,
        slice_,
        None,
        iterations=recipe.cg_iterations,
        local=recipe.covariance == "local",
        draw=draw,
        draw_above=float(levels[-1]),
    )
    start = cg_sense(slice_, 0.01, START_ITERATIONS).expand(recipe.samples, *slice_.maps.shape[-2:])
    x = start + recipe.sigma_max * complex_noise(start, g)
    return SAMPLERS[recipe.sampler](alone, x, levels, g)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("covariance", ["local", "residual"])
@pytest.mark.parametrize(("sampler", "coils"), [("ddim", (3, 5, 4)), ("decoupled", (4, 4, 4))])
def test_together_as_one_by_one(sampler: str, coils: tuple[int, ...], covariance: str, samples: int) -> None:
    """With draws of noise for as many coils; fewer coils draw other numbers of the same law."""
    slices = [measured(n, c, sigma0) for n, (c, sigma0) in enumerate(zip(coils, (0.02, 0.1, 0.05), strict=True))]
    recipe = Recipe(description="d", covariance=covariance, sampler=sampler, steps=5, cg_iterations=150, cg_settled=0)  # type: ignore[arg-type]
    recipe = recipe.model_copy(update={"samples": samples})
    generators = [torch.Generator().manual_seed(n) for n in range(3)]
    found = sample_together(slices, PRIOR, recipe, generators)
    assert found.shape == (3, samples, 20, 32)
    for n, (slice_, together) in enumerate(zip(slices, found, strict=True)):
        alone = by_itself(slice_, recipe, n)
        assert float(alone.abs().max()) > 0.5
        torch.testing.assert_close(together, alone, rtol=0, atol=2e-4)


def test_fewer_coils_have_draws_of_the_same_law() -> None:
    """Mean and variance over many draws of a slice of 2 coils beside one of 6."""
    slices, n = [measured(0, 2, 0.3, (12, 16)), measured(1, 6, 0.3, (12, 16))], 200
    recipe = Recipe(description="d", covariance="residual", steps=2, cg_iterations=12, sigma_max=1.0, samples=n)
    found = sample_together(slices, PRIOR, recipe, [torch.Generator().manual_seed(k) for k in range(2)])[0]
    alone = posterior_samples(slices[0], PRIOR, recipe, torch.Generator().manual_seed(0))
    assert float((found.mean(0) - alone.mean(0)).abs().square().mean()) < 3 * 2 * float(alone.var(0).mean()) / n
    assert float(found.var(0).mean()) == pytest.approx(float(alone.var(0).mean()), rel=0.05)


@pytest.mark.parametrize(("room", "sizes"), [(2**26, [2, 1]), (4 * 3 * 20 * 32 - 1, [1, 1, 1])])
def test_other_matrix_sizes_are_stacks_of_their_own_and_points_go_alone(
    monkeypatch: pytest.MonkeyPatch, room: int, sizes: list[int]
) -> None:
    """Nor are there more at once than there is room for, here for two samples of one slice."""
    stacks: list[int] = []

    def watched(slices: Sequence[Slice], *rest: Any) -> Tensor:
        stacks.append(len(slices))
        return sample_together(slices, *rest)

    monkeypatch.setattr("mrgen.posterior.em.STACK", room)
    monkeypatch.setattr("mrgen.posterior.em.sample_together", watched)
    slices = [measured(0, 3, 0.1), measured(1, 3, 0.1, (16, 24)), measured(2, 3, 0.1)]
    points = replace(slices[0], mask=slices[0].mask.expand(20, 32).clone())
    with pytest.raises(ValueError, match="one matrix size"):
        stack(slices)
    with pytest.raises(ValueError, match="along lines"):
        stack([points])
    recipe = Recipe(
        description="d", covariance="residual", sampler="ddim", steps=3, cg_iterations=150, cg_settled=0, samples=2
    )
    given = [*slices, points]
    found = several_samples(given, PRIOR, recipe, [torch.Generator().manual_seed(n) for n in range(4)])
    assert sorted(stacks, reverse=True) == sizes
    assert [x.shape for x in found] == [(2, *s.kspace.shape[1:]) for s in given]
    for n, (slice_, samples) in enumerate(zip(given, found, strict=True)):
        if n == 3:
            alone = posterior_samples(slice_, PRIOR, recipe, torch.Generator().manual_seed(n))
        else:
            alone = by_itself(slice_, recipe, n)
        torch.testing.assert_close(samples, alone, rtol=0, atol=2e-4)
        assert (samples[0] - samples[1]).abs().max() > 1e-3


def test_sampling_ends_where_the_cleanest_slice_would() -> None:
    seen: list[Tensor] = []

    def watched(x_t: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return denoise(x_t, sigma)

    recipe = Recipe(description="d", covariance="residual", steps=4, cg_iterations=2, samples=3)
    slices = [measured(0, 2, 0.8), measured(1, 2, 0.4)]
    sample_together(slices, replace(PRIOR, denoiser=watched), recipe, [torch.Generator(), torch.Generator()])
    assert [float(s[0]) for s in (seen[0], seen[-1])] == pytest.approx([recipe.sigma_max, 0.1])
    assert all(torch.equal(s, s[:1].expand(6)) for s in seen)


def test_divergence_is_told() -> None:
    broken = replace(PRIOR, denoiser=lambda x, s: x * torch.nan)
    recipe = Recipe(description="d", covariance="residual", steps=2, cg_iterations=2)
    with pytest.raises(MrgenError, match="diverged"):
        sample_together([measured(0, 3, 0.1)], broken, recipe, [torch.Generator()])
