"""The denoiser's scaling in closed form, and a network that takes any image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from mrgen.prior.denoiser import Denoiser, risk_weight
from mrgen.prior.unet import Block
from mrgen.settings import Network

SIGMA_DATA = 0.4
SMALL = Network(widths=(32, 48, 48), blocks=1, patch=2)  # pads to multiples of 8
PIXELS = (400, 500)  # the variance of as many real normal draws has a relative standard error of 0.32 %


class PerChannel(Denoiser):
    """A mutant: sigma taken as the std of each real channel instead of the total complex std."""

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x_t, 2**0.5 * sigma)


@contextmanager
def network_is(denoiser: Denoiser, answer: float) -> Iterator[list[Tensor]]:
    """The network replaced by a constant; the list collects what it is shown."""
    seen: list[Tensor] = []

    class Constant(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            seen.append(x)
            return torch.full_like(x, answer)

    network, denoiser.network = denoiser.network, Constant()
    try:
        yield seen
    finally:
        denoiser.network = network


def moments(denoiser: Denoiser, sigma: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Variance per real channel of the network's input and of its target, their correlation, and the weighted risk
    of the answer 0; data are CN(0, SIGMA_DATA^2)."""
    g = torch.Generator().manual_seed(0)
    x, n = (torch.randn(1, *PIXELS, dtype=torch.complex64, generator=g) for _ in range(2))
    x = SIGMA_DATA * x
    s = torch.tensor([sigma])
    with network_is(denoiser, 0.0) as seen:
        skipped = denoiser(x + sigma * n, s)
    with network_is(denoiser, 1.0):
        c_out = (denoiser(x + sigma * n, s) - skipped).real.mean()
    # in double precision: at sigma = 0.01 the target is a small difference
    target = torch.view_as_real((x.to(torch.complex128) - skipped) / c_out).permute(0, 3, 1, 2)
    given = seen[0].double()
    correlation = (given * target).mean((0, 2, 3))
    risk = (risk_weight(s, SIGMA_DATA) * (skipped - x).abs().square().mean()).item()
    return given.square().mean((0, 2, 3)), target.square().mean((0, 2, 3)), correlation, risk


@pytest.mark.parametrize("sigma", [0.01, 1.0, 20.0])
def test_network_sees_and_gives_unit_variance_at_every_noise_level(sigma: float) -> None:
    given, target, correlation, risk = moments(Denoiser(SMALL, SIGMA_DATA), sigma)
    one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    torch.testing.assert_close(given, one, rtol=0, atol=0.015)
    torch.testing.assert_close(target, one, rtol=0, atol=0.015)
    torch.testing.assert_close(correlation, zero, rtol=0, atol=0.015)  # c_skip leaves nothing linear to learn
    assert risk == pytest.approx(1, abs=0.015)  # the loss starts at 1


@pytest.mark.parametrize("sigma", [1.0, 20.0])
def test_another_convention_of_sigma_is_noticed(sigma: float) -> None:
    given, _, _, _ = moments(PerChannel(SMALL, SIGMA_DATA), sigma)
    assert (given - 1).abs().min() > 0.4


@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (24, 9), (5, 3), (1, 9)])
def test_untrained_denoiser_is_c_skip_on_images_of_any_size(shape: tuple[int, int]) -> None:
    x_t = torch.randn(3, *shape, dtype=torch.complex64)
    sigma = torch.tensor([0.01, 1.0, 20.0])
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    # the last layer starts with zero weights; its bias is what is left
    denoiser = Denoiser(SMALL, SIGMA_DATA)
    nn.init.zeros_(denoiser.network.leave[-1].bias)
    torch.testing.assert_close(denoiser(x_t, sigma), c_skip[:, None, None] * x_t)


def perturbed(seed: int = 0) -> Denoiser:
    """A denoiser whose zero-initialised layers have moved, as after a few updates."""
    torch.manual_seed(seed)
    denoiser = Denoiser(SMALL, SIGMA_DATA)
    starts_at_zero = [denoiser.network.leave[-1].weight]
    for block in denoiser.network.modules():
        if isinstance(block, Block):
            starts_at_zero += [block.conv2.weight, block.modulation.weight]
    assert all(w.abs().max() == 0 for w in starts_at_zero)
    for w in starts_at_zero:
        nn.init.normal_(w, std=0.05)
    return denoiser


@pytest.mark.parametrize("shape", [(17, 23), (5, 3)])
def test_padding_is_at_the_end_and_cropped_again(shape: tuple[int, int]) -> None:
    x_t, sigma = torch.randn(1, *shape, dtype=torch.complex64), torch.tensor([0.3])
    wide = torch.zeros(1, 24, 24, dtype=torch.complex64)[:, : -(-shape[0] // 8) * 8, : -(-shape[1] // 8) * 8]
    wide[:, : shape[0], : shape[1]] = x_t
    denoiser = perturbed()
    torch.testing.assert_close(denoiser(x_t, sigma), denoiser(wide, sigma)[:, : shape[0], : shape[1]])


def test_a_gradient_reaches_every_parameter() -> None:
    denoiser = perturbed()
    x_t = torch.randn(2, 20, 13, dtype=torch.complex64)
    denoiser(x_t, torch.tensor([0.1, 3.0])).abs().square().sum().backward()
    idle = [k for k, p in denoiser.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-7]
    assert idle == []


def test_a_batch_gives_what_its_items_give_one_by_one() -> None:
    denoiser = perturbed()
    x_t = torch.randn(3, 18, 21, dtype=torch.complex64)
    sigma = torch.tensor([0.02, 0.5, 10.0])
    with torch.no_grad():
        together = denoiser(x_t, sigma)
        single = torch.cat([denoiser(x_t[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)
    assert (denoiser(x_t, sigma.flip(0)) - together).abs().max() > 1e-2  # sigma is per item
