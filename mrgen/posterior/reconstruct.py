"""`reconstruct`: a prepared slice and a recipe to a `Reconstruction`.

Statistics are those of magnitude images: magnitude first, then mean and std over the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.posterior.antithetic import moments
from mrgen.posterior.baselines import cg_sense, l1_wavelet, total_variation, zero_filled
from mrgen.posterior.batch import Batch
from mrgen.posterior.check import audit, check_withheld
from mrgen.posterior.draws import DrawPerSample
from mrgen.posterior.guidance import guide
from mrgen.posterior.regularisation import Choice, choose
from mrgen.posterior.samplers import SAMPLERS, last_level, noise_levels
from mrgen.posterior.sets import each_set
from mrgen.posterior.splitting import Iterated, gaussian_posterior, split
from mrgen.prior.draws import complex_noise
from mrgen.prior.ensemble import MaskEnsemble, training_sampling
from mrgen.prior.files import Prior
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe, load

START_ITERATIONS = 10  # of the CG-SENSE image from which sampling starts
CLASSICAL: dict[str, Callable[[Slice, float, int], Tensor]] = {
    "sense": cg_sense,
    "l1-wavelet": l1_wavelet,
    "tv": total_variation,
}
START = {
    "sense": 0.01,
    "l1-wavelet": 0.0025,
    "tv": 0.0025,
    "pnp": 0.25,
    "red": 0.25,
}  # where a search for lambda starts, which beside a posterior would cost more than the samples


@dataclass(frozen=True)
class Reconstruction:
    """Images (y, x) of one slice, magnitudes in scaled units, of all sets of maps together."""

    mean: Tensor
    std: Tensor | None  # over the samples, unbiased; None for a method that gives one image
    samples: Tensor | None  # (n, y, x)
    zero_filled: Tensor
    baselines: dict[str, Tensor]  # by recipe name
    facts: dict[str, Any] = field(default_factory=dict)  # of `regularised`
    null_space: Tensor | None = None  # of the samples' complex mean, what A does not measure: mrgen.posterior.check
    checks: dict[str, Any] | None = None  # of the samples, from that module


def refuse_conditional(prior: Prior) -> None:
    """Raises MrgenError for a prior that is none by itself."""
    if prior.conditional:
        raise MrgenError("the prior is a round of mrgen em --diffem, which is of use there alone: take the final one")


def _refuse_unfit(prior: Prior, recipe: Recipe, level: Literal["sigma_max", "sigma_max_sets", "sigma_min"]) -> None:
    """Raises MrgenError for a prior that is none by itself, or that was not trained at that noise level of a recipe."""
    refuse_conditional(prior)
    sigma: float = getattr(recipe, level)
    if sigma > prior.sigma_max:
        raise MrgenError(
            f"the recipe has {level} = {sigma:g}, the prior was trained up to {prior.sigma_max:g}: "
            f"lower {level} in the recipe"
        )


def refuse_nan(samples: Tensor, remedy: str) -> None:
    """Raises MrgenError for samples (n, y, x) that are not finite."""
    if not torch.isfinite(torch.view_as_real(samples)).all():
        raise MrgenError(f"sampling diverged (NaN): {remedy}")


def posterior_samples(
    slice_: Slice,
    prior: Prior,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
    batch: Batch | None = None,
) -> Tensor:
    """`recipe.samples` complex posterior samples (n, y, x) of a slice, in scaled units.

    Sampling starts from CG-SENSE plus noise at recipe.sigma_max, or sigma_max_sets, where the low frequencies, stronger
    than that, are measured. `progress(done, total)` counts the images that the network has denoised, `batch` at a time.
    Of `generator`, on any device, one number is drawn: sample i depends on that and i, not on how many samples there
    are; with `recipe.antithetic` samples 0 and 1, 2 and 3, ... are pairs (mrgen.posterior.antithetic). Raises
    MrgenError on NaN, for a start beyond the noise that the prior was trained on, and as `training_sampling` and
    `Batch` do.
    """
    highest = recipe.highest(slice_.sets)
    _refuse_unfit(prior, recipe, "sigma_max" if highest == recipe.sigma_max else "sigma_max_sets")
    device = slice_.kspace.device
    batch, draws = batch or Batch.on(device), DrawPerSample(generator, recipe.antithetic)
    evaluations = 2 * recipe.steps - 1 if recipe.sampler == "heun" else recipe.steps
    probes = recipe.guidance == "proximal" and recipe.covariance == "local"
    total = evaluations * slice_.sets * (probes + recipe.samples * max(1, recipe.ensemble))
    unconditional = in_batches = batch.counted(prior, total, progress)
    if recipe.ensemble:
        unconditional = MaskEnsemble(in_batches, training_sampling(prior.metadata), recipe.ensemble, draws)
    draw = draws if recipe.sampler == "decoupled" else None
    sigmas = noise_levels(highest, last_level(prior.sigma_min, slice_.sigma0), recipe.steps, recipe.grid)
    last = float(sigmas[-1])  # there the mean, as every sampler ends with it
    sigma_data = float(prior.metadata["sigma_data"])
    denoise = guide(
        each_set(unconditional, slice_.sets), slice_, recipe, sigma_data=sigma_data, draw=draw, draw_above=last
    )
    start = cg_sense(slice_, regularisation=0.01, iterations=START_ITERATIONS)
    start = start.expand(recipe.samples, *start.shape)
    with torch.inference_mode():
        x = start + highest * complex_noise(start, draws)
        samples = SAMPLERS[recipe.sampler](denoise, x, sigmas, draws)
    refuse_nan(samples, "use more steps or CG iterations")
    return samples


def conditional_samples(
    slice_: Slice, denoiser: Prior, recipe: Recipe, condition: Tensor, generator: torch.Generator
) -> Tensor:
    """`recipe.samples` samples (n, y, x) by a conditional denoiser, which needs no guidance, given `condition` (y, x).

    By Heun's method, as the denoiser gives means and no draws. Raises MrgenError on NaN.
    """
    start = condition.expand(recipe.samples, -1, -1)
    sigmas = noise_levels(recipe.sigma_max, last_level(denoiser.sigma_min, slice_.sigma0), recipe.steps)

    def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(torch.stack([x_t, start], dim=1), sigma)

    draws = DrawPerSample(generator)
    with torch.inference_mode():
        x = start + recipe.sigma_max * complex_noise(start, draws)
        samples = SAMPLERS["heun"](denoise, x, sigmas, draws)
    refuse_nan(samples, "use more steps")
    return samples


def refuse_half_pairs(recipe: Recipe) -> None:
    """Raises MrgenError for an odd number of antithetic samples."""
    if recipe.antithetic and recipe.samples % 2:
        raise MrgenError(f"{recipe.samples} samples: antithetic ones come in pairs, expected an even number")


def draw(
    slice_: Slice,
    prior: Prior | None,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
    batch: Batch | None = None,
) -> Tensor:
    """Complex samples (n, y, x) of a recipe that draws; the arguments are those of `posterior_samples`.

    Raises MrgenError for an odd number of antithetic samples, too.
    """
    refuse_half_pairs(recipe)
    if recipe.method == "gaussian":
        draws = DrawPerSample(generator, recipe.antithetic)
        return gaussian_posterior(slice_, recipe.samples, recipe.cg_iterations, draws)
    assert prior is not None
    return posterior_samples(slice_, prior, recipe, generator, progress, batch)


def reconstruct(
    slice_: Slice,
    prior: Prior | None,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
    batch: Batch | None = None,
    check: bool = False,
) -> Reconstruction:
    """Reconstruct one slice by `recipe`; a posterior recipe adds the L1-wavelet image to compare with.

    With `check` samples are held against withheld lines, which takes a few more of them, after those of the slice. The
    other arguments are those of `posterior_samples`. Raises MrgenError as that does, for a learned recipe without a
    prior, and for an iteration that diverges.
    """
    zero = slice_.magnitude(zero_filled(slice_))
    if recipe.method == "zero-filled":
        return Reconstruction(zero, None, None, zero, {})
    if recipe.learned and prior is None:
        raise MrgenError(f"a {recipe.method} recipe needs a prior; give one with --prior")
    if recipe.draws:
        samples = draw(slice_, prior, recipe, generator, progress, batch)
        baselines = {}
        if recipe.method == "posterior":
            wavelet = l1_wavelet(slice_, START["l1-wavelet"], load(Recipe, "l1-wavelet").iterations)
            baselines = {"l1-wavelet": slice_.magnitude(wavelet)}
        null_space, checks = audit(slice_, samples)
        if check:

            def again(given: Slice, n: int) -> Tensor:
                return draw(given, prior, recipe.model_copy(update={"samples": n}), generator, None, batch)

            checks["withheld"] = check_withheld(slice_, again, generator, recipe.antithetic)
        found = slice_.magnitude(samples)
        mean, variance, _ = moments(found, recipe.antithetic)
        return Reconstruction(mean, variance.sqrt(), found, zero, baselines, {}, null_space, checks)
    image, facts = regularised(slice_, prior, recipe, progress)
    return Reconstruction(slice_.magnitude(image), None, None, zero, {}, facts)


def regularised(
    slice_: Slice, prior: Prior | None, recipe: Recipe, progress: Callable[[int, int], None] | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """The image (y, x), complex, of a recipe with a lambda, and in JSON's types how it came about.

    The facts are `regularisation`, by what it was `chosen_by`, and of pnp and red the relative `changes` of each
    iteration and whether it `converged`.
    """
    solve = _solver(prior, recipe, progress)
    if isinstance(recipe.regularisation, float):
        choice = Choice(recipe.regularisation, "the recipe")
    else:
        choice = choose(recipe.regularisation, lambda s, lam: solve(s, lam).image, slice_, START[recipe.method])
    found = solve(slice_, choice.regularisation)
    facts: dict[str, Any] = {"regularisation": choice.regularisation, "chosen_by": choice.chosen_by}
    if found.changes:
        facts |= {"changes": list(found.changes), "converged": found.converged}
    return found.image, facts


def _solver(
    prior: Prior | None, recipe: Recipe, progress: Callable[[int, int], None] | None
) -> Callable[[Slice, float], Iterated]:
    if recipe.method in CLASSICAL:
        return lambda slice_, lam: Iterated(CLASSICAL[recipe.method](slice_, lam, recipe.iterations))
    assert prior is not None
    if recipe.method == "pnp":
        _refuse_unfit(prior, recipe, "sigma_max")
        ratio = recipe.sigma_min / recipe.sigma_max
        sigmas = recipe.sigma_max * ratio ** torch.linspace(0, 1, recipe.steps)
    else:
        _refuse_unfit(prior, recipe, "sigma_min")
        sigmas = torch.tensor([recipe.sigma_min])
    return lambda slice_, lam: split(
        slice_,
        prior,
        cg_sense(slice_, 0.01, START_ITERATIONS),
        sigmas,
        lam,
        iterations=recipe.iterations,
        cg_iterations=recipe.cg_iterations,
        progress=progress,
    )
