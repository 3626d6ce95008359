"""The receive coils of a measured scan, to simulate with: sensitivities by ESPIRiT, and the noise covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mrgen.physics.fourier import ifft2c
from mrgen.physics.noise import whitening_matrix
from mrgen.scans.prepare import noise_covariance, prepare
from mrgen.scans.scan import Scan
from mrgen.scans.simulate import Maps

_ORDERS = 16  # cosines along each axis: half periods across the field of view
_STIFFNESS = 1e-7  # of the Laplacian penalty, relative to the fit


def _cosines(n: int) -> Tensor:
    """cos(pi p t) at the n pixels of a field of view, t from 0 to 1 across it, (n, _ORDERS), float64."""
    t = (torch.arange(n, dtype=torch.float64) - n // 2) / n + 0.5
    return torch.cos(math.pi * torch.arange(_ORDERS) * t[:, None])


def fit_cosines(maps: Tensor, weight: Tensor) -> Tensor:
    """Coefficients (coil, p, q), complex128, of smooth functions like maps (coil, y, x) where `weight` (y, x) is large.

    Least squares with a penalty on the square of the Laplacian of sum_pq c_pq cos(pi p t_y) cos(pi q t_x), which goes
    on smoothly to where the weight is 0.
    """
    b_y, b_x = (_cosines(n) for n in weight.shape)
    w = weight.double() / weight.double().sum()
    moments = torch.einsum("yx,xq,xs->yqs", w, b_x, b_x)
    gram = torch.einsum("yp,yr,yqs->pqrs", b_y, b_y, moments).reshape(_ORDERS**2, _ORDERS**2)
    right = torch.einsum("cyx,yp,xq->pqc", w * maps.to(torch.complex128), b_y + 0j, b_x + 0j).flatten(0, 1)
    order = torch.arange(_ORDERS, dtype=torch.float64).square()
    laplacian = (order[:, None] + order).flatten().square()
    solution = torch.linalg.solve(gram + torch.diag(_STIFFNESS * laplacian + 1e-12) + 0j, right)
    coefficients: Tensor = solution.T.reshape(-1, _ORDERS, _ORDERS)
    return coefficients


def measured_coils(scan: Scan) -> tuple[Maps, Tensor]:
    """Coil maps and noise factor L (coil, coil) of the middle slice of a measured scan, by ESPIRiT.

    The noise covariance is L L^H, with a mean of 1 over its diagonal. The maps fill the field of view whatever it is in
    mm, are the same at every height, and have unit norm after whitening; outside the measured object they are its
    smooth continuation. Raises MrgenError as `prepare` does.
    """
    index = scan.slices // 2
    slice_ = prepare(scan, index)
    covariance, _ = noise_covariance(scan.read_slice(index), scan.mask, scan.noise)
    factor: Tensor = torch.linalg.inv(whitening_matrix(covariance))
    weight = ((slice_.maps.conj() * ifft2c(slice_.kspace)).sum(0).abs() - 3 * slice_.sigma0).clamp(0, 1).square()
    coefficients = fit_cosines(slice_.maps, weight)

    def maps(shape: tuple[int, int], z: float) -> Tensor:
        b_y, b_x = (_cosines(n) + 0j for n in shape)
        white = torch.einsum("yp,cpq,xq->cyx", b_y, coefficients, b_x).to(torch.complex64)
        return torch.einsum("dc,cyx->dyx", factor, white / white.norm(dim=0))

    return maps, factor / factor.abs().square().sum(1).mean().sqrt()
