"""Several sets of coil maps: y = M F sum_m S_m x_m + z, with an image x_m for each set m.

Where an object wraps into the field of view, two places share a pixel and each set holds a mixture of them (Uecker et
al., Magn Reson Med 2014, on more than one set of maps). The prior is asked about every x_m by itself, as if they were
independent, and A alone ties them together. So a posterior sees images (n, set, y, x) for (n, y, x), and a denoiser
sees each set's as an image of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrgen.prior.denoiser import Denoise
from mrgen.scans.scan import Slice


def each_set(prior: Denoise, sets: int) -> Denoise:
    """D for images (n, set, y, x), one set by one; with one set the prior itself, for (n, y, x)."""
    return prior if sets == 1 else each_image(prior)


def each_image(prior: Denoise) -> Denoise:
    """D for images (n, m, y, x), m of them at each of n noise levels."""

    def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
        return prior(x_t.flatten(0, 1), sigma.repeat_interleave(x_t.shape[1])).reshape(x_t.shape)

    return denoise


def error_shares(slice_: Slice, residual: Tensor) -> Tensor:
    """What share of the denoiser's error lies in each set, (n, set, 1, 1), told by `residual` A^H (y - A D).

    Its power less that of the noise, sigma0^2 tr(A_m^H A_m), of which at least a hundredth is taken for error. A
    denoiser may be sure of an image unlike those it has learned from, so that its Jacobian tells nothing of this.
    """
    noise = slice_.sigma0**2 * slice_.mask.mean() * slice_.maps.abs().square().sum((-3, -2, -1))
    power = torch.maximum((slice_.support * residual).abs().square().sum((-2, -1)) - noise, noise / 100)
    return (power / power.sum(-1, keepdim=True))[..., None, None]


def power_shares(slice_: Slice) -> Tensor | float:
    """What share of the image's power lies in each set, (set, 1, 1), told by A^H y; 1 with one set."""
    if slice_.sets == 1:
        return 1.0
    power = slice_.operator().adjoint(slice_.kspace).abs().square().sum((-2, -1), keepdim=True)
    return power / power.sum()
