"""Guidance: a posterior denoiser E[x | x_t, y] is a denoiser that wraps the prior's E[x | x_t].

Given x_t, take x ~ N(D(x_t), V_t). With y = A x + z, z ~ CN(0, sigma0^2 I), the posterior mean is

    x = D + V^(1/2) w,     (V^(1/2) A^H A V^(1/2) / sigma0^2 + I) w = V^(1/2) A^H (y - A D) / sigma0^2

solved by preconditioned CG, without back-propagation through the network; adding V^(1/2) A^H e / sigma0 + e' with
e, e' ~ CN(0, I) to the right-hand side makes x an exact draw from that Gaussian posterior instead of its mean.

V_t is diagonal in Fourier space, V_t = F^H diag(sigma_t^2 P / (P + sigma_t^2)) F: the exact covariance of x given
x_t for a stationary Gaussian of power spectrum P (`spectral`), or flat with P = sigma_d^2 (`isotropic`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.physics.operators import sense_normal
from mrgen.prior.denoiser import Denoise
from mrgen.prior.objectives import complex_noise
from mrgen.scans.scan import Slice


def power_spectrum(slice_: Slice, bins: int = 24) -> Tensor:
    """Radial power spectrum P (y, x) of the image in k-space, from the sampled lines of this slice alone.

    The mean of sum_c |y_c|^2 - coils * sigma0^2 over the sampled points of each ring (elliptical where the matrix is
    not square), interpolated linearly in log P and no lower than sigma0^2 / 100.
    """
    n_y, n_x = slice_.kspace.shape[-2:]
    y, x = grid((n_y, n_x))
    radius = (y.square() + x.square()).sqrt().clamp_max(1).to(slice_.kspace.device)
    position = radius.sqrt() * (bins - 1)  # finer rings near the centre
    ring = position.round().long()
    sampled = slice_.mask.expand(n_y, n_x) > 0
    power = slice_.kspace.abs().square().sum(0) - len(slice_.kspace) * slice_.sigma0**2
    total = torch.zeros(bins, device=power.device).index_add(0, ring[sampled], power[sampled])
    count = torch.zeros(bins, device=power.device).index_add(0, ring[sampled], torch.ones_like(power[sampled]))
    floor = slice_.sigma0**2 / 100
    known = (count > 0).nonzero().flatten()
    profile = (total[known] / count[known]).clamp_min(floor).log()
    left = (torch.searchsorted(known, position.floor().long().flatten(), right=True) - 1).clamp(0, len(known) - 2)
    start, stop = known[left], known[left + 1]
    t = ((position.flatten() - start) / (stop - start)).clamp(0, 1)
    return torch.lerp(profile[left], profile[left + 1], t).exp().reshape(n_y, n_x)


def fourier_diagonal(maps: Tensor, mask: Tensor) -> Tensor:
    """The diagonal of F A^H A F^H for A = M F S, (ky, kx): how much of each frequency the scan measures.

    Element k is sum_c sum_q M_q |S_c(q - k)|^2 / N with S_c(q) the Fourier transform of a coil map (coil, y, x), a
    correlation of the mask with the power of the maps.
    """
    spread = fft2c(maps).abs().square().sum(-3)
    sampled = mask.expand(spread.shape).to(spread)
    correlation = fft2c(ifft2c(sampled + 0j) * ifft2c(spread + 0j).conj()).real
    diagonal: Tensor = (correlation / spread.numel() ** 0.5).clamp_min(0)
    return diagonal


class Proximal:
    """The posterior denoiser of one slice; call it as D(x_t (n, y, x), sigma (n,)) with one sigma for all n."""

    def __init__(
        self, prior: Denoise, slice_: Slice, power: Tensor, *, iterations: int, draw: torch.Generator | None = None
    ) -> None:
        """`power` is P, (ky, kx) or a scalar; with `draw` each call returns a draw instead of the mean."""
        self.prior, self.slice, self.power, self.iterations, self.draw = prior, slice_, power, iterations, draw
        self.adjoint_data = slice_.operator().adjoint(slice_.kspace)
        self.normal = sense_normal(slice_.maps, slice_.mask)
        self.measured = fourier_diagonal(slice_.maps, slice_.mask)

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        mean, sigma0 = self.prior(x_t, sigma), self.slice.sigma0
        variance = sigma[0].square() * self.power / (self.power + sigma[0].square())
        root = variance.sqrt() / sigma0

        def whitened(image: Tensor) -> Tensor:  # V^(1/2) / sigma0 to Fourier space
            return root * fft2c(image)

        residual = self.adjoint_data - self.normal(mean)  # A^H (y - A D)
        if self.draw is not None:
            noise = complex_noise(self.slice.kspace.expand(len(x_t), -1, -1, -1), self.draw)
            residual = residual + sigma0 * self.slice.operator().adjoint(noise)
        rhs = whitened(residual) / sigma0
        if self.draw is not None:
            rhs = rhs + complex_noise(rhs, self.draw)
        w = conjugate_gradient(
            lambda w: whitened(self.normal(ifft2c(root * w))) + w,
            rhs,
            iterations=self.iterations,
            precondition=lambda r: r / (self.measured * root.square() + 1),
        )
        return mean + sigma0 * ifft2c(root * w)
