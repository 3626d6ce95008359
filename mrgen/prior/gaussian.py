"""A stationary Gaussian prior, x ~ CN(0, F^H diag(P) F), fitted to undersampled noisy data without a clean image.

Its denoiser is Wiener's filter, D(x_t, sigma) = F^H P / (P + sigma^2) F x_t. P depends on |k| alone, relative to the
Nyquist frequency, so one profile serves every matrix. It is the w-weighted mean of sum_c |y_c|^2 - coils sigma0^2 over
the sampled points of all scans, with w_k = 1 / Pr(k is sampled), which makes the lines that are always sampled count no
more than the others. As sum_c |S_c|^2 = 1, this is P smeared by the spectra of the coil maps, which are narrow.

It is where EM starts in Rozet et al., arXiv 2405.13712, section 4, and the best prior there is for very little data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.prior.spectrum import BINS, Rings, excess_power, ring_position, spread_rings
from mrgen.scans.scan import Slice

LEAST = 0.01  # of the noise: where the data hold no more power than noise, the profile stays above this


@dataclass(frozen=True)
class Gaussian:
    """The denoiser of the stationary Gaussian with the power `profile` (BINS,) over the rings of `spectrum`."""

    profile: Tensor

    def power(self, shape: tuple[int, int]) -> Tensor:
        """P (ky, kx) in k-space of this shape."""
        rings = torch.arange(BINS, device=self.profile.device)
        return spread_rings(self.profile, rings, ring_position(shape).to(self.profile))

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        p = self.power((x_t.shape[-2], x_t.shape[-1]))
        return ifft2c(p / (p + sigma.reshape(-1, 1, 1).square()) * fft2c(x_t))


def fit_gaussian(measured: Iterable[tuple[Slice, Tensor]]) -> Gaussian:
    """The Gaussian of slices that come with their lines' weights 1 / Pr(line is sampled), (kx,).

    Rings that no point of any slice lies in are filled from their neighbours. Raises ValueError without a slice.
    """
    total, count, noise, slices = torch.zeros(BINS), torch.zeros(BINS), 0.0, 0
    for slice_, weights in measured:
        rings = Rings(slice_.mask, (slice_.kspace.shape[-2], slice_.kspace.shape[-1]), weights)
        total += rings.total(excess_power(slice_.kspace, slice_.sigma0)).cpu()
        count += rings.count.cpu()
        noise, slices = noise + slice_.sigma0**2, slices + 1
    if not slices:
        raise ValueError("expected at least one slice to fit a Gaussian to")
    known = (count > 0).nonzero().flatten()
    means = (total[known] / count[known]).clamp_min(LEAST * noise / slices)
    return Gaussian(spread_rings(means, known, torch.arange(BINS).float()))
