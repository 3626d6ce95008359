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

from mrgen.physics.fourier import ifft2c
from mrgen.physics.operators import Fourier
from mrgen.scans.scan import Slice

N = SHAPE[0] * SHAPE[1]
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SCALES = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)  # p_j
DISTANCE = 0.3  # between the means


class Mixture:
    """Weights (j,), means (j, N) and covariances (j, N, N)."""

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.weights, self.means, self.covariances = weights, means, covariances
        self.variances, self.axes = torch.linalg.eigh(covariances)

    def _along_axes(self, x_t: Tensor) -> Tensor:
        return torch.einsum("jab,nja->njb", self.axes.conj(), x_t.flatten(1)[:, None] - self.means)

    def _responsibilities(self, along: Tensor, sigma: float) -> Tensor:
        variances = self.variances + sigma**2
        evidence = -(along.abs().square() / variances + variances.log()).sum(-1)
        return torch.softmax(evidence + self.weights.log(), dim=1)

    def responsibilities(self, x_t: Tensor, sigma: float) -> Tensor:
        """Pr(j | x_t), (n, j)."""
        return self._responsibilities(self._along_axes(x_t), sigma)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """E[x | x_t] (n, y, x), the mixture's own, which no linear denoiser is."""
        along, s = self._along_axes(x_t), float(sigma[0])
        shrunk = self.variances / (self.variances + s**2) * along
        each = self.means + torch.einsum("jab,njb->nja", self.axes, shrunk)
        return (self._responsibilities(along, s)[:, :, None] * each).sum(1).reshape(x_t.shape)

    def given(self, a: Tensor, y: Tensor, sigma: float) -> Mixture:
        """Of x given y = A x + sigma n, (m,)."""
        weights, means, covariances = [], [], []
        for w, m, c in zip(self.weights, self.means, self.covariances, strict=True):
            marginal, residual = a @ c @ a.mH + sigma**2 * torch.eye(len(a)), y - a @ m
            gain = torch.linalg.solve(marginal, a @ c).mH
            means.append(m + gain @ residual)
            covariances.append(c - gain @ a @ c)
            misfit = (residual.conj() @ torch.linalg.solve(marginal, residual)).real
            weights.append(w.log() - torch.linalg.slogdet(marginal)[1] - misfit)
        return Mixture(torch.softmax(torch.stack(weights), 0), torch.stack(means), torch.stack(covariances))

    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (N,), covariance and pseudo-covariance (N, N)."""
        w, mean = self.weights + 0j, self.weights.to(self.means) @ self.means
        d = self.means - mean
        within = torch.einsum("j,jab->ab", w, self.covariances)
        return mean, within + torch.einsum("j,ja,jb->ab", w, d, d.conj()), torch.einsum("j,ja,jb->ab", w, d, d)


def case() -> tuple[Slice, Tensor, Tensor, Mixture]:
    """The scan of an image drawn from the middle component, with coils and mask of the Gaussian case.

    With it A and y of its samples alone, and the prior.
    """
    g = torch.Generator().manual_seed(1)
    blank = gaussian.case().slice_
    powers = SCALES[:, None, None] * gaussian.power()
    image = ifft2c(powers[1].sqrt() * torch.randn(SHAPE, dtype=torch.complex128, generator=g))
    noise = SIGMA0 * blank.mask * torch.randn(blank.maps.shape, dtype=torch.complex128, generator=g)
    slice_ = replace(blank, kspace=blank.operator().forward(image) + noise)
    sampled = slice_.mask.expand(slice_.kspace.shape) > 0
    a, f = slice_.operator().dense()[sampled.flatten()], Fourier(SHAPE).dense()
    unseen = torch.linalg.eigh(a.mH @ a)[1][:, 0]
    means = DISTANCE * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)[:, None] * unseen
    covariances = torch.stack([f.mH @ torch.diag(p.flatten() + 0j) @ f for p in powers])
    return slice_, a, slice_.kspace[sampled], Mixture(WEIGHTS, means, covariances)
