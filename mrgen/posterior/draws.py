"""The random numbers of a posterior sample: the same whatever is drawn beside it, on any device.

Number j of draw d is a function of (key, d, j) alone, and the first axis of a draw is the samples, so that how many
there are does not matter to one of them. With h(key, d) the first 64 bits of a SHA-256 and m the mixing function of
SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195),

    z_j = m(h + (j + 1) g mod 2^64),   g = 0x9E3779B97F4A7C15,

whose two halves become uniform numbers u in (0, 1] and v, and sqrt(-log u) exp(2 pi i v) is CN(0, 1) (Box and Muller).
The integers are the same on every device; logarithm and sine differ by rounding. A torch.Generator gives other numbers
on a GPU than on a CPU, and to draw on the CPU and copy would take a GPU longer than all else: 16 samples of 15 coils,
320 x 320 and 20 levels need 10^9 normal numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mrgen.prior.draws import Draws


def _signed(bits: int) -> int:
    """The 64-bit integer as torch.int64 holds it."""
    return (bits + 2**63) % 2**64 - 2**63


GAMMA = _signed(0x9E3779B97F4A7C15)
ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))
SMALLEST = 2.0**-27  # stands for u = 0, whose neighbour is 2^-25


def random_bits(seed: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """The first `count` outputs of SplitMix64 for a 64-bit seed, int64 (count,)."""
    z = torch.arange(1, count + 1, device=device).mul_(GAMMA).add_(_signed(seed))
    shifted = torch.empty_like(z)
    for shift, factor in ROUNDS:
        torch.bitwise_right_shift(z, shift, out=shifted).bitwise_and_(2 ** (64 - shift) - 1)  # int64 keeps the sign
        z.bitwise_xor_(shifted).mul_(factor)
    return z


def complex_normal(bits: Tensor) -> Tensor:
    """CN(0, 1), complex64, from 64 random bits each, (count,)."""
    low, high = bits.view(torch.int32).reshape(-1, 2).unbind(-1)
    u = low.float().mul_(2**-32).add_(0.5).clamp_min_(SMALLEST)
    v = high.float().mul_(2 * math.pi * 2**-32)
    return torch.polar(u.log_().neg_().sqrt_(), v)


class DrawPerSample(Draws):
    """Within this context, torch.randn and torch.randint with `generator` draw as above.

    torch.randn has to be asked for complex64, so `generator` goes wherever samplers and guidance draw complex noise.
    The key is drawn of `source`.
    """

    def __init__(self, source: torch.Generator) -> None:
        super().__init__(torch.Generator())
        self.key = int(torch.randint(2**62, (), generator=source, device=source.device))
        self.draws = 0

    def _bits(self, shape: Sequence[int], device: torch.device | str) -> Tensor:
        seed = hashlib.sha256(f"{self.key} {self.draws}".encode()).digest()[:8]
        self.draws += 1
        return random_bits(int.from_bytes(seed), math.prod(shape), device)

    def draw(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device", "cpu")
        if func is torch.randn and kwargs.get("dtype") == torch.complex64:
            (shape,) = args
            return complex_normal(self._bits(shape, device)).reshape(shape)
        assert func is torch.randint, f"{func} with the generator of the samples"
        high, shape = args
        return (self._bits(shape, device) >> 32 & 0x7FFFFFFF).remainder_(high).reshape(shape)
