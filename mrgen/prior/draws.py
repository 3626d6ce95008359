"""The random numbers of a training step belong to the items of its batch, not to the process that computes them.

Item i of the batch of step k has a generator of its own, seeded with (seed, k, i); what a whole batch shares (its noise
levels, its pose) comes from one seeded with (seed, k). So a batch gives the same update however it is divided among
processes or into parts, and a step that is computed again after a resume draws the same numbers.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, handle_torch_function

from mrgen.prior.denoiser import Denoise


def stream(*key: int, device: str = "cpu") -> torch.Generator:
    """A generator seeded with a hash of `key`: other keys, independent numbers."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]))


def randn_columns(shape: Sequence[int], columns: Tensor | slice, **kwargs: Any) -> Tensor:
    """torch.randn(shape, **kwargs)[..., columns], of which a `Draws` need not compute the other columns."""
    if torch._C._is_torch_function_mode_enabled():
        drawn: Tensor = handle_torch_function(randn_columns, (), shape, columns, **kwargs)
        return drawn
    return torch.randn(shape, **kwargs)[..., columns]


class Draws(TorchFunctionMode, ABC):
    """Within this context, what torch's functions are asked for with `generator` comes from `draw`."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    @abstractmethod
    def draw(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `func` would have drawn with these arguments."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.generator:
            return func(*args, **kwargs)
        if func is randn_columns:
            return self.draw_columns(*args, **kwargs)
        return self.draw(func, *args, **kwargs)

    def draw_columns(self, shape: Sequence[int], columns: Tensor | slice, **kwargs: Any) -> Tensor:
        """What `randn_columns` returns."""
        drawn: Tensor = self.draw(torch.randn, shape, **kwargs)
        return drawn[..., columns]


class DrawPerItem(Draws):
    """Within this context, torch.rand and torch.randn with `generator` draw each item from the generator of its own.

    Their shape must begin with the batch, or be (), for one number that the whole batch shares. An objective thereby
    draws with one generator for the items it is given, and need not know that there are others elsewhere. With another
    `axis` the batch is that one, and an item draws what the axes before it hold one after another.
    """

    def __init__(self, generator: torch.Generator, items: Sequence[torch.Generator], axis: int = 0) -> None:
        super().__init__(generator)
        self.items, self.axis = items, axis
        self.twins: Sequence[torch.Generator] | None = None

    @classmethod
    def of_step(cls, seed: int, step: int, positions: Sequence[int], device: str) -> DrawPerItem:
        """For the items at `positions` of the batch of a training step."""
        shared, *items = (stream(seed, step, place, device=device) for place in (-1, *positions))
        return cls(shared, items)

    def draw(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if func not in (torch.rand, torch.randn) or args == ((),):
            return func(*args, **kwargs)
        (shape,) = args
        batch, own = shape[self.axis], (*shape[: self.axis], *shape[self.axis + 1 :])
        assert batch == len(self.items), f"drew {tuple(shape)} for a batch of {len(self.items)}"
        items = self._items_on(torch.device(kwargs.get("device") or "cpu"))
        return torch.stack([func(own, **{**kwargs, "generator": g}) for g in items], dim=self.axis)

    def _items_on(self, device: torch.device) -> Sequence[torch.Generator]:
        """The items' generators; for numbers on the CPU beside those on a GPU, others with the same seeds."""
        if device.type == self.generator.device.type:
            return self.items
        if self.twins is None:
            self.twins = [torch.Generator(device).manual_seed(g.initial_seed()) for g in self.items]
        return self.twins

    def outside(self, denoise: Denoise) -> Denoise:
        """`denoise`, called as if this context were not there: the network draws nothing."""

        def called(x_t: Tensor, sigma: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return denoise(x_t, sigma)

        return called
