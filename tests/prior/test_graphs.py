"""Recorded passes of a network: on a GPU as they are, on a CPU with an imitation of the recording."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrgen.prior import graphs
from mrgen.prior.draws import stream
from mrgen.prior.graphs import Graphs
from mrgen.prior.unet import UNet


class Imitation:
    """What a recording does, by running the network anew in the recording's own memory."""

    def __init__(self, network: nn.Module, images: Tensor, c_noise: Tensor, pool: Any) -> None:
        self.network, self.given, self.pending = network, (images.clone(), c_noise.clone()), False
        self.parameters = list(network.parameters())
        self.out = torch.zeros_like(network(images, c_noise))
        self.d_out = torch.full_like(self.out, torch.nan)
        self.gradients = tuple(torch.zeros_like(p) for p in self.parameters)
        self.forward, self.backward = SimpleNamespace(replay=self._forward), SimpleNamespace(replay=self._backward)

    @torch.enable_grad()
    def _forward(self) -> None:
        self.full = self.network(*self.given)
        self.out.copy_(self.full.detach())

    def _backward(self) -> None:
        for place, found in zip(
            self.gradients, torch.autograd.grad(self.full, self.parameters, self.d_out), strict=True
        ):
            place.copy_(found)


def network(device: str) -> UNet:
    torch.manual_seed(0)
    unet = UNet((16, 32), 1, 2)
    for p in unet.parameters():  # some begin at zero, which would hide much
        nn.init.normal_(p, std=0.1)
    return unet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def result(run: Any, net: UNet, x: Tensor, c_noise: Tensor) -> list[Tensor]:
    """Output and gradients of a loss, in a training's way."""
    net.zero_grad(set_to_none=True)
    out = run(x, c_noise)
    (out - 1).square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def compare(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    gradient = max(float(b.norm()) for b in wanted[1:])  # some are zero but for rounding
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).norm() <= tolerance * max(b.norm(), 1e-3 * gradient), a.shape


def follow(device: str, tolerance: float) -> Graphs:
    """Sizes of many batches, in turn, as recordings give them and as the network does."""
    net, g = network(device), stream(0)
    run = Graphs(net)
    for count, shape in [(5, (12, 16)), (6, (12, 16)), (8, (16, 12)), (7, (12, 16)), (8, (16, 12)), (5, (16, 12))]:
        x, c = torch.randn(count, 2, *shape, generator=g).to(device), torch.randn(count, generator=g).to(device)
        wanted, found = result(net, net, x, c), result(run, net, x, c)
        assert len(found) == 1 + len(list(net.parameters()))
        compare(found, wanted, tolerance)
    assert set(run.recordings) == {(8, 2, 12, 16), (8, 2, 16, 12)}
    return run


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_a_gpu_replays_what_it_runs() -> None:
    run = follow("cuda", 1e-4)
    assert not any(r.pending for r in run.recordings.values())


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_Recording", Imitation)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)


@pytest.mark.usefixtures("imitated")
def test_batches_of_like_sizes_share_a_recording() -> None:
    """And what fills a batch up, which has been there before, has no weight."""
    follow("cpu", 1e-5)


@pytest.mark.usefixtures("imitated")
def test_a_batch_is_filled_up_to_a_recording_that_is_a_little_larger() -> None:
    net, g = network("cpu"), stream(2)
    run = Graphs(net)
    for count in (17, 18, 16, 16, 15, 15):  # of 20, 16 wants a quarter more, 15 a third
        x, c = torch.randn(count, 2, 12, 16, generator=g), torch.randn(count, generator=g)
        compare(result(run, net, x, c), result(net, net, x, c), 1e-5)
        assert (16, 2, 12, 16) not in run.recordings or count == 15
    assert set(run.recordings) == {(20, 2, 12, 16), (16, 2, 12, 16)}


@pytest.mark.usefixtures("imitated")
def test_two_calls_before_a_gradient() -> None:
    """The second runs outside the recording that the first is waiting in, also for another shape."""
    net, g = network("cpu"), stream(1)
    run = Graphs(net)
    first, second = torch.randn(2, 4, 2, 12, 16, generator=g)
    c = torch.zeros(4)
    for x in (first, second.mT, second.mT):
        result(run, net, x, c)
        result(run, net, x, c)
    for other in (second, second.mT):

        def loss(f: Any, other: Tensor = other) -> Tensor:
            return (f(first, c).square().sum() * f(other, c).square().sum()).log()  # type: ignore[no-any-return]

        wanted = torch.autograd.grad(loss(net), list(net.parameters()))
        found = torch.autograd.grad(loss(run), list(net.parameters()))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("imitated")
def test_no_more_recordings_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor any without gradients."""
    monkeypatch.setattr(graphs, "MOST", 1)
    net, c = network("cpu"), torch.zeros(4)
    run = Graphs(net)
    small, large = torch.ones(4, 2, 8, 8), torch.ones(4, 2, 12, 8)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(run(small, c), net(small, c))
    assert not run.recordings
    for x in (small, small, large, large):
        result(run, net, x, c)
    assert list(run.recordings) == [(4, 2, 8, 8)]
    with torch.no_grad():
        run(small, c)
    assert not run.recordings[4, 2, 8, 8].pending
