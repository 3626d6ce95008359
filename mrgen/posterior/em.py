"""EM with networks: the two steps of mrgen.prior.em for a protocol, with the posterior sampler of its recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.baselines import cg_sense
from mrgen.posterior.batch import Batch
from mrgen.posterior.flow import flowed
from mrgen.posterior.reconstruct import START_ITERATIONS, conditional_samples, posterior_samples
from mrgen.posterior.together import sample_together, together_applies
from mrgen.prior.distributed import local_device
from mrgen.prior.em import Steps
from mrgen.prior.files import Prior, load_prior
from mrgen.prior.mstep import learn_from_samples
from mrgen.scans.scan import Slice
from mrgen.settings import Protocol, Recipe, load

STACK = 2**27  # numbers in an array of what is sampled at once: 1 GB, which a GPU needs about ten times


def several_samples(
    slices: Sequence[Slice], prior: Prior, recipe: Recipe, generators: Sequence[torch.Generator]
) -> list[Tensor]:
    """`recipe.samples` posterior samples (n, y, x) of each slice.

    Those of one matrix size, sampled along lines, are drawn together, while the coils of all samples fit into STACK,
    and of each slice a matrix for each readout position, where E^(1/2) of V_t needs them.
    """
    stacks: dict[object, list[int]] = {}
    for i, slice_ in enumerate(slices):
        stacks.setdefault(i if slice_.mask.ndim > 1 else slice_.kspace.shape[1:], []).append(i)
    found: dict[int, Tensor] = {}
    widest = max(s.kspace.shape[-1] for s in slices) if recipe.covariance == "local" else 0
    room = max(1, STACK // max(s.kspace[0].numel() * max(recipe.samples * len(s.kspace), widest) for s in slices))
    for members in (m[i : i + room] for m in stacks.values() for i in range(0, len(m), room)):
        chosen, own = [slices[i] for i in members], [generators[i] for i in members]
        if chosen[0].mask.ndim > 1:
            found[members[0]] = posterior_samples(chosen[0], prior, recipe, own[0])
        else:
            found |= dict(zip(members, sample_together(chosen, prior, recipe, own), strict=True))
    return [found[i] for i in range(len(slices))]


def network_steps(
    protocol: Protocol, device: str, report: Callable[[str], None], diffem: bool = False
) -> tuple[Steps[Prior], dict[str, Any]]:
    """The steps that `[em]` of the protocol asks for, and the settings that they were made from, for `Run.origin`.

    With `diffem` the networks of the rounds are conditional, on CG-SENSE, and a prior is learned in the end. Raises
    MrgenError for a recipe that draws no samples. Under torchrun this process takes the GPU of its own.
    """
    if device != "cpu" and (own := local_device(device)) != device:
        torch.cuda.set_device(own)
    # heldout.score takes independent samples
    recipe = load(Recipe, protocol.em.recipe).model_copy(update={"antithetic": False})
    if recipe.method != "posterior":
        raise MrgenError(f"recipe {protocol.em.recipe!r} draws no samples: name a posterior recipe in [em] recipe")
    network = protocol.network.model_copy(update={"condition": diffem})
    rounds = protocol.model_copy(update={"network": network})
    plain = protocol.model_copy(update={"em": protocol.em.model_copy(update={"relaxation": 1.0})})
    simple = partial(cg_sense, regularisation=0.01, iterations=START_ITERATIONS)
    learn = partial(learn_from_samples, device=device, report=report)
    batch = Batch.on(device, report)

    def sample(slice_: Slice, prior: Prior, generator: torch.Generator, n: int) -> Tensor:
        wanted = recipe.model_copy(update={"samples": n})
        if prior.conditional:
            return conditional_samples(slice_, prior, wanted, simple(slice_), generator)
        return posterior_samples(slice_, prior, wanted, generator, batch=batch)

    def several(slices: list[Slice], prior: Prior, generators: list[torch.Generator], n: int) -> list[Tensor]:
        if prior.conditional or not together_applies(recipe):
            return [sample(slice_, prior, g, n) for slice_, g in zip(slices, generators, strict=True)]
        return several_samples(slices, prior, recipe.model_copy(update={"samples": n}), generators)

    def extrapolate(prior: Prior, before: Prior, w: float) -> Prior:
        def denoiser(x_t: Tensor, sigma: Tensor) -> Tensor:
            now: Tensor = prior(x_t, sigma)
            return now + w * (now - before(x_t, sigma))

        return replace(prior, denoiser=denoiser)

    def transport(slice_: Slice, samples: Tensor, prior: Prior, generator: torch.Generator) -> Tensor:
        return flowed(slice_, samples, prior, protocol.em.flow, generator)

    steps = Steps(
        partial(load_prior, device=device, amp=device != "cpu"),
        sample,
        partial(learn, protocol=rounds),
        condition=simple if diffem else None,
        finish=partial(learn, protocol=plain) if diffem else None,
        extrapolate=extrapolate,
        transport=transport if protocol.em.flow and not diffem else None,
        several=several if device != "cpu" else None,  # there a batch is no faster than its items
    )
    settings = {
        "protocol": rounds.model_dump(mode="json", exclude={"description", "em"}),
        "recipe": recipe.model_dump(mode="json", exclude={"description", "samples"}),
    }
    return steps, settings
