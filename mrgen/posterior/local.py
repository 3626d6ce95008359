"""Where in the image x is uncertain given x_t: the local part E of the covariance V_t = E^(1/2) F^H Lambda F E^(1/2).

By Tweedie's second formula Var[x_r | x_t] = sigma_t^2 J_rr, with J the Jacobian of D at x_t. With a probe v of unit
modulus and uniform phase, E[conj(v_r) (J v)_r] = J_rr (Hutchinson's estimate of a diagonal; Bekas et al., Appl Numer
Math 2007), at the cost of one more image in the network's call. A single probe is noise, but J_rr changes slowly, so
its average over a neighbourhood is taken, a Gaussian that holds FREEDOM degrees of freedom of D:

    4 pi std^2 mean(J_rr) = FREEDOM

wide at high noise, where an image has few, and narrow at low. E has mean 1 over the matrix, so that Lambda is to be the
power of the error in k-space. Beside the object D is certain, and J = 0: there the noise of the data stays out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FREEDOM = 25.0  # the relative error of an average is about FREEDOM^(-1/2)
NARROWEST, LEAST = 1.5, 0.01  # std in pixels; of E, where D is more certain of itself than it should be


def _smooth(image: Tensor, std: Tensor) -> Tensor:
    """Real images (..., y, x) convolved, periodically, with Gaussians of `std` (..., 1, 1) pixels."""
    n_y, n_x = image.shape[-2:]
    fy, fx = torch.fft.fftfreq(n_y, device=image.device), torch.fft.rfftfreq(n_x, device=image.device)
    decay = (-2 * math.pi**2 * std.square() * (fy[:, None] ** 2 + fx**2)).exp()
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(image) * decay, s=(n_y, n_x))
    return smooth


def local_variance(diagonal: Tensor, support: Tensor) -> Tensor:
    """E (..., y, x), each of mean 1 and 0 outside `support` (..., y, x), from estimates of J_rr by one probe."""

    def total(images: Tensor) -> Tensor:
        return images.sum((-2, -1), keepdim=True)

    inside, widest = diagonal * support, max(diagonal.shape[-2:]) / 4
    freedom = (total(inside) / total(support).clamp_min(1)).clamp_min(1e-9)  # mean J_rr
    smooth = _smooth(inside, (FREEDOM / (4 * math.pi * freedom)).sqrt().clamp(NARROWEST, widest))
    e = support * torch.maximum(smooth, LEAST * smooth.mean((-2, -1), keepdim=True).clamp_min(1e-9))
    return e / e.mean((-2, -1), keepdim=True).clamp_min(1e-30)  # 0 without a support
