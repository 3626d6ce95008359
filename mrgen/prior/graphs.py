"""The passes of a network, in training and frozen, recorded as CUDA graphs.

A forward and a backward pass start several hundred kernels, each at the price of some microseconds on one processor
core: more than a GPU takes for them unless the batch is large. Recorded once for a shape, a pass starts at once.

A recording works in memory of its own, which all recordings of a network share, as no more than one is in use: from a
forward pass to its backward pass. In training a second forward pass in between runs as it would without this, and so
does a shape that comes for the first time, or one too many. Batches are filled up by an eighth, if they are not small,
so that those that differ by a few images are one shape, or further to one that is recorded, if it is not larger by more
than a share of SPARE; what fills them has no weight in the gradient.

A frozen network meets the same few shapes again and again and is to give an image the same numbers whatever it was
asked before. So nothing is filled up, and a shape is recorded when it comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST, SPARE = 4, 0.25  # images; share of the images
MOST = 16  # shapes
WARM = 3  # passes before a recording, in which libraries choose what they do


def _warmed(device: torch.device, work: Callable[[], object]) -> torch.cuda.Stream:
    """A stream to record `work` on, where it has run WARM times."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)
    return stream


class _Recording:
    """Forward and backward pass of `network` for images and noise levels of one shape."""

    def __init__(self, network: nn.Module, images: Tensor, c_noise: Tensor, pool: Any) -> None:
        self.given, self.pending = (images.clone(), c_noise.clone()), False
        # the same memory under other names, of which no gradient is being accumulated on the stream of the training
        names = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
        parameters = list(names.values())

        def run() -> Tensor:
            return torch.func.functional_call(network, names, self.given)  # type: ignore[no-any-return]

        def both() -> None:
            out = run()
            torch.autograd.grad(out, parameters, torch.zeros_like(out))

        stream = _warmed(images.device, both)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # thread_local: other threads load batches meanwhile
        with torch.cuda.graph(self.forward, pool, stream, capture_error_mode="thread_local"):
            out = run()
        self.d_out = torch.zeros_like(out)
        with torch.cuda.graph(self.backward, pool, stream, capture_error_mode="thread_local"):
            self.gradients = torch.autograd.grad(out, parameters, self.d_out)
        self.out = out.detach()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, images: Tensor, c_noise: Tensor, *parameters: Tensor) -> Tensor:
        for place, value in zip(recording.given, (images, c_noise), strict=True):
            place[: len(value)].copy_(value)
        recording.forward.replay()
        recording.pending = True
        ctx.recording = recording
        out: Tensor = recording.out[: len(images)].clone()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        recording = ctx.recording
        recording.d_out[: len(d_out)].copy_(d_out)
        recording.d_out[len(d_out) :].zero_()
        recording.backward.replay()
        recording.pending = False
        return None, None, None, *(g.detach() for g in recording.gradients)


class Graphs:
    """`network`, called as itself, by recordings of its passes where it can.

    The gradients of the parameters lie in a recording and are overwritten by its next backward pass, so they cannot be
    added up over several. Images want no gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parameters = tuple(network.parameters())
        self.recordings: dict[tuple[int, ...], _Recording] = {}
        self.seen: Counter[tuple[int, ...]] = Counter()
        self.pool: Any = None

    def __call__(self, images: Tensor, c_noise: Tensor) -> Tensor:
        """(batch, channels, y, x) and c_noise (batch,) to (batch, 2, y, x)."""
        count = len(images)
        step = max(LEAST, 2 ** count.bit_length() // 16)
        shape = -(-count // step) * step, *images.shape[1:]
        room = [
            s for s in self.recordings if s[1:] == shape[1:] and count <= s[0] <= max(shape[0], (1 + SPARE) * count)
        ]
        shape = min(room, default=shape)
        self.seen[shape] += 1
        if not torch.is_grad_enabled() or any(r.pending for r in self.recordings.values()):
            return self.network(images, c_noise)  # type: ignore[no-any-return]
        if shape not in self.recordings and self.seen[shape] > 1 and len(self.recordings) < MOST:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            rows = torch.arange(shape[0], device=images.device).clamp_max(count - 1)
            self.recordings[shape] = _Recording(self.network, images[rows], c_noise[rows], self.pool)
        if shape not in self.recordings:
            return self.network(images, c_noise)  # type: ignore[no-any-return]
        replay = partial(_Replay.apply, self.recordings[shape])
        out: Tensor = replay(images, c_noise, *self.parameters)
        return out


class _Pass:
    """The forward pass of a frozen `network` for images and noise levels of one shape."""

    def __init__(self, network: nn.Module, images: Tensor, c_noise: Tensor, pool: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():  # memory of inference mode could not be written elsewhere
            self.given = images.clone(), c_noise.clone()
            stream = _warmed(images.device, lambda: network(*self.given))
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
                self.out: Tensor = network(*self.given)

    def __call__(self, *given: Tensor) -> Tensor:
        for place, value in zip(self.given, given, strict=True):
            place.copy_(value)
        self.graph.replay()
        return self.out.clone()


class Frozen:
    """`network`, whose parameters stay, called as itself: by recordings where no gradient is wanted."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.recordings: dict[torch.Size, _Pass] = {}
        self.pool: Any = None

    def __call__(self, images: Tensor, c_noise: Tensor) -> Tensor:
        """(batch, channels, y, x) and c_noise (batch,) to (batch, 2, y, x)."""
        shape = images.shape
        if torch.is_grad_enabled() or (shape not in self.recordings and len(self.recordings) == MOST):
            return self.network(images, c_noise)  # type: ignore[no-any-return]
        if shape not in self.recordings:
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            try:
                self.recordings[shape] = _Pass(self.network, images, c_noise, self.pool)
            except torch.OutOfMemoryError:
                self.recordings.clear()  # whose memory is then there for fewer images
                raise
        return self.recordings[shape](images, c_noise)
