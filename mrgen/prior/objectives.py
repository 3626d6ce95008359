"""Training objectives: each estimates a risk of the denoiser per pixel, one value per item of the batch.

GSURE (Eldar 2009; Kawar et al., arXiv 2305.13128) needs no clean image. With y = A x + z, z ~ CN(0, sigma0^2 I),
lines sampled with probabilities p_k and W = diag(1 / p_k), so that E[A^H W A] = I, and for an input u = B y +
(noise independent of z), Stein's identity E[z^H g(z)] = sigma0^2 tr(dg/dz) gives the weighted projected risk

    E||W^(1/2) A (D(u) - x)||^2 = E{ ||W^(1/2) (A D(u) - y)||^2 + 2 sigma0^2 Re tr(W A J_D B) - sigma0^2 tr(W) }

This is the full risk E||D(u) - x||^2 where the error of D(u) does not depend on which lines were sampled, that is
where u is close to x + white noise; otherwise it looks at the lines that u knows best.

Fourier basis: the signal is one (virtual) coil image, A = M F, and B = F^H on the sampled points, because
    k_t = M (y + sqrt(sigma_t^2 - sigma0^2) n) + (1 - M) sigma_t n,     u = F^H k_t.

SENSE basis: A = M F S, and with lambda >= sigma0^2 / (2 sigma_t^2) the noise of
    u = (A^H A + lambda)^-1 [A^H (y + sqrt(2 lambda sigma_t^2 - sigma0^2) e1) + sigma_t A^H A e2 + lambda sigma_t e3]
is white with std sigma_t for ANY A: along a singular direction s its variance is
sigma_t^2 (2 lambda s^2 + s^4 + lambda^2) / (s^2 + lambda)^2. Here B = (A^H A + lambda)^-1 A^H.

The trace is estimated by one probe b of unit modulus and uniform phase, E Re(b^H J b) = Re tr J, with one
directional derivative. It is left out at sigma_t > DIVERGENCE_RANGE sigma0, where by Tweedie's formula
(tr J = risk / sigma_t^2) it is below about 2 / DIVERGENCE_RANGE^2 = 0.5 % of the risk times the noise
amplification of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import sense
from mrgen.prior.denoiser import Denoise
from mrgen.settings import Training

DIVERGENCE_RANGE = 20.0
SLOPE_STEP = 0.25  # of sigma_t: large enough for bfloat16, small against the noise that D averages over anyway


@dataclass(frozen=True)
class MeasuredBatch:
    """What GSURE may see: undersampled noisy k-space and how it was measured. There is no clean image here."""

    kspace: Tensor  # (batch, coil, ky, kx) complex64, whitened, scaled, zero where not sampled
    mask: Tensor  # (batch, 1, 1, kx)
    maps: Tensor  # (batch, coil, y, x)
    weights: Tensor  # (batch, 1, 1, kx), 1 / Pr(line is sampled), 0 where never sampled
    sigma0: Tensor  # (batch,)


@dataclass(frozen=True)
class CleanBatch:
    """What the supervised oracle sees."""

    image: Tensor  # (batch, y, x) complex64, scaled


Objective = Callable[[Denoise, "MeasuredBatch | CleanBatch", Tensor, torch.Generator, Training], Tensor]


def to_device(batch: MeasuredBatch | CleanBatch, device: str) -> MeasuredBatch | CleanBatch:
    """The same batch on another device."""
    return type(batch)(**{f.name: getattr(batch, f.name).to(device, non_blocking=True) for f in fields(batch)})


def complex_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """CN(0, 1) of the shape and type of `like`: E|n|^2 = 1."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def unit_phase(like: Tensor, generator: torch.Generator) -> Tensor:
    """A probe with |b| = 1 and uniform phase, so that E[b b^H] = I and E[b b^T] = 0."""
    angle = 2 * torch.pi * torch.rand(like.shape, device=like.device, generator=generator)
    return torch.polar(torch.ones_like(angle), angle)


def _per_item(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


def _broadcast(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def denoise_with_slope(
    denoise: Denoise, u: Tensor, direction: Tensor, sigma: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """D(u) and J_D(u) direction for the items where `wanted` (batch,), zero for the rest; both (batch, y, x).

    The derivative is a finite difference over a step of rms SLOPE_STEP * sigma, exact for a linear D; it costs one
    more image in the same call, where a double backward or forward-mode derivative costs two.
    """
    near = wanted.nonzero().flatten()
    along, size = direction[near], len(u)
    rms = along.abs().square().flatten(1).mean(1).sqrt().clamp_min(1e-12)
    step = _broadcast(SLOPE_STEP * sigma[near] / rms, along)
    out = denoise(torch.cat([u, u[near] + step * along]), torch.cat([sigma, sigma[near]]))
    slope = torch.zeros_like(u).index_copy(0, near, (out[size:] - out[:size][near]) / step)
    return out[:size], slope


def _present(maps: Tensor) -> Tensor:
    """(batch, coil, 1, 1): 0 for coils that only fill the batch up; they carry no noise, so they do not count."""
    return (maps != 0).any(-1, keepdim=True).any(-2, keepdim=True).float()


def gsure_sense(
    denoise: Denoise, batch: MeasuredBatch, sigma_t: Tensor, generator: torch.Generator, training: Training
) -> Tensor:
    """Weighted projected risk per pixel (batch,) in the SENSE basis at noise levels `sigma_t` (batch,)."""
    a = sense(batch.maps, batch.mask)
    y, sigma0 = batch.kspace, batch.sigma0
    lam = (sigma0.square() / (2 * sigma_t.square())).clamp_min(training.lambda_min)
    near = sigma_t < DIVERGENCE_RANGE * sigma0

    e1 = complex_noise(y, generator)
    e2, e3 = (complex_noise(batch.maps[:, 0], generator) for _ in range(2))
    extra = (2 * lam * sigma_t.square() - sigma0.square()).clamp_min(0).sqrt()
    s, scale = _broadcast(sigma_t, e2), _broadcast(extra, y)
    rhs = a.adjoint(y + scale * e1) + s * a.normal(e2) + _broadcast(lam, e3) * s * e3
    probe = batch.mask * unit_phase(y, generator)
    double = sense(torch.cat([batch.maps, batch.maps]), torch.cat([batch.mask, batch.mask]))
    lam2 = _broadcast(torch.cat([lam, lam]), rhs)
    solved = conjugate_gradient(
        lambda x: double.normal(x) + lam2 * x,
        torch.cat([rhs, a.adjoint(probe)]),
        iterations=training.cg_iterations,
    )
    u, direction = solved.chunk(2)

    xhat, slope = denoise_with_slope(denoise, u, direction, sigma_t, near)
    weights = batch.weights * batch.mask * _present(batch.maps)
    return _gsure(a.forward(xhat), a.forward(slope), y, probe, weights, sigma0, xhat[0].numel())


def gsure_fourier(
    denoise: Denoise, batch: MeasuredBatch, sigma_t: Tensor, generator: torch.Generator, training: Training
) -> Tensor:
    """Weighted projected risk per pixel (batch,) in the Fourier basis, for one random unit-norm virtual coil per item.

    Noise levels below sigma0 cannot be reached by adding noise: there sigma0 itself is used.
    """
    coils = complex_noise(batch.kspace[:, :, 0, 0], generator) * _present(batch.maps)[..., 0, 0]
    coils = coils / coils.norm(dim=1, keepdim=True)
    y = torch.einsum("bc,bcyx->byx", coils, batch.kspace)
    mask, weights, sigma0 = batch.mask[:, 0], batch.weights[:, 0] * batch.mask[:, 0], batch.sigma0
    sigma_t = torch.maximum(sigma_t, sigma0)
    extra = (sigma_t.square() - sigma0.square()).sqrt()
    n = complex_noise(y, generator)
    k_t = mask * (y + _broadcast(extra, y) * n) + (1 - mask) * _broadcast(sigma_t, y) * n
    probe = mask * unit_phase(y, generator)
    near = sigma_t < DIVERGENCE_RANGE * sigma0
    xhat, slope = denoise_with_slope(denoise, ifft2c(k_t), ifft2c(probe), sigma_t, near)
    return _gsure(mask * fft2c(xhat), mask * fft2c(slope), y, probe, weights, sigma0, xhat[0].numel())


def _gsure(
    predicted: Tensor, slope: Tensor, y: Tensor, probe: Tensor, weights: Tensor, sigma0: Tensor, pixels: int
) -> Tensor:
    """Weighted residual + divergence - noise floor, per pixel (batch,); all k-space arrays as `y`."""
    residual = _per_item(weights * (predicted - y).abs().square())
    divergence = _per_item(weights * (probe.conj() * slope).real)
    floor = _per_item(weights.expand_as(y.real))
    return (residual + sigma0.square() * (2 * divergence - floor)) / pixels


def supervised(
    denoise: Denoise, batch: CleanBatch, sigma_t: Tensor, generator: torch.Generator, training: Training
) -> Tensor:
    """|D(x + sigma_t n) - x|^2 per pixel (batch,): the oracle, and the M-step of EM."""
    s = _broadcast(sigma_t, batch.image)
    x_t = batch.image + s * complex_noise(batch.image, generator)
    return _per_item((denoise(x_t, sigma_t) - batch.image).abs().square()) / batch.image[0].numel()


OBJECTIVES: dict[str, Objective] = {
    "gsure-sense": gsure_sense,  # type: ignore[dict-item]
    "gsure-fourier": gsure_fourier,  # type: ignore[dict-item]
    "supervised": supervised,  # type: ignore[dict-item]
}
