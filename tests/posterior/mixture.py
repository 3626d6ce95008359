"""A mixture of Gaussian images behind a real multi-coil operator: the posterior in closed form.

x ~ sum_j w_j CN(m_j, C_j), C_j = F^H diag(p_j P) F with P of `gaussian`. Given any linear Gaussian data about x the
posterior is a mixture of the same kind: each component's own posterior, with weights w_j times its evidence.
The means m_j differ by the image that the scan sees least of, so that the data exclude none of the components.
"""

from __future__ import annotations

from dataclasses import replace

import gaussian
import torch
from gaussian import SHAPE, SIGMA0
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import Fourier
from mrgen.scans.scan import Slice

N = SHAPE[0] * SHAPE[1]
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SCALES = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)  # p_j
DISTANCE = 0.3  # between the means


def powers() -> Tensor:
    """p_j P, (j, ky, kx)."""
    return SCALES[:, None, None] * gaussian.power()


def case() -> Slice:
    """The scan of an image drawn from the middle component, with coils and mask of the Gaussian case."""
    g = torch.Generator().manual_seed(1)
    blank = gaussian.case().slice_
    image = ifft2c(powers()[1].sqrt() * torch.randn(SHAPE, dtype=torch.complex128, generator=g))
    noise = SIGMA0 * blank.mask * torch.randn(blank.maps.shape, dtype=torch.complex128, generator=g)
    return replace(blank, kspace=blank.operator().forward(image) + noise)


class Mixture:
    """The prior and its posteriors."""

    def __init__(self) -> None:
        self.slice, self.powers = case(), powers()
        sampled = self.slice.mask.expand(self.slice.kspace.shape) > 0
        self.a, self.y = self.slice.operator().dense()[sampled.flatten()], self.slice.kspace[sampled]
        unseen = torch.linalg.eigh(self.a.mH @ self.a)[1][:, 0].reshape(SHAPE)
        self.means = DISTANCE * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None, None] * unseen
        f = Fourier(SHAPE).dense()
        self.covariances = torch.stack([f.mH @ torch.diag(p.flatten() + 0j) @ f for p in self.powers])

    def responsibilities(self, x_t: Tensor, sigma: float) -> Tensor:
        """Pr(j | x_t), (n, j)."""
        k = fft2c(x_t[:, None] - self.means)
        variance = self.powers + sigma**2
        evidence = -(k.abs().square() / variance + variance.log()).sum((-2, -1))
        return torch.softmax(evidence + WEIGHTS.log(), dim=1)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x_t] (n, y, x), the mixture's own, which no linear denoiser is."""
        s = float(sigma[0])
        gain = self.powers / (self.powers + s**2)
        each = self.means + ifft2c(gain * fft2c(x_t[:, None] - self.means))
        return (self.responsibilities(x_t, s)[:, :, None, None] * each).sum(1)

    def posterior(self, x_t: Tensor | None = None, sigma: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Given y, and each x_t (n, y, x) if any: weights (n, j), means (n, j, N) and covariances (j, N, N)."""
        eye = torch.eye(N, dtype=torch.complex128)
        h, noise = self.a / SIGMA0, self.y[None] / SIGMA0
        if x_t is not None:
            h = torch.cat([h, eye / sigma])
            noise = torch.cat([noise.expand(len(x_t), -1), x_t.flatten(1) / sigma], dim=1)
        weights, means_, covariances = [], [], []
        for m, c, w in zip(self.means.reshape(-1, N), self.covariances, WEIGHTS, strict=True):
            marginal = h @ c @ h.mH + torch.eye(len(h))
            residual = noise - h @ m
            solved = torch.linalg.solve(marginal, residual.T).T
            means_.append(m + solved @ (c @ h.mH).T)
            covariances.append(c - c @ h.mH @ torch.linalg.solve(marginal, h @ c))
            weights.append(w.log() - torch.linalg.slogdet(marginal)[1] - (residual.conj() * solved).real.sum(1))
        return torch.softmax(torch.stack(weights, 1), 1), torch.stack(means_, 1), torch.stack(covariances)

    def guided(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x_t, y], exact."""
        weights, means_, _ = self.posterior(x_t, float(sigma[0]))
        return (weights[:, :, None] * means_).sum(1).reshape(x_t.shape)

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (j,), mean (N,) and covariance (N, N) of x given y."""
        weights, means_, covariances = self.posterior()
        w, m = weights[0], means_[0]
        mean = (w[:, None] * m).sum(0)
        d = m - mean
        within = (w[:, None, None] * covariances).sum(0)
        return w, mean, within + torch.einsum("j,ja,jb->ab", w + 0j, d, d.conj())
