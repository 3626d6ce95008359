"""Recorded passes of a network: on a GPU as they are, on a CPU with imitations of the recordings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrgen.posterior.batch import Batch
from mrgen.prior import graphs
from mrgen.prior.draws import stream
from mrgen.prior.graphs import Frozen, Graphs
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


def through_shapes(run: Frozen, net: UNet, device: str) -> None:
    """What the network gives, and numbers that stay when it is asked again, in inference mode and without."""
    g, kept = stream(3), []
    for count, n_x in [(5, 16), (3, 16), (5, 16), (5, 12), (3, 16)]:
        x, c = torch.randn(count, 2, 12, n_x, generator=g).to(device), torch.randn(count, generator=g).to(device)
        with torch.inference_mode(n_x == 16), torch.no_grad():
            kept.append((run(x, c), net(x, c)))
    for found, wanted in kept:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert set(run.recordings) == {(5, 2, 12, 16), (3, 2, 12, 16), (5, 2, 12, 12)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_a_gpu_replays_a_frozen_network() -> None:
    """With the same bits, whatever it was asked before."""
    net, g = network("cuda").requires_grad_(False), stream(4)
    run, fresh = Frozen(net), Frozen(net)
    through_shapes(run, net, "cuda")
    x, c = torch.randn(3, 2, 12, 16, generator=g).cuda(), torch.randn(3, generator=g).cuda()
    with torch.inference_mode():
        assert torch.equal(run(x, c), fresh(x, c))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_a_gpu_without_memory_for_a_recording_halves_the_batch() -> None:
    net = network("cuda").requires_grad_(False)

    class Greedy(nn.Module):
        """More than two images need more memory than there is, but only while they are recorded."""

        def forward(self, images: Tensor, c_noise: Tensor) -> Tensor:
            if torch.cuda.is_current_stream_capturing() and len(images) > 2:
                torch.empty(2**50, device=images.device)
            return net(images, c_noise)  # type: ignore[no-any-return]

    run, told = Frozen(Greedy()), list[str]()
    x, c = torch.randn(8, 2, 12, 16, generator=stream(5)).cuda(), torch.zeros(8, device="cuda")
    with torch.inference_mode():
        for _ in range(2):
            found = Batch(8, told.append).denoise(run, x, c, lambda _: None)
            torch.testing.assert_close(found, net(x, c), rtol=1e-4, atol=1e-4)
    assert len(told) == 4
    assert set(run.recordings) == {(2, 2, 12, 16)}


@pytest.fixture
def imitated_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pass:
        """What a recording does: it works in its own memory, once for a shape."""

        def __init__(self, network: nn.Module, images: Tensor, c_noise: Tensor, pool: Any) -> None:
            self.network, self.given = network, (images.clone(), c_noise.clone())

        def __call__(self, *given: Tensor) -> Tensor:
            for place, value in zip(self.given, given, strict=True):
                place.copy_(value)
            self.out: Tensor = self.network(*self.given)
            return self.out.clone()

    monkeypatch.setattr(graphs, "_Pass", Pass)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)


@pytest.mark.usefixtures("imitated_pass")
def test_a_frozen_network_is_recorded_at_once() -> None:
    net = network("cpu").requires_grad_(False)
    through_shapes(Frozen(net), net, "cpu")


@pytest.mark.usefixtures("imitated_pass")
def test_a_frozen_network_without_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs where a gradient is wanted, and where there are recordings enough."""
    monkeypatch.setattr(graphs, "MOST", 1)
    net, c = network("cpu").requires_grad_(False), torch.zeros(2)
    run = Frozen(net)
    x = torch.ones(2, 2, 8, 8, requires_grad=True)
    run(x, c).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert not run.recordings
    with torch.no_grad():
        for y in (x, x.repeat(1, 1, 2, 1)):
            assert torch.equal(run(y, c), net(y, c))
    assert set(run.recordings) == {(2, 2, 8, 8)}
