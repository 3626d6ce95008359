"""Which images of a result a page of limited size holds, and how exact they are.

All of them, exact to pack.py's step, where that fits. Where it does not, the steps are doubled; and where that does not
suffice, images are left out, those first that a reader misses least: from the end of this list, and of each kind the
slices farthest from the middle.

    mean, std, samples of NEAR slices, reference, zero-filled, not measured, L1-wavelet, samples of the other slices
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mrgen.review.pack import COARSE, levels, pack, step_of
from mrgen.review.stored import Stored

KINDS = ("reconstruction", "std", "reference", "zero_filled", "null_space", "l1_wavelet")  # the most needed first
MAPS = ("std", "null_space")
SAMPLES = "samples"
NEAR = 4
_WIDER = (1, 2)
_AT_ONCE = 4  # slices whose samples are in memory
_TOP = 99.8  # percentile that is white


@dataclass(frozen=True)
class Held:
    """What a page holds."""

    blocks: dict[str, str]  # packed images, by kind and slice, such as "std-3"
    wider: int  # times the step of a page that holds everything
    steps: dict[str, float]  # of every kind of the result
    tops: dict[str, float]  # what is white in it
    left_out: dict[str, range]  # of the kinds of which not every slice is held that there is: those that are

    @property
    def rounding(self) -> float:
        """Bound on what a value is off by, relative to the largest of its kind; samples may come rounded."""
        return 1e-3 * self.wider


def hold(stored: Stored, budget: float) -> Held:
    """The images of a result that fit into `budget` bytes of text."""
    volumes = {name: volume for name in KINDS if (volume := stored.volume(name)) is not None}
    steps = {name: step_of(volume) * (COARSE if name in MAPS else 1) for name, volume in volumes.items()}
    tops = {name: float(np.percentile(v, _TOP)) or float(v.max()) or 1.0 for name, v in volumes.items()}
    wanted = _wanted(stored, list(volumes))

    def images(name: str, wider: int) -> Callable[[int], str]:
        mean, step = volumes["reconstruction"], wider * steps["reconstruction"]
        if name == SAMPLES:
            return lambda i: pack(levels(stored.slice_samples(i), COARSE * step), levels(mean[i], step) // COARSE)
        return lambda i: pack(levels(volumes[name][i], wider * steps[name]))

    def packed(wider: int) -> Iterator[tuple[str, str]]:
        for name, slices in wanted:
            for begin in range(0, len(slices), _AT_ONCE):
                some = slices[begin : begin + _AT_ONCE]
                yield from zip((f"{name}-{i}" for i in some), pool.map(images(name, wider), some), strict=True)

    with ThreadPoolExecutor() as pool:  # zlib leaves the interpreter to others
        for wider in _WIDER:
            blocks, left = {}, budget
            for key, text in packed(wider):
                left -= len(text)
                if left < 0:
                    break
                blocks[key] = text
            else:
                break
    return Held(blocks, wider, {name: wider * step for name, step in steps.items()}, tops, _left_out(wanted, blocks))


def _wanted(stored: Stored, names: list[str]) -> list[tuple[str, list[int]]]:
    """Kinds of images with their slices, in the order in which they are missed."""
    every, samples = _from_the_middle(range(stored.shape[0])), _from_the_middle(stored.sampled)
    kinds = [(name, every) for name in names]
    first = 1 + ("std" in names)
    return [*kinds[:first], (SAMPLES, samples[:NEAR]), *kinds[first:], (SAMPLES, samples[NEAR:])]


def _from_the_middle(slices: range) -> list[int]:
    return sorted(slices, key=lambda i: abs(2 * i + 1 - slices.start - slices.stop))


def _left_out(wanted: list[tuple[str, list[int]]], blocks: dict[str, str]) -> dict[str, range]:
    found = {}
    for name in dict(wanted):
        slices = [i for kind, some in wanted if kind == name for i in some]
        there = [i for i in slices if f"{name}-{i}" in blocks]
        if len(there) < len(slices):
            found[name] = range(min(there), max(there) + 1) if there else range(0)
    return found
