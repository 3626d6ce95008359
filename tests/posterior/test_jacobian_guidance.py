"""MMPS and DPS: back-propagation, real-linear Jacobians, and the solve, against dense matrices."""

from __future__ import annotations

import gaussian
import mixture
import pytest
import torch
from torch import Tensor

from mrgen.posterior.dps import Dps
from mrgen.posterior.jacobian import denoise_with_pullback
from mrgen.posterior.mmps import Mmps
from mrgen.posterior.proximal import Proximal
from mrgen.prior.denoiser import Denoiser
from mrgen.settings import Network

N = mixture.N


def real(v: Tensor) -> Tensor:
    """Complex (..., N) to real (..., 2 N), real parts first."""
    return torch.cat([v.real, v.imag], dim=-1)


def real_matrix(a: Tensor, b: Tensor) -> Tensor:
    """x -> a x + b conj(x) on real and imaginary parts."""
    return torch.cat([torch.cat([(a + b).real, (b - a).imag], 1), torch.cat([(a + b).imag, (a - b).real], 1)])


@pytest.mark.parametrize("sigma", [0.05, 0.2, 1.0])
def test_mmps_is_the_gaussian_of_the_exact_covariance(sigma: float) -> None:
    """Of a mixture, whose x given x_t is not circular: its covariance is real-linear, with a part on conj(x)."""
    slice_, matrix, data, prior = mixture.case()
    x_t = sigma * torch.randn(1, *mixture.SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    mean, cov, pseudo = prior.given(torch.eye(N, dtype=torch.complex128), x_t.flatten(), sigma).moments()
    v = real_matrix(cov, pseudo)  # twice the covariance of (Re x, Im x)
    a, y = real_matrix(matrix, torch.zeros_like(matrix)), real(data)
    gain = v @ a.T @ torch.linalg.inv(a @ v @ a.T + mixture.SIGMA0**2 * torch.eye(len(a)))
    expected = real(mean) + gain @ (y - a @ real(mean))
    found = Mmps(prior.denoise, slice_, iterations=60)(x_t, torch.tensor([sigma], dtype=torch.float64))
    torch.testing.assert_close(real(found[0].flatten()), expected, rtol=1e-6, atol=1e-8)


def network() -> Denoiser:
    torch.manual_seed(0)
    net = Denoiser(Network(widths=(16,), blocks=1, patch=1), 0.4)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return net.eval().requires_grad_(False)


def test_the_pullback_is_the_transpose_of_the_jacobian() -> None:
    """Of a network in two real channels: Re <v, J u> = Re <J^T v, u>, with J u by central differences."""
    net, g = network(), torch.Generator().manual_seed(1)
    x, u, v = torch.randn(3, 2, 8, 6, dtype=torch.complex64, generator=g)
    sigma, step = torch.tensor([0.3, 0.3]), 1e-2
    forward = (net(x + step * u, sigma) - net(x - step * u, sigma)) / (2 * step)
    mean, pullback = denoise_with_pullback(net, x, sigma)
    torch.testing.assert_close(mean, net(x, sigma))
    left, right = (v.conj() * forward).real.sum(), (pullback(v).conj() * u).real.sum()
    torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3)
    other = (pullback(1j * v).conj() * (1j * u)).real.sum()
    assert abs(other - right) > 1e-2 * abs(right), "this J is not complex linear"


@pytest.mark.parametrize("guidance", ["mmps", "dps"])
def test_a_frozen_network_in_inference_mode(guidance: str) -> None:
    c = gaussian.case()
    slice_ = gaussian.single(c.slice_)
    net = network()
    make = {"mmps": lambda: Mmps(net, slice_, iterations=3), "dps": lambda: Dps(net, slice_, zeta=0.1)}
    x_t = torch.randn(2, *gaussian.SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.3, 0.3])
    expected = make[guidance]()(x_t, sigma)
    assert not expected.requires_grad
    with torch.inference_mode():
        inside = x_t * 1  # made here: autograd refuses to save it
        torch.testing.assert_close(make[guidance]()(inside, sigma * 1), expected)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_mmps_of_a_gaussian_is_the_proximal_solve(sigma: float) -> None:
    c = gaussian.case()
    x_t = sigma * torch.randn(2, *gaussian.SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(3))
    level = torch.full((2,), sigma, dtype=torch.float64)
    proximal = Proximal(gaussian.denoise, c.slice_, gaussian.power(), iterations=40)(x_t, level)
    torch.testing.assert_close(
        Mmps(gaussian.denoise, c.slice_, iterations=40)(x_t, level), proximal, rtol=1e-6, atol=1e-7
    )


def test_dps_goes_down_the_gradient_of_the_residual() -> None:
    """D - zeta sqrt(m) d||y - A D(x_t)|| / d x_t, the gradient by central differences along some direction."""
    c, zeta, g = gaussian.case(), 0.1, torch.Generator().manual_seed(4)
    x_t, u = torch.randn(2, 1, *gaussian.SHAPE, dtype=torch.complex128, generator=g)
    sigma = torch.tensor([0.5], dtype=torch.float64)
    m = float(c.slice_.mask.sum()) * len(c.slice_.kspace) * gaussian.SHAPE[0]

    def misfit(x: Tensor) -> Tensor:
        return (c.slice_.kspace - c.slice_.operator().forward(gaussian.denoise(x, sigma))).norm()

    slope = (misfit(x_t + 1e-5 * u) - misfit(x_t - 1e-5 * u)) / 2e-5
    step = Dps(gaussian.denoise, c.slice_, zeta=zeta)(x_t, sigma) - gaussian.denoise(x_t, sigma)
    torch.testing.assert_close((u.conj() * step).real.sum(), -zeta * m**0.5 * slope, rtol=1e-6, atol=0)
