"""The coordinates and the matrices of the linear system of `Proximal`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.posterior.proximal import Proximal
from mrgen.posterior.system import LEAF, System, from_centred, inverse_rows, transform
from mrgen.scans.scan import Slice


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 6), (7, 10), (9, 5)])
def test_centred_kspace_becomes_that_of_the_plain_transform(shape: tuple[int, int]) -> None:
    k = noise(2, *shape)
    torch.testing.assert_close(from_centred(k), transform(ifft2c(k)) / (shape[0] * shape[1]) ** 0.5)


@pytest.mark.parametrize("n", [1, LEAF, LEAF + 1, 3 * LEAF - 1])
def test_rows_are_inverted(n: int) -> None:
    a = noise(3, n, 2 * n)
    gram, eye = a @ a.mH, torch.eye(n, dtype=a.dtype)
    number = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64).reshape(3, 1, 1)
    found = inverse_rows(gram, number)
    torch.testing.assert_close(found @ (eye + number * gram), eye.expand(3, -1, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, found.mH, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(12, 10), (11, 9)])
@pytest.mark.parametrize("kind", ["lines", "points"])
@pytest.mark.parametrize("local", [False, True])
def test_a_draw_solves_the_system_in_centred_coordinates(shape: tuple[int, int], kind: str, local: bool) -> None:
    """Against the dense matrices, with maps that leave columns at both sides out."""
    coils = 3
    maps = noise(coils, *shape)
    maps = maps / maps.abs().square().sum(0).sqrt()
    maps[..., :2] = maps[..., -1:] = 0
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6).double()
    mask = mask[0] if kind == "lines" else mask
    slice_ = Slice(torch.zeros_like(maps), mask, maps, 0.1, 1.0, None)
    slice_ = replace(slice_, kspace=mask * noise(coils, *shape, seed=2))
    x_t, power = noise(2, *shape, seed=3), 0.2 + noise(*shape, seed=4).abs()
    sigma = torch.full((2,), 0.7, dtype=torch.float64)

    def denoise(x: Tensor, _: Tensor) -> Tensor:
        return 0.3 * x

    posterior = Proximal(denoise, slice_, power, iterations=200, local=local, draw=torch.Generator().manual_seed(5))
    found = posterior(x_t, sigma)

    g, support = torch.Generator().manual_seed(5), slice_.support
    e1 = torch.randn(2, coils, *shape, dtype=torch.complex128, generator=g)
    e2 = torch.randn(2, *shape, dtype=torch.complex128, generator=g)
    mean, spread = posterior.denoise(x_t, sigma)
    root = posterior.covariance(mean, sigma[0]).sqrt()
    e = torch.ones(shape, dtype=torch.float64) if spread is None else spread[0]
    a = slice_.operator()
    basis = torch.eye(shape[0] * shape[1], dtype=torch.complex128).reshape(-1, *shape)
    b = (e * ifft2c(root * basis)).flatten(1).T  # B w = E^(1/2) F^H Lambda^(1/2) w
    dense = a.dense() @ b
    system = dense.mH @ dense / 0.1**2 + torch.eye(len(basis))
    for i in range(2):
        residual = (slice_.kspace - a.forward(mean[i]) + 0.1 * mask * e1[i]).flatten()
        w = torch.linalg.solve(system, dense.mH @ residual / 0.1**2 + e2[i].flatten())
        expected = support * (mean[i] + (b @ w).reshape(shape))
        torch.testing.assert_close(found[i], expected, rtol=1e-6, atol=1e-7)
    assert fft2c(found).abs().max() > 1


def test_what_is_kept_between_levels_is_that_of_E_1() -> None:
    maps = noise(3, 6, 8)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1, 0, 1], dtype=torch.float64)
    slice_ = Slice(mask * noise(3, 6, 8, seed=1), mask, maps, 0.1, 1.0, None)
    q, r = torch.tensor(30.0, dtype=torch.float64), noise(1, 6, 8, seed=2)
    system = System(slice_)
    system(q, 0.5 + torch.rand(1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(system(q)(r), System(slice_)(q)(r))
