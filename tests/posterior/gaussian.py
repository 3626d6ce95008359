"""A stationary Gaussian image behind a real multi-coil operator: the posterior in closed form.

x ~ CN(0, F^H diag(P) F) has the denoiser D(x_t) = F^H P / (P + sigma^2) F x_t and, given y = A x + z, the posterior
covariance C = (A^H A / sigma0^2 + F^H diag(1/P) F)^-1 and mean C A^H y / sigma0^2.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import Fourier
from mrgen.scans.scan import Slice

SHAPE = (8, 6)
SIGMA0 = 0.1


def power() -> Tensor:
    """P (ky, kx), falling from 1 in the centre, as images do."""
    y, x = ((torch.arange(n) - n // 2) / (n / 2) for n in SHAPE)
    return (1 + 20 * (y[:, None].square() + x[None].square())).pow(-1.5).to(torch.float64)


def denoise(x_t: Tensor, sigma: Tensor) -> Tensor:
    p = power()
    gain = p / (p + sigma.to(torch.float64).reshape(-1, 1, 1).square())
    return ifft2c(gain * fft2c(x_t))


@dataclass
class Case:
    slice_: Slice
    mean: Tensor  # (y, x)
    covariance: Tensor  # (N, N)


def case(seed: int = 0, coils: int = 3) -> Case:
    """Random coil maps; a single coil has the map 1."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.randn(coils, *SHAPE, dtype=torch.complex128, generator=g)
    maps = maps / maps.abs().square().sum(0).sqrt() if coils > 1 else torch.ones_like(maps)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 0], dtype=torch.float64)
    x = ifft2c(power().sqrt() * torch.randn(SHAPE, dtype=torch.complex128, generator=g))
    slice_ = Slice(torch.zeros_like(maps), mask, maps, SIGMA0, 1.0, None)
    noise = torch.randn(maps.shape, dtype=torch.complex128, generator=g)
    y = slice_.operator().forward(x) + SIGMA0 * mask * noise
    slice_ = Slice(y, mask, maps, SIGMA0, 1.0, None)
    a, f = slice_.operator().dense(), Fourier(SHAPE).dense()
    precision = a.mH @ a / SIGMA0**2 + f.mH @ torch.diag(1 / power().flatten() + 0j) @ f
    covariance = torch.linalg.inv(precision)
    return Case(slice_, (covariance @ a.mH @ y.flatten() / SIGMA0**2).reshape(SHAPE), covariance)


def single(slice_: Slice) -> Slice:
    """The same in single precision, as scans come."""
    kspace, maps = (t.to(torch.complex64) for t in (slice_.kspace, slice_.maps))
    return replace(slice_, kspace=kspace, maps=maps, mask=slice_.mask.float())
