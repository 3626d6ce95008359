"""Training objectives: each estimates a risk of the denoiser per pixel, one value per item of the batch.

The data are y = A x + z, z ~ CN(0, sigma0^2), with lines sampled with probabilities p_k and W = diag(1 / p_k), so
that E[A^H W A] = I. The denoiser's input is u = B (y + c e) + noise independent of y and e, with e ~ CN(0, I) and
white noise of std sigma_t in all. The weighted projected risk E||W^(1/2) A (D(u) - x)||^2 needs no clean image:

- `gsure` (Eldar 2009; Kawar et al., arXiv 2305.13128). Stein's identity E[z^H g(z)] = sigma0^2 tr(dg/dz) makes it
      E{ ||W^(1/2) (A D(u) - y)||^2 + 2 sigma0^2 Re tr(W A J_D B) - sigma0^2 tr(W) }
- `ambient-tweedie`. The noise of y' = y - (sigma0^2 / c) e, of variance sigma0^2 (1 + sigma0^2 / c^2), is uncorrelated
  with y + c e, so independent of u, and no divergence is left (Pang et al., CVPR 2021, "recorrupted"):
      E{ ||W^(1/2) (A D(u) - y')||^2 - sigma0^2 (1 + sigma0^2 / c^2) tr(W) }
  In the Fourier basis this is Ambient Tweedie (Daras et al., arXiv 2404.10177): to regress h = E[y | u] and to solve it
  for D = (sigma_t^2 h - sigma0^2 u) / (sigma_t^2 - sigma0^2). It needs c > 0, and here c >= sigma0, so that the noise
  of y' is at most twice that of y.
- `ambient` (Daras et al., arXiv 2305.19256; Aali et al., arXiv 2403.08728). The same, but u is made from some of the
  sampled lines only, and compared with all: D must predict lines, not only denoise them. On the lines left out y is
  independent of u as it is.

It is the full risk E||D(u) - x||^2 where the error of D(u) does not depend on which lines were sampled, that is
where u is close to x + white noise; otherwise it looks at the lines that u knows best.

Fourier basis: the signal is one (virtual) coil image, A = M F, B = F^H M and c^2 = sigma_t^2 - sigma0^2:
    k_t = M (y + c e) + (1 - M) sigma_t e,     u = F^H k_t.
There is no such input at sigma_t < sigma0 (for `ambient-tweedie` and `ambient`: sqrt(2) sigma0): the level is raised to
that, and below it the denoiser is what the network makes of less noisy scans and of higher levels.

SENSE basis: A = M F S, B = (A^H A + lambda)^-1 A^H, and with c^2 = 2 lambda sigma_t^2 - sigma0^2 the noise of
    u = (A^H A + lambda)^-1 [A^H (y + c e1) + sigma_t A^H A e2 + lambda sigma_t e3]
is white with std sigma_t for ANY A: along a singular direction s its variance is
sigma_t^2 (2 lambda s^2 + s^4 + lambda^2) / (s^2 + lambda)^2. lambda is at least sigma0^2 / (2 sigma_t^2) for c >= 0
(`gsure`), twice that for c >= sigma0, and `lambda_min`, to keep the solve short. So every level can be reached; but the
image is left with a share s^2 / (s^2 + lambda) of itself, and where that is small D learns from what it is never shown
when it is used. So a level that needs more than `lambda_max` is raised as well.

The trace is estimated by one probe b of unit modulus and uniform phase, E Re(b^H J b) = Re tr J, with one
directional derivative. By Tweedie's formula (tr J = risk / sigma_t^2) the term is 2 sigma0^2 / sigma_t^2 of the risk,
in the SENSE basis times the amplification ||(A^H A + lambda)^-1|| of noise at most, so it is rarely worth its cost at
high noise: it is taken with probability q = min(1, (DIVERGENCE_RANGE sigma0 / sigma_t)^2) and counted 1/q times, which
keeps the expectation.

Cost of a step beside `supervised`, which takes 1 network image an item: `gsure` 1 + q, the others 1. Fourier basis: a
handful of Fourier transforms of one image. SENSE basis: those of all coils, and `cg_iterations` of A^H A, for `gsure`
1 + q times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import line_normal, sense
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import Source, complex_noise, uniform
from mrgen.settings import Training

DIVERGENCE_RANGE = 1.0  # sigma_t / sigma0 up to which every item has its trace; it sets the cost, not the risk
SLOPE_STEP = 0.25  # of sigma_t: large enough for bfloat16, small against the noise that D averages over anyway


@dataclass(frozen=True)
class MeasuredBatch:
    """What GSURE may see: undersampled noisy k-space and how it was measured. There is no clean image here."""

    kspace: Tensor  # (batch, coil, ky, kx) complex64, whitened, scaled, zero where not sampled
    mask: Tensor  # (batch, 1, 1, kx)
    maps: Tensor  # (batch, coil, y, x); for the Fourier basis (batch, coil, 1, 1) will do, 0 where there is no coil
    weights: Tensor  # (batch, 1, 1, kx), 1 / Pr(line is sampled), 0 where never sampled
    sigma0: Tensor  # (batch,), on the CPU wherever the arrays are: to decide by it, no GPU has to be waited for


@dataclass(frozen=True)
class CleanBatch:
    """What the supervised oracle sees."""

    image: Tensor  # (batch, y, x) complex64, scaled


Objective = Callable[[Denoise, "MeasuredBatch | CleanBatch", Tensor, Source, Training], Tensor]
"""(denoiser, batch, sigma_t (batch,) on the CPU, generator, training) -> risks (batch,) where the arrays are."""


def to_device(batch: MeasuredBatch | CleanBatch, device: str) -> MeasuredBatch | CleanBatch:
    """The same batch with its arrays on another device."""
    arrays = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "sigma0"}
    return replace(batch, **{name: array.to(device, non_blocking=True) for name, array in arrays.items()})


def unit_phase(like: Tensor, generator: Source) -> Tensor:
    """A probe with |b| = 1 and uniform phase, so that E[b b^H] = I and E[b b^T] = 0."""
    angle = 2 * torch.pi * uniform(like, generator)
    return torch.polar(torch.ones_like(angle), angle)


def _per_item(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def beside(values: Tensor, like: Tensor) -> Tensor:
    """Numbers of items (batch,) on the device of `like`, without waiting for it: pinned, as a GPU waits for others."""
    if like.is_cuda and not values.is_cuda:
        values = values.pin_memory()
    return values.to(like.device, non_blocking=True)


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return beside(values, like).reshape(-1, *[1] * (like.ndim - 1))


def denoise_with_slope(
    denoise: Denoise, u: Tensor, direction: Tensor, sigma: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """D(u) (batch, y, x), and J_D(u) direction (chosen, y, x) for the items whose indices are `chosen`.

    The derivative is a finite difference over a step of rms SLOPE_STEP * sigma, exact for a linear D; it costs one
    more image in the same call, where a double backward or forward-mode derivative costs two.
    """
    rms = direction.abs().square().flatten(1).mean(1).sqrt().clamp_min(1e-12)
    step = _broadcast(SLOPE_STEP * sigma[chosen] / rms, direction)
    out = denoise(torch.cat([u, u[chosen] + step * direction]), torch.cat([sigma, sigma[chosen]]))
    xhat = out[: len(u)]
    return xhat, (out[len(u) :] - xhat[chosen]) / step


def _present(maps: Tensor) -> Tensor:
    """(batch, coil, 1, 1): 0 for coils that only fill the batch up; they carry no noise, so they do not count."""
    return (maps != 0).any(-1, keepdim=True).any(-2, keepdim=True).float()


@dataclass(frozen=True)
class Input:
    """The denoiser's input u and what a loss needs to know of it; data arrays are (batch, [coil,] ky, kx)."""

    u: Tensor  # (batch, y, x)
    sigma_t: Tensor  # (batch,), std of the white noise in u; on the CPU
    y: Tensor  # data
    used: Tensor  # the lines that u was made from, broadcasts against y
    e: Tensor  # what was added to y there, CN(0, I),
    c: Tensor  # times this, broadcasts against y
    weights: Tensor  # diagonal of W on the sampled points, as y
    forward: Callable[[Tensor], Tensor]  # A
    probe: Probe | None


@dataclass(frozen=True)
class Probe:
    """What a trace tr(W A J_D B) is estimated by, for the `rows` of the batch that are chosen for it."""

    rows: Tensor  # (chosen,)
    times: Tensor  # (chosen,): 1 / q, how often each counts
    left: Tensor  # A^H W b (chosen, y, x)
    right: Tensor  # B b


def _chosen(probed: bool, sigma_t: Tensor, batch: MeasuredBatch, generator: Source) -> tuple[Tensor, Tensor]:
    """Which items have their trace computed, if any, and 1 / q of each, both (chosen,) on the CPU."""
    if not probed:
        return torch.empty(0, dtype=torch.long), torch.empty(0)
    q = (DIVERGENCE_RANGE * batch.sigma0 / sigma_t).square().clamp_max(1)
    rows = (uniform(q, generator) < q).nonzero().flatten()  # on the CPU, as nonzero waits
    return rows, 1 / q[rows]


def sense_input(batch: MeasuredBatch, used: Tensor, sigma_t: Tensor, least: float, generator: Source,
                training: Training, probed: bool = False) -> Input:  # fmt: skip
    """u in the SENSE basis from the lines `used` (batch, 1, 1, kx), with c >= `least` sigma0; `probed` with a probe.

    One solve gives u and what the probe needs.
    """
    a, y = sense(batch.maps, used), batch.kspace
    sigma_t = torch.maximum(sigma_t, ((1 + least**2) / (2 * training.lambda_max)) ** 0.5 * batch.sigma0)
    ratio = batch.sigma0.square() / sigma_t.square()
    lam = ((1 + least**2) / 2 * ratio).clamp_min(training.lambda_min)
    c = _broadcast(sigma_t * (2 * lam - ratio).clamp_min(0).sqrt(), y)
    weights = (batch.weights * batch.mask * _present(batch.maps)).expand_as(y)

    e1 = complex_noise(y, generator)
    e2, e3 = (complex_noise(batch.maps[:, 0], generator) for _ in range(2))
    s, shift, maps, lines = _broadcast(sigma_t, e2), _broadcast(lam, e2), batch.maps, used
    rhs = a.adjoint(y + c * e1) + s * (line_normal(maps, lines)(e2) + shift * e3)
    rows, times = _chosen(probed, sigma_t, batch, generator)
    if len(rows):
        b, rows = unit_phase(y, generator), beside(rows, y)
        b, part = b[rows], sense(maps[rows], lines[rows])
        left = part.adjoint(weights[rows] * b)
        rhs, maps, lines, shift = (
            torch.cat([t, more])
            for t, more in ((rhs, part.adjoint(b)), (maps, maps[rows]), (lines, lines[rows]), (shift, shift[rows]))
        )
    normal = line_normal(maps, lines)
    found = conjugate_gradient(lambda x: normal(x) + shift * x, rhs, iterations=training.cg_iterations)
    u, right = found[: len(y)], found[len(y) :]
    probe = Probe(rows, beside(times, y), left, right) if len(rows) else None
    whole = a if used is batch.mask else sense(batch.maps, batch.mask)
    return Input(u, sigma_t, y, used, e1, c, weights, whole.forward, probe)


def fourier_input(batch: MeasuredBatch, used: Tensor, sigma_t: Tensor, least: float, generator: Source,
                  training: Training, probed: bool = False) -> Input:  # fmt: skip
    """u in the Fourier basis, for one random unit-norm virtual coil per item; arguments as for `sense_input`.

    Batches of a training come with one already (`TrainingSet.shares`), which only gets another phase here.
    """
    coils = complex_noise(batch.kspace[:, :, 0, 0], generator) * _present(batch.maps)[..., 0, 0]
    coils = coils / coils.norm(dim=1, keepdim=True)
    y = torch.einsum("bc,bcyx->byx", coils, batch.kspace)
    mask, used = batch.mask[:, 0], used[:, 0]
    weights = (batch.weights[:, 0] * mask).expand_as(y.real)
    sigma_t = torch.maximum(sigma_t, (1 + least**2) ** 0.5 * batch.sigma0)
    c = _broadcast((sigma_t.square() - batch.sigma0.square()).clamp_min(0).sqrt(), y)
    e, probe = complex_noise(y, generator), None
    u = ifft2c(used * (y + c * e) + (1 - used) * _broadcast(sigma_t, y) * e)
    rows, times = _chosen(probed, sigma_t, batch, generator)
    if len(rows):
        b, rows = unit_phase(y, generator), beside(rows, y)
        probe = Probe(rows, beside(times, y), ifft2c(weights[rows] * b[rows]), ifft2c(used[rows] * b[rows]))
    return Input(u, sigma_t, y, used, e, c, weights, lambda x: mask * fft2c(x), probe)


INPUTS = {"sense": sense_input, "fourier": fourier_input}


def gsure(denoise: Denoise, batch: MeasuredBatch, sigma_t: Tensor, generator: Source, training: Training) -> Tensor:
    """Weighted projected risk per pixel (batch,) at noise levels `sigma_t` (batch,), by the divergence."""
    given = INPUTS[training.basis](batch, batch.mask, sigma_t, 0.0, generator, training, probed=True)
    level, probe = beside(given.sigma_t, given.u), given.probe
    trace = torch.zeros_like(level)
    if probe is None:
        xhat = denoise(given.u, level)
    else:
        xhat, slope = denoise_with_slope(denoise, given.u, probe.right, level, probe.rows)
        trace = trace.index_add(0, probe.rows, probe.times * _per_item((probe.left.conj() * slope).real))
    residual = _per_item(given.weights * (given.forward(xhat) - given.y).abs().square())
    variance = beside(batch.sigma0.square(), residual)
    return (residual + variance * (2 * trace - _per_item(given.weights))) / xhat[0].numel()


def ambient_tweedie(
    denoise: Denoise, batch: MeasuredBatch, sigma_t: Tensor, generator: Source, training: Training
) -> Tensor:
    """Weighted projected risk per pixel (batch,), without a divergence."""
    return _recorrupted(denoise, batch, batch.mask, sigma_t, generator, training)


def ambient(denoise: Denoise, batch: MeasuredBatch, sigma_t: Tensor, generator: Source, training: Training) -> Tensor:
    """Weighted projected risk per pixel (batch,) of D(u), u made from a random part of the sampled lines.

    A line stays with probability `training.survival`, always where every scan samples it, as it does the centre.
    """
    stays = (uniform(batch.mask, generator) < training.survival) | (batch.weights <= 1)
    return _recorrupted(denoise, batch, batch.mask * stays, sigma_t, generator, training)


def _recorrupted(
    denoise: Denoise,
    batch: MeasuredBatch,
    used: Tensor,
    sigma_t: Tensor,
    generator: Source,
    training: Training,
) -> Tensor:
    given = INPUTS[training.basis](batch, used, sigma_t, 1.0, generator, training)
    variance = _broadcast(batch.sigma0.square(), given.y)
    target = given.y - given.used * variance / given.c * given.e
    floor = given.weights * variance * (1 + given.used * variance / given.c.square())
    xhat = denoise(given.u, beside(given.sigma_t, given.u))
    residual = given.weights * (given.forward(xhat) - target).abs().square()
    return _per_item(residual - floor) / xhat[0].numel()


def supervised(denoise: Denoise, batch: CleanBatch, sigma_t: Tensor, generator: Source, training: Training) -> Tensor:
    """|D(x + sigma_t n) - x|^2 per pixel (batch,): the oracle, and the M-step of EM."""
    level = beside(sigma_t, batch.image)
    x_t = batch.image + level.reshape(-1, 1, 1) * complex_noise(batch.image, generator)
    return _per_item((denoise(x_t, level) - batch.image).abs().square()) / batch.image[0].numel()


OBJECTIVES: dict[str, Objective] = {  # by Training.objective; those that see measured data look up Training.basis
    "gsure": gsure,  # type: ignore[dict-item]
    "ambient-tweedie": ambient_tweedie,  # type: ignore[dict-item]
    "ambient": ambient,  # type: ignore[dict-item]
    "supervised": supervised,  # type: ignore[dict-item]
}
