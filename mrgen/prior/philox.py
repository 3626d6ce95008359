"""Random numbers of many items by one kernel of a GPU, where a generator for each item would take one for each.

Four numbers come from one evaluation of Philox 4x32-10 (Salmon et al., SC 2011, doi 10.1145/2063384.2063405), a
function of a seed and a counter: an item's seed, and how many times it has drawn. So the items do not know each other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # counters of a program


@triton.jit(do_not_specialize=["before", "counters", "count"])
def _draw(seeds_at, out_at, before, counters, count, scale, NORMAL: tl.constexpr, BLOCK: tl.constexpr):
    item = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(seeds_at + item)
    if NORMAL:
        a, b, c, d = tl.randn4x(seed, before + place)
    else:
        a, b, c, d = tl.rand4x(seed, before + place)
    row, there = out_at + item * count + place, place < counters
    tl.store(row, scale * a, there)
    tl.store(row + counters, scale * b, there & (place + counters < count))
    tl.store(row + 2 * counters, scale * c, there & (place + 2 * counters < count))
    tl.store(row + 3 * counters, scale * d, there & (place + 3 * counters < count))


def draw(seeds: Tensor, before: int, out: Tensor, normal: bool, scale: float = 1.0) -> int:
    """Fill `out` (item, count) with normal numbers of std `scale`, or uniform ones in [0, scale), float32.

    `seeds` (item,) int64 are on the same GPU. Counters from `before` on are used up: returns how many.
    """
    count = out.shape[1]
    counters = -(-count // 4)
    with torch.cuda.device_of(out):
        _draw[len(seeds), -(-counters // BLOCK)](seeds, out, before, counters, count, scale, normal, BLOCK)
    return counters
