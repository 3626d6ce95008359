"""The random numbers of a training step belong to the items of its batch, not to the process that computes them.

Item i of the batch of step k has a generator of its own, seeded with (seed, k, i); what a whole batch shares (its noise
levels, its pose) comes from one seeded with (seed, k). So a batch gives the same update however it is divided among
processes or into parts, and a step that is computed again after a resume draws the same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mrgen.prior.denoiser import Denoise


def stream(*key: int, device: str = "cpu") -> torch.Generator:
    """A generator seeded with a hash of `key`: other keys, independent numbers."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]))


class DrawPerItem(TorchFunctionMode):
    """Within this context, torch.rand and torch.randn with `generator` draw each item from the generator of its own.

    Their shape must begin with the batch, or be (), for one number that the whole batch shares. An objective thereby
    draws with one generator for the items it is given, and need not know that there are others elsewhere.
    """

    def __init__(self, seed: int, step: int, positions: Sequence[int], device: str) -> None:
        super().__init__()
        self.generator = stream(seed, step, -1, device=device)
        self.items = [stream(seed, step, position, device=device) for position in positions]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.rand, torch.randn) or kwargs.get("generator") is not self.generator or args == ((),):
            return func(*args, **kwargs)
        (shape,) = args
        assert shape[0] == len(self.items), f"drew {tuple(shape)} for a batch of {len(self.items)}"
        return torch.stack([func(shape[1:], **{**kwargs, "generator": g}) for g in self.items])

    def outside(self, denoise: Denoise) -> Denoise:
        """`denoise`, called as if this context were not there: the network draws nothing."""

        def called(x_t: Tensor, sigma: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return denoise(x_t, sigma)

        return called
