"""The random numbers of a posterior sample: the same whatever is drawn beside it, on any device.

Number j of draw d is a function of (key, d, j) alone, and the first axis of a draw is the samples, so that how many
there are does not matter to one of them. In antithetic pairs that axis counts pairs, and the second sample of each has
the numbers of the first with the other sign. With h(key, d) the first 64 bits of a SHA-256 and m the mixing function of
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
from collections.abc import Sequence

import torch
from torch import Tensor

from mrgen.prior.draws import Draws


def _signed(bits: int) -> int:
    """The 64-bit integer as torch.int64 holds it."""
    return (bits + 2**63) % 2**64 - 2**63


GAMMA = _signed(0x9E3779B97F4A7C15)
ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))
SMALLEST = 2.0**-27  # stands for u = 0, whose neighbour is 2^-25


def random_bits(seed: int, numbers: Tensor) -> Tensor:
    """Outputs of SplitMix64 for a 64-bit seed, int64 as `numbers`, of which 0 is the first."""
    z = (numbers + 1).mul_(GAMMA).add_(_signed(seed))
    shifted = torch.empty_like(z)
    for shift, factor in ROUNDS:
        torch.bitwise_right_shift(z, shift, out=shifted).bitwise_and_(2 ** (64 - shift) - 1)  # int64 keeps the sign
        z.bitwise_xor_(shifted).mul_(factor)
    return z


def complex_normal(bits: Tensor) -> Tensor:
    """CN(0, 1), complex64, from 64 random bits each."""
    low, high = bits.view(torch.int32).reshape(*bits.shape, 2).unbind(-1)
    u = low.float().mul_(2**-32).add_(0.5).clamp_min_(SMALLEST)
    v = high.float().mul_(2 * math.pi * 2**-32)
    radius = u.log_().neg_().sqrt_()
    return torch.complex(v.cos().mul_(radius), v.sin().mul_(radius))  # twice as fast as torch.polar


class DrawPerSample(Draws):
    """Draws as above: complex64 noise, and whole numbers; the key is drawn of `generator`."""

    def __init__(self, generator: torch.Generator, antithetic: bool = False) -> None:
        self.antithetic = antithetic
        self.key = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        self.draws = 0

    def _seed(self) -> int:
        digest = hashlib.sha256(f"{self.key} {self.draws}".encode()).digest()
        self.draws += 1
        return int.from_bytes(digest[:8])

    def normal(self, shape: Sequence[int], columns: Tensor | slice, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert dtype == torch.complex64, f"{dtype} noise of a sample"
        samples, n = shape[0], shape[-1]
        if self.antithetic:
            shape = (-(-samples // 2), *shape[1:])
        of_row = torch.arange(n, device=device)[columns]
        rows = torch.arange(math.prod(shape[:-1]), device=device)
        numbers = (n * rows[:, None] + of_row).reshape(*shape[:-1], -1)
        drawn = complex_normal(random_bits(self._seed(), numbers))
        return torch.stack([drawn, -drawn], dim=1).flatten(0, 1)[:samples] if self.antithetic else drawn

    def integers(self, high: int, count: int) -> Tensor:
        bits = random_bits(self._seed(), torch.arange(count))
        return (bits >> 32 & 0x7FFFFFFF).remainder_(high)
