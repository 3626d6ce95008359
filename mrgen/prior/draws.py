"""The random numbers of a training step belong to the items of its batch, not to the process that computes them.

Item i of the batch of step k has a generator of its own, seeded with (seed, k, i), or on a GPU with Triton a counter
(philox.py) with that seed; what a whole batch shares (its noise levels, its pose) comes from a generator seeded with
(seed, k). So a batch gives the same update however it is divided among
processes or into parts, and a step that is computed again after a resume draws the same numbers.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

TRITON = importlib.util.find_spec("triton") is not None  # comes with torch for CUDA on Linux


def _seed(*key: int) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(map(str, key)).encode()).digest()[:8])


def stream(*key: int, device: str = "cpu") -> torch.Generator:
    """A generator seeded with a hash of `key`: other keys, independent numbers."""
    return torch.Generator(device).manual_seed(_seed(*key))


class Draws(ABC):
    """Random numbers by a rule of its own, for the functions below, which otherwise ask a torch.Generator."""

    @abstractmethod
    def normal(self, shape: Sequence[int], columns: Tensor | slice, dtype: torch.dtype, device: torch.device) -> Tensor:
        """In place of torch.randn(shape)[..., columns]; the other columns need not be computed."""

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """In place of torch.rand(shape)."""
        raise TypeError(f"{type(self).__name__} draws no uniform numbers")

    def integers(self, high: int, count: int) -> Tensor:
        """In place of torch.randint(high, (count,)), on the CPU."""
        raise TypeError(f"{type(self).__name__} draws no whole numbers")


Source = torch.Generator | Draws


def complex_noise(like: Tensor, source: Source, columns: Tensor | slice = slice(None)) -> Tensor:
    """CN(0, 1) of the shape and type of `like`: E|n|^2 = 1; of its last axis only the `columns`."""
    if isinstance(source, Draws):
        return source.normal(like.shape, columns, like.dtype, like.device)
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=source)[..., columns]


def uniform(like: Tensor, source: Source) -> Tensor:
    """Real numbers, uniform in [0, 1), of the shape of `like`."""
    if isinstance(source, Draws):
        return source.uniform(like.shape, like.device)
    return torch.rand(like.shape, device=like.device, generator=source)


def integers(high: int, count: int, source: Source) -> Tensor:
    """Whole numbers (count,), uniform in [0, high), on the device where `source` draws them."""
    if isinstance(source, Draws):
        return source.integers(high, count)
    return torch.randint(high, (count,), device=source.device, generator=source)


class DrawPerItem(Draws):
    """Each item of a batch draws from the generator of its own.

    Shapes must begin with the batch. An objective thereby draws from one source for the items it is given, and need not
    know that there are others elsewhere. With another `axis` the batch is that one, and an item draws what the axes
    before it hold one after another.
    """

    def __init__(self, items: Sequence[torch.Generator], axis: int = 0) -> None:
        self.items, self.axis = items, axis
        self.twins: Sequence[torch.Generator] | None = None

    def normal(self, shape: Sequence[int], columns: Tensor | slice, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self._each(torch.randn, shape, dtype, device)[..., columns]

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        return self._each(torch.rand, shape, None, device)

    def _each(
        self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype | None, device: torch.device
    ) -> Tensor:
        batch, own = shape[self.axis], (*shape[: self.axis], *shape[self.axis + 1 :])
        assert batch == len(self.items), f"drew {tuple(shape)} for a batch of {len(self.items)}"
        drawn = [draw(own, dtype=dtype, device=device, generator=g) for g in self._items_on(device)]
        return torch.stack(drawn, dim=self.axis)

    def _items_on(self, device: torch.device) -> Sequence[torch.Generator]:
        """The items' generators; for numbers on the CPU beside those on a GPU, others with the same seeds."""
        if device.type == self.items[0].device.type:
            return self.items
        if self.twins is None:
            self.twins = [torch.Generator(device).manual_seed(g.initial_seed()) for g in self.items]
        return self.twins


class DrawByCounter(Draws):
    """The same of items (item,) of a GPU, all by one kernel, for shapes that begin with the batch."""

    def __init__(self, seeds: Sequence[int], device: str) -> None:
        self.seeds, self.before = seeds, 0
        there = torch.tensor([(seed + 2**63) % 2**64 - 2**63 for seed in seeds])  # the same 64 bits, with a sign
        self.there = there.pin_memory().to(device, non_blocking=True) if device != "cpu" else there

    def normal(self, shape: Sequence[int], columns: Tensor | slice, dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type == "cpu":
            return self.on_cpu.normal(shape, columns, dtype, device)
        drawn = torch.empty(shape, dtype=dtype, device=device)
        self._fill(torch.view_as_real(drawn) if dtype.is_complex else drawn, True, 0.5**0.5 if dtype.is_complex else 1)
        return drawn[..., columns]

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        if device.type == "cpu":
            return self.on_cpu.uniform(shape, device)
        drawn = torch.empty(shape, device=device)
        self._fill(drawn, False, 1)
        return drawn

    def _fill(self, out: Tensor, normal: bool, scale: float) -> None:
        from mrgen.prior import philox  # here, as nothing else needs Triton

        assert len(out) == len(self.seeds), f"drew {tuple(out.shape)} for a batch of {len(self.seeds)}"
        self.before += philox.draw(self.there, self.before, out.reshape(len(out), -1), normal, scale)

    @cached_property
    def on_cpu(self) -> DrawPerItem:
        """For numbers on the CPU beside those on the GPU."""
        return DrawPerItem([torch.Generator().manual_seed(seed) for seed in self.seeds])


def draws_of_step(seed: int, step: int, positions: Sequence[int], device: str) -> Draws:
    """For the items at `positions` of the batch of a training step."""
    seeds = [_seed(seed, step, place) for place in positions]
    if device != "cpu" and TRITON:
        return DrawByCounter(seeds, device)
    return DrawPerItem([torch.Generator(device).manual_seed(own) for own in seeds])
