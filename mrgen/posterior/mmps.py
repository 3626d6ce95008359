"""MMPS: the covariance of x given x_t from the denoiser's own Jacobian (Rozet et al., arXiv 2405.13712, section 4.2).

Tweedie's second formula gives Cov[x | x_t] = V = sigma_t^2 J with J the Jacobian of D at x_t. With x ~ N(D(x_t), V) and
y = A x + z, z ~ CN(0, sigma0^2 I),

    E[x | x_t, y] = D + V A^H v,     (sigma0^2 I + A V A^H) v = y - A D

solved by CG in k-space, each iteration with one product V u = sigma_t^2 J^T u, a backward pass through the network.
Its preconditioner is sigma0^2 I + A V_t A^H with the stationary V_t of `Proximal`, whose inverse is the solve of that,

    (sigma0^2 I + A V_t A^H)^-1 r = (r - A V_t^(1/2) w) / sigma0^2,     w as for the residual r

at no cost beside a backward pass; CG starts from there.

What is assumed. x given x_t is Gaussian: exact for a Gaussian image, at small sigma_t and at large. J is symmetric and
positive semi-definite, as that of the exact E[x | x_t] is; a learned network's is so only roughly, and CG is told J^T.
It is not made positive: an image whose CG meets a direction with less than half of sigma0^2, where the noise alone
gives all of it, keeps the v that it has. x need not be circular: with real and imaginary part as separate unknowns the
noise covariances are sigma0^2 / 2 and sigma_t^2 / 2, the halves cancel, and the solve, with inner products Re <a, b>,
holds for any real 2N x 2N J.
"""

from __future__ import annotations

from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.posterior.jacobian import denoise_with_pullback
from mrgen.posterior.proximal import Proximal
from mrgen.prior.denoiser import Denoise
from mrgen.scans.scan import Slice

INNER = 15  # CG iterations of the preconditioner


class Mmps:
    """The posterior denoiser of one slice; call it as D(x_t (n, y, x), sigma (n,)) with one sigma for all n."""

    def __init__(self, prior: Denoise, slice_: Slice, *, iterations: int) -> None:
        self.prior, self.slice, self.iterations = prior, slice_, iterations
        self.support = slice_.support  # as in `Proximal`
        self.operator = slice_.operator()
        self.stationary = Proximal(prior, slice_, None, iterations=INNER)

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        denoised, pullback = denoise_with_pullback(self.prior, x_t, sigma)
        mean, a = self.support * denoised, self.operator

        def spread(v: Tensor) -> Tensor:  # V A^H v
            return self.support * (sigma[0].square() * pullback(a.adjoint(v)))

        root = self.stationary.covariance(mean, sigma[0]).sqrt() / self.slice.sigma0

        def precondition(r: Tensor) -> Tensor:
            image = self.stationary.solve(root, a.adjoint(r) / self.slice.sigma0)
            return (r - a.forward(image)) / self.slice.sigma0**2

        residual, noise = self.slice.kspace - a.forward(mean), self.slice.sigma0**2
        v = conjugate_gradient(
            lambda v: noise * v + a.forward(spread(v)),
            residual,
            iterations=self.iterations,
            start=precondition(residual),
            precondition=precondition,
            floor=noise / 2,
        )
        return mean + spread(v)
