"""`proximal` guidance: x given x_t is taken as N(D(x_t), V_t), with a V_t that costs no back-propagation.

With y = A x + z, z ~ CN(0, sigma0^2 I), the posterior mean is

    x = D + B w,     (B^H A^H A B / sigma0^2 + I) w = B^H A^H (y - A D) / sigma0^2,     V_t = B B^H

solved by preconditioned CG, without back-propagation through the network; adding B^H A^H e / sigma0 + e' with
e, e' ~ CN(0, I) to the right-hand side makes x an exact draw from that Gaussian posterior instead of its mean.

Where no coil has a map, A sees nothing and x is 0 by definition: x is multiplied by the support of the maps. Otherwise
the prior alone would decide there, and with it the noise that a prior learned from noisy data believes in.

V_t = E^(1/2) F^H Lambda F E^(1/2): E is diagonal in the image, of mean 1, and Lambda in Fourier space, flat over rings
of equal |k|. There are four choices:

- `local`: E from the diagonal of D's Jacobian (mrgen.posterior.local), and Lambda as for `residual`. An error that is
  confined to the object is not looked for beside it, so the data's noise stays out. All samples share the E of the
  first one, at the cost of one more image in the network.
- `residual`: E = 1 and Lambda what the data say about the denoiser's error here and now. Where k-space is sampled,
  y - A D(x_t) holds that error and the noise, so Lambda(|k|) is the ring's mean of sum_c |y_c - (A D)_c|^2 - coils
  sigma0^2, between 0.001 and 1 times sigma_t^2. It costs no network call and follows the prior wherever it is better,
  or worse, than expected.
- `spectral`: V_t = F^H diag(sigma_t^2 P / (P + sigma_t^2)) F, exact for a stationary Gaussian of power spectrum P.
- `isotropic`: the same with P = sigma_d^2.

With several sets of maps (mrgen.posterior.sets) x, D and E have an axis for them. The errors of all sets add up in the
data, so those of one are E Lambda with an E whose sum over the sets has mean 1, and elsewhere its share of Lambda or P.
In E the shares are those of the power of A^H (y - A D), as D is no judge of a set that looks like no head. With
sigma_t^2 on all pixels of both, if they fill the matrix, is then Lambda = 2 sigma_t^2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.operators import sense_points
from mrgen.posterior.local import local_variance
from mrgen.posterior.sets import error_shares, power_shares
from mrgen.posterior.system import Map, System, from_centred, scaled, transform, transform_back, twice
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import Source, complex_noise
from mrgen.prior.objectives import denoise_with_slope, unit_phase
from mrgen.prior.spectrum import Rings, excess_power
from mrgen.scans.scan import Slice


def probe(support: Tensor) -> Tensor:
    """Random phases (y, x), the same on every device, for maps with this support."""
    return unit_phase(torch.zeros(support.shape[-2:]), torch.Generator().manual_seed(0)).to(support.device)


class Proximal:
    """The posterior denoiser of one slice; call it as D(x_t (n, y, x), sigma (n,)) with one sigma for all n."""

    def __init__(
        self,
        prior: Denoise,
        slice_: Slice,
        power: Tensor | None,
        *,
        iterations: int,
        settled: float = 0.0,
        local: bool = False,
        draw: Source | None = None,
        draw_above: float = 0.0,
    ) -> None:
        """`power` is P, ([set,] ky, kx) or a scalar, or None for Lambda from the residual; without `local` E is 1.

        `iterations` are those of CG at most; it ends where one changes the image by less than a share of `settled`.
        With `draw` a call returns a draw where sigma is above `draw_above`, and the mean elsewhere.
        """
        self.prior, self.slice, self.power = prior, slice_, power
        self.iterations, self.settled = iterations, settled
        self.draw, self.draw_above = draw, draw_above
        self.support = slice_.support
        self.probe = probe(self.support) if local else None
        self.shares = 1.0 if local else power_shares(slice_)
        self.filled = (self.support.sum() / slice_.kspace[0].numel()).clamp_min(1)  # matrices that the sets fill
        self.operator, self.columns = sense_points(slice_.maps, slice_.mask, sets=slice_.sets > 1)
        self.data = slice_.kspace[..., self.columns]
        self.adjoint_data = self.operator.adjoint(self.data)
        self.system = System(slice_)
        self.normal: Map = self.system.normal
        self.axes = 1  # of images, each solved for by itself
        self.coils: int | Tensor = slice_.kspace.shape[-3]
        self.rings = Rings(slice_.mask, (slice_.kspace.shape[-2], slice_.kspace.shape[-1]))

    def denoise(self, x_t: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        """D(x_t) (n, y, x) within the support, and E^(1/2) (1 or n, y, x), or None where it is 1."""
        if self.probe is None:
            return self.support * self.prior(x_t, sigma), None
        chosen = torch.arange(1, device=x_t.device)
        probes = self.probe.expand(1, *x_t.shape[1:])
        mean, slope = denoise_with_slope(self.prior, x_t, probes, sigma, chosen)
        mean = self.support * mean
        e = local_variance((probes.conj() * slope).real, self.support)
        if self.slice.sets > 1:
            e = e * error_shares(self.slice, self.adjoint_data - self.normal(mean[:1]))
        return mean, e.sqrt()

    def covariance(self, mean: Tensor, sigma: Tensor) -> Tensor:
        """Lambda about denoised images `mean` (n, y, x): (n, ky, kx), each from its own residual, or one for all.

        With several sets (n, 1 or set, ky, kx).
        """
        ceiling = sigma.square()
        if self.power is not None:
            return ceiling * self.power / (self.power + ceiling)
        error = excess_power(self.data - self.operator.forward(mean), self.slice.sigma0, self.coils)
        average = self.rings.average(error, 1e-3 * ceiling)
        if self.slice.sets == 1:
            return average.clamp_max(ceiling)
        return self.shares * average.clamp_max(ceiling * self.filled).unsqueeze(-3)

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        (mean, spread), sigma0 = self.denoise(x_t, sigma), self.slice.sigma0
        draw = self.draw if sigma[0] > self.draw_above else None
        root = self.covariance(mean, sigma[0]).sqrt() / sigma0
        residual, noise = self.adjoint_data - self.normal(mean), None  # A^H (y - A D)
        if draw is not None:
            e = complex_noise(self.slice.kspace.expand(len(x_t), *self.slice.kspace.shape), draw, self.columns)
            residual = residual + sigma0 * self.operator.adjoint(e)
            noise = complex_noise(mean, draw)
        return self.support * self.solve(root, residual / sigma0, spread, noise, mean)

    def solve(
        self,
        root: Tensor,
        image: Tensor,
        spread: Tensor | None = None,
        noise: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> Tensor:
        """`mean` + B w (n, y, x) for the right-hand side B^H `image` / sigma0 + `noise`.

        `image` (n, y, x) is A^H (y - A D) / sigma0, `root` Lambda^(1/2) / sigma0, `spread` E^(1/2); `noise` and `root`
        are (n, ky, kx), centred. CG ends where `mean` + B w has settled.
        """
        shape = (image.shape[-2], image.shape[-1])
        q = torch.fft.ifftshift(root.expand(*root.shape[:-2], *shape), dim=(-2, -1)).square()
        precondition, sigma0 = self.system(q, spread), self.slice.sigma0
        t = twice((q / math.prod(shape)).sqrt())
        e: Tensor | float = 1.0 if spread is None else spread
        before, after, rhs = sigma0 * e, e / sigma0, scaled(t, transform(e * image))
        return conjugate_gradient(
            lambda x: scaled(t, transform(after * self.normal(x))),
            rhs if noise is None else rhs + from_centred(noise),
            iterations=self.iterations,
            start=mean,
            precondition=precondition,
            image=lambda w: before * transform_back(scaled(t, w)),
            settled=self.settled,
            axes=self.axes,
        )
