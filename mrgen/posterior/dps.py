"""DPS: one gradient of the residual through the network (Chung et al., arXiv 2209.14687, algorithm 1).

The paper subtracts from each ancestral step the gradient of ||y - A D(x_t)||^2 with a step size zeta / ||y - A D||. A
sampler's step with noise levels sigma_t to sigma_s moves by 1 - (sigma_s / sigma_t)^2 of what the denoiser says, a
constant where the levels are equally spaced in log(sigma). So the same step, said as a denoiser, is

    E[x | x_t, y] ~ D + zeta J^T A^H (y - A D) / rms(y - A D)

with J the denoiser's Jacobian and the rms over the m sampled values, so that zeta, in image units, means the same for
any matrix, number of coils and R; the paper's is zeta (1 - (sigma_s / sigma_t)^2) sqrt(m) / 2. Too large a zeta for the
number of steps diverges. sigma0 appears nowhere: the samples are no draws of the posterior, and their spread is what
zeta makes of it. For comparison.
"""

from __future__ import annotations

from torch import Tensor

from mrgen.posterior.jacobian import denoise_with_pullback
from mrgen.prior.denoiser import Denoise
from mrgen.scans.scan import Slice


class Dps:
    """The guided denoiser of one slice; call it as D(x_t (n, y, x), sigma (n,))."""

    def __init__(self, prior: Denoise, slice_: Slice, *, zeta: float) -> None:
        self.prior, self.slice, self.zeta = prior, slice_, zeta
        self.support = slice_.support  # as in `Proximal`
        self.operator = slice_.operator()
        self.sampled = slice_.mask.expand(slice_.kspace.shape).sum()

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        denoised, pullback = denoise_with_pullback(self.prior, x_t, sigma)
        mean = self.support * denoised
        residual = self.slice.kspace - self.operator.forward(mean)
        rms = (residual.abs().square().flatten(1).sum(1) / self.sampled).sqrt()
        step = pullback(self.support * self.operator.adjoint(residual))
        return self.support * (mean + self.zeta / rms.reshape(-1, *[1] * (step.ndim - 1)) * step)
