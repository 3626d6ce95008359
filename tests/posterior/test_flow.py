"""The noise of a scan on its samples, and the flow back: white, without a trace on a right prior, and faster for EM."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gaussian import SHAPE, SIGMA0, case, denoise, power, single
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.posterior.em import network_steps
from mrgen.posterior.flow import EPSILON, flowed, own_noise
from mrgen.prior.files import Prior
from mrgen.scans.scan import Slice
from mrgen.settings import Protocol, load

N = 6000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scanned(coils: int, x: Tensor) -> Slice:
    """Each of the images x (n, y, x) seen by the same coils with noise of its own: k-space (n, coil, ky, kx)."""
    slice_ = case(coils=coils).slice_
    y = slice_.operator().forward(x)
    noise = torch.randn(y.shape, dtype=y.dtype, generator=seeded(5))
    return replace(slice_, kspace=y + SIGMA0 * slice_.mask * noise)


def images() -> Tensor:
    """Draws of the prior (n, y, x)."""
    return ifft2c(power().sqrt() * torch.randn(N, *SHAPE, dtype=torch.complex128, generator=seeded(4)))


def test_the_noise_is_white_and_independent_of_a_right_sample() -> None:
    x = images()
    n = own_noise(scanned(3, x), x, seeded(6)).flatten(1)
    covariance = n.mT @ n.conj() / N
    assert (covariance - torch.eye(48)).abs().max() < 0.07
    assert float(covariance.diagonal().real.mean()) == pytest.approx(1, abs=0.01)
    assert (n.mT @ x.flatten(1).conj() / N).abs().max() < 0.07


def test_with_a_measured_point_it_is_the_data_again() -> None:
    """One coil: there x + (1 + EPSILON)^(1/2) sigma0 n is y but for EPSILON, whatever x is; elsewhere n is new."""
    x = torch.zeros(1, *SHAPE, dtype=torch.complex128) + 0.7
    slice_ = scanned(1, images()[:1])
    n = fft2c(own_noise(slice_, x, seeded(1)))
    error = (fft2c(x) + (1 + EPSILON) ** 0.5 * SIGMA0 * n - slice_.kspace[:, 0])[..., slice_.mask > 0]
    assert float(error.abs().square().mean().sqrt()) == pytest.approx(EPSILON**0.5 * SIGMA0, rel=0.3)
    assert float(n[..., slice_.mask == 0].abs().square().mean()) == pytest.approx(1, rel=0.4)


def test_a_right_prior_stays_as_it_is() -> None:
    prior = Prior(denoise, {"sigma_min": SIGMA0 / 4, "sigma_max": 10.0}, "")
    x = images()
    back = flowed(scanned(3, x), x, prior, 8, seeded(2))
    spectrum, right = fft2c(back).abs().square().mean(0), power()
    last = right / (right + (SIGMA0 / 4) ** 2)  # of the mean that Heun's method ends with
    torch.testing.assert_close(spectrum, right * last, rtol=0.06, atol=0)
    alike = (back.conj() * x).sum().abs() / (back.norm() * x.norm())
    assert alike > 0.9


@pytest.mark.parametrize("believed", [0.25, 1.0, 4.0])
def test_what_a_wrong_prior_believes_in_goes_by_the_law(believed: float) -> None:
    """All is measured, C = 0, and posterior samples are exact: P' = P + P / (P + s^2) ((1 - c) g + c)^2 (0 - P)."""
    p, shape = believed * SIGMA0**2, (N, *SHAPE)
    y = SIGMA0 * torch.randn(shape, dtype=torch.complex128, generator=seeded(7))
    one = case(coils=1).slice_
    slice_ = replace(one, mask=torch.ones_like(one.mask), kspace=y[:, None])
    g = p / (p + SIGMA0**2)
    fresh = torch.randn(shape, dtype=torch.complex128, generator=seeded(8))
    x = ifft2c(g * y + (p * (1 - g)) ** 0.5 * fresh)
    prior = Prior(lambda x_t, sigma: p / (p + sigma.reshape(-1, 1, 1).square()) * x_t, {"sigma_min": 1e-3}, "")
    found = float(flowed(slice_, x, prior, 40, seeded(9)).abs().square().mean())
    c = (1 + EPSILON) ** -0.5
    last = (SIGMA0 / 4) ** 2
    kept = p / (p + last)  # of the mean that Heun's method ends with
    assert found == pytest.approx(kept * (p - g * ((1 - c) * g + c) ** 2 * p), rel=0.03)
    assert found < p - g**2 * p


def test_em_flows_where_the_protocol_says_so() -> None:
    protocol = load(Protocol, "tiny")
    flowing = protocol.model_copy(update={"em": protocol.em.model_copy(update={"flow": 3})})
    prior = Prior(lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1).square()), {"sigma_min": 0.01}, "")
    slice_, x = single(case().slice_), torch.zeros(2, *SHAPE, dtype=torch.complex64)
    transport = network_steps(flowing, "cpu", print)[0].transport
    assert transport is not None
    assert torch.equal(transport(slice_, x, prior, seeded(3)), flowed(slice_, x, prior, 3, seeded(3)))
    assert network_steps(protocol, "cpu", print)[0].transport is None
    assert network_steps(flowing, "cpu", print, diffem=True)[0].transport is None


def test_it_runs_in_single_precision_with_two_sets() -> None:
    one = single(case().slice_)
    two = replace(one, maps=torch.stack([one.maps, one.maps.flip(-1)]) / 2**0.5, sets=2)
    prior = Prior(lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1).square()), {"sigma_min": 0.01}, "")
    x = torch.zeros(2, 2, *SHAPE, dtype=torch.complex64)
    back = flowed(two, x, prior, 3, seeded(0))
    assert back.shape == x.shape
    assert back.isfinite().all()
