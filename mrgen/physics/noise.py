"""Receiver noise: its covariance across coils, and whitening.

Noise std sigma is always that of the total complex noise, E|n|^2 = sigma^2 (each part sigma^2 / 2).
After whitening, W C W^H = I across coils, so one number, sigma0, describes the noise of a scan.

An estimate from n samples of c coils whitens other samples of the same noise to a mean power of n / (n - c), not 1
(the mean of an inverse complex Wishart matrix is C^-1 n / (n - c)). The estimates from a scan's own samples, which are
few, are raised by that factor, so that sigma0 is right after whitening.
"""

import torch
from torch import Tensor

from mrgen.physics.fourier import grid, ifft2c

BESIDE, EDGE = "readout beside the object", "k-space edge (an upper bound)"


def covariance(samples: Tensor) -> Tensor:
    """Coil covariance E[n n^H], (coil, coil), from noise-only samples (coil, n); zero mean is assumed."""
    return samples @ samples.conj().T / samples.shape[1]


def _for_whitening(samples: Tensor) -> Tensor:
    """`covariance` of noise samples (coil, n), raised by n / (n - coil)."""
    coils, n = samples.shape
    return covariance(samples) * (n / max(n - coils, 1))


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
    return _for_whitening(torch.cat(quiet, dim=1))


def edge_covariance(kspace: Tensor, mask: Tensor) -> Tensor:
    """Coil noise covariance (coil, coil) from the sixteenth of the samples that lies farthest out in k-space.

    k-space is (coil, ky, kx), `mask` (kx,) or (ky, kx). The signal left there makes this an upper bound. Samples that
    are zero in every coil were not measured, whatever the mask says.
    """
    n_y, n_x = kspace.shape[-2:]
    y, x = grid((n_y, n_x))
    sampled = (kspace != 0).any(0) & (mask > 0)
    radius = (y.square() + x.square()).to(kspace.device)[sampled]
    outermost = radius.argsort(descending=True, stable=True)[: max(4, len(radius) // 16)]
    return _for_whitening(kspace[:, sampled][:, outermost])


def readout_covariance(kspace: Tensor, mask: Tensor) -> Tensor:
    """Coil noise covariance (coil, coil) from the rows of the image that lie beside the object along the readout.

    Lines are read out in full even where most of them are left out, so the Fourier transform along the readout alone
    tells where the object is: in the quarter of the lines that is nearest the centre, empty rows have little power.
    Rows within a factor 2 of the quietest sixteenth are used, of the outer half of the lines, where what remains of the
    signal is weakest; other samples choose than those that are measured, which keeps the choice from biasing the noise.

    k-space is (coil, readout, phase), `mask` (kx,) or (ky, kx). Raises ValueError when fewer than 8 lines are read out
    in one piece, as with points sampled in two dimensions.
    """
    n_y, n_x = kspace.shape[-2:]
    sampled = (kspace != 0).any(0) & (mask > 0)
    pieces = sampled[0].int() + (sampled[1:] & ~sampled[:-1]).sum(0)
    lines = (pieces == 1).nonzero().flatten()
    if len(lines) < 8:
        raise ValueError(f"expected at least 8 lines that are read out in one piece, found {len(lines)}")
    lines = lines[(lines - n_x // 2).abs().argsort(stable=True)]
    order = torch.fft.ifftshift(kspace[:, :, lines], dim=-2)
    rows = torch.fft.fftshift(torch.fft.ifft(order, dim=-2, norm="ortho"), dim=-2)  # (coil, y, line)
    outer, central = rows[:, :, len(lines) // 2 :], rows[:, :, : len(lines) // 4]
    loudness = outer.abs().square().mean((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    profile = (central.abs().square() / loudness).mean((0, 2))
    quietest = profile.sort().values[: max(4, n_y // 16)].mean()
    share = sampled[:, lines[len(lines) // 2 :]].float().mean()  # what was not read out carries no noise
    return _for_whitening(outer[:, profile <= 2 * quietest].flatten(1)) / share


def undersampled_covariance(kspace: Tensor, mask: Tensor) -> tuple[Tensor, str]:
    """Coil noise covariance (coil, coil) of an undersampled scan, and where it was found: BESIDE or EDGE.

    Both estimates are too high where signal is left in their samples, so the one with the smaller determinant counts.
    k-space is (coil, readout, phase), `mask` (kx,) or (ky, kx).
    """
    edge = edge_covariance(kspace, mask)
    try:
        beside = readout_covariance(kspace, mask)
    except ValueError:
        return edge, EDGE
    return (beside, BESIDE) if torch.logdet(beside).real < torch.logdet(edge).real else (edge, EDGE)


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
