"""Receiver noise: its covariance across coils, and whitening.

Noise std sigma is always that of the total complex noise, E|n|^2 = sigma^2 (each part sigma^2 / 2).
After whitening, W C W^H = I across coils, so one number, sigma0, describes the noise of a scan.
"""

import torch
from torch import Tensor

from mrgen.physics.fourier import ifft2c


def covariance(samples: Tensor) -> Tensor:
    """Coil covariance E[n n^H], (coil, coil), from noise-only samples (coil, n); zero mean is assumed."""
    return samples @ samples.conj().T / samples.shape[1]


def background_covariance(kspace: Tensor, fraction: float = 1 / 16) -> Tensor:
    """Coil noise covariance (coil, coil) from the corners of the coil images of k-space (coil, ky, kx).

    k-space has to be fully sampled. Of the four corners (`fraction` of each side) those within a factor 2
    of the quietest are used, so a corner with signal in it is left out.
    """
    images = ifft2c(kspace)
    n_y, n_x = images.shape[-2:]
    h, w = max(4, round(n_y * fraction)), max(4, round(n_x * fraction))
    corners = [images[:, y, x] for y in (slice(0, h), slice(-h, None)) for x in (slice(0, w), slice(-w, None))]
    power = [c.abs().square().mean() for c in corners]
    quiet = [c.flatten(1) for c, p in zip(corners, power, strict=True) if p <= 2 * min(power)]
    return covariance(torch.cat(quiet, dim=1))


def edge_covariance(kspace: Tensor, mask: Tensor, readouts: float = 1 / 16) -> Tensor:
    """Coil noise covariance (coil, coil) from the outermost readout samples of the sampled lines.

    k-space is (coil, readout, phase), `mask` (phase,). Of the sampled lines the outer half is used; the
    signal left there makes this an upper bound, which is reported as such.
    """
    n_y = kspace.shape[-2]
    rows = max(2, round(n_y * readouts / 2))
    lines = torch.nonzero(mask.flatten() > 0).flatten()
    centre = mask.numel() // 2
    outer = lines[(lines - centre).abs().argsort(descending=True)][: max(4, len(lines) // 2)]
    edges = torch.cat([kspace[:, :rows], kspace[:, -rows:]], dim=1)[:, :, outer]
    return covariance(edges.flatten(1))


def whitening_matrix(cov: Tensor, floor: float = 1e-6) -> Tensor:
    """W (coil, coil) with W C W^H = I: the inverse Cholesky factor of the covariance C.

    Eigenvalues below `floor` times the largest are raised to it, so that a dead coil stays quiet instead of
    being blown up. Raises ValueError when C is zero or not finite.
    """
    if not torch.isfinite(torch.view_as_real(cov)).all() or cov.abs().max() == 0:
        raise ValueError("the noise covariance is zero or not finite")
    eigenvalues, vectors = torch.linalg.eigh(cov.to(torch.complex128))
    raised = eigenvalues.clamp_min(floor * float(eigenvalues[-1]))
    definite = vectors @ torch.diag(raised.to(vectors.dtype)) @ vectors.conj().T
    factor = torch.linalg.cholesky(definite)
    eye = torch.eye(len(cov), dtype=factor.dtype, device=cov.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse.to(cov.dtype)


def whiten(kspace: Tensor, matrix: Tensor) -> Tensor:
    """Apply W across the coil axis of k-space (..., coil, ky, kx)."""
    return torch.einsum("dc,...cyx->...dyx", matrix, kspace)
