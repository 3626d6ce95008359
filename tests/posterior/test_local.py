"""The local part of V_t: J_rr as a probe finds it, and what it keeps out beside the object."""

from __future__ import annotations

import gaussian
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.posterior.guidance import guide
from mrgen.posterior.local import FREEDOM, local_variance
from mrgen.posterior.proximal import Proximal
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import complex_noise
from mrgen.prior.objectives import unit_phase
from mrgen.scans.scan import Slice
from mrgen.settings import Recipe

SHAPE, SIGMA0 = (32, 28), 0.1
Y, X = grid(SHAPE)
EVERYWHERE = torch.ones(SHAPE, dtype=torch.bool)
OBJECT = (Y / 0.6) ** 2 + (X / 0.5) ** 2 < 1
BESIDE = (Y / 0.6) ** 2 + (X / 0.5) ** 2 > 3
POWER = torch.where(OBJECT, 1.0, 1e-4).double()  # E|x_r|^2: x is white, and nearly nothing beside the object


def slope(denoise: Denoise, sigma: float) -> Tensor:
    """conj(v) J v, real part, of a linear denoiser."""
    v = unit_phase(torch.zeros(SHAPE), torch.Generator().manual_seed(0)).to(torch.complex128)
    return (v.conj() * denoise(v[None], torch.tensor([sigma]))).real


def nowhere_but_in_the_object(x_t: Tensor, sigma: Tensor) -> Tensor:
    return POWER / (POWER + sigma.reshape(-1, 1, 1).double().square()) * x_t


def scan(seed: int) -> tuple[Slice, Tensor]:
    """Two coils, every other line and the centre; and the image."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.stack([torch.exp(1j * Y) * (1.2 + X), torch.exp(-1j * (X + Y)) * (1.2 - X)]).to(torch.complex128)
    maps = maps / maps.abs().square().sum(0).sqrt()
    line = torch.arange(SHAPE[1]) % 2 == 0
    line[12:17] = True
    empty = Slice(torch.zeros_like(maps), line.double(), maps, SIGMA0, 1.0, None)
    image = POWER.sqrt() * complex_noise(maps[0], g)
    kspace = empty.operator().forward(image) + SIGMA0 * empty.mask * complex_noise(maps, g)
    return Slice(kspace, empty.mask, maps, SIGMA0, 1.0, None), image


def test_where_the_denoiser_is_diagonal_a_probe_sees_it_exactly() -> None:
    """But for the neighbourhood: P that changes slowly comes back, of mean 1, and 0 outside the support."""
    p = (-(Y.square() + X.square())).exp().double()
    found = local_variance(slope(lambda x, s: p / (p + s.square()) * x, 0.5), EVERYWHERE)
    expected = p / (p + 0.25)
    inner = (Y.abs() < 0.8) & (X.abs() < 0.8)  # the neighbourhood wraps around
    assert float((found - expected / expected.mean()).abs()[0, inner].max()) < 0.05
    part = local_variance(p[None], OBJECT)
    assert torch.equal(part[0] == 0, ~OBJECT)
    assert float(part.mean()) == pytest.approx(1)


def test_it_is_even_for_a_stationary_image() -> None:
    """Up to the error of an average over FREEDOM degrees of freedom, at every noise level."""
    p = 5 * (1 + 100 * (Y.square() + X.square())).pow(-1.5).double()
    for sigma in (0.02, 0.2, 2.0):
        found = local_variance(
            slope(lambda x, s: ifft2c(p / (p + s.square()) * fft2c(x)), sigma),
            EVERYWHERE,
        )
        assert float(found.std()) < 1.5 * FREEDOM**-0.5


def test_the_noise_of_the_data_stays_out_beside_the_object() -> None:
    """The error of the posterior mean given x_t, beside that of the exact one: its excess all but goes."""
    sigma = torch.tensor([0.7], dtype=torch.float64)
    excess = {True: 0.0, False: 0.0}
    v = (POWER * 0.49 / (POWER + 0.49)).flatten()
    a = scan(0)[0].operator().dense()  # that of every seed
    precision = a.mH @ a / SIGMA0**2 + torch.diag(1 / v)
    for seed in range(4):
        slice_, image = scan(seed)
        x_t = (image + 0.7 * complex_noise(image, torch.Generator().manual_seed(100 + seed)))[None]
        d = nowhere_but_in_the_object(x_t, sigma)[0].flatten()
        unexplained = slice_.kspace.flatten() - a @ d
        exact = (d + torch.linalg.solve(precision, a.mH @ unexplained) / SIGMA0**2).reshape(SHAPE)
        for local in excess:
            found = Proximal(nowhere_but_in_the_object, slice_, None, iterations=200, local=local)(x_t, sigma)[0]
            excess[local] += float((found - exact).abs().square()[BESIDE].mean())
    assert excess[True] < 0.1 * excess[False]


def test_a_mask_ensemble_is_refused() -> None:
    with pytest.raises(MrgenError, match='add covariance = "residual"'):
        guide(gaussian.denoise, gaussian.case().slice_, Recipe(description="", ensemble=2), sigma_data=0.4)
