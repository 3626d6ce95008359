"""An orthogonal wavelet transform W of images; beyond its edges an image is 0.

One level takes x along both axes to c[k] = sum_j h[j] x[2k + 1 - j], for a low-pass filter h and for its high-pass
mirror; the next level takes what both low-pass filters gave. All coefficients that can differ from 0 are kept, a few
more than x has numbers, so that W^H W = I (Daubechies, Ten Lectures on Wavelets, 1992, chapter 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pywt
import torch
from torch import Tensor
from torch.nn import functional

NAME = "db4"


@dataclass(frozen=True)
class Wavelet:
    """W for complex images (n, y, x); `filters` (2, tap), low-pass and high-pass, run backwards."""

    filters: Tensor
    levels: int

    @classmethod
    def of(cls, shape: tuple[int, int], device: torch.device | str = "cpu") -> Wavelet:
        """For images of `shape`, with as many levels as PyWavelets gives them."""
        found = pywt.Wavelet(NAME)
        filters = torch.tensor([found.dec_lo[::-1], found.dec_hi[::-1]], dtype=torch.complex64, device=device)
        return cls(filters, pywt.dwt_max_level(min(n + n % 2 for n in shape), found.dec_len))

    def shrink(self, images: Tensor, shrink: Callable[[Tensor], Tensor]) -> Tensor:
        """W^H of what `shrink`, given W `images` in parts of any shape, makes of each coefficient, in new memory."""
        odd_y, odd_x = (n % 2 for n in images.shape[-2:])
        return self._level(functional.pad(images, (odd_x, 0, odd_y, 0)), self.levels, shrink)[..., odd_y:, odd_x:]

    def _level(self, x: Tensor, left: int, shrink: Callable[[Tensor], Tensor]) -> Tensor:
        if left == 0:
            return shrink(x)
        c = self._analyse(self._analyse(x).movedim(-3, -1))  # (n, kx, low or high, ky, low or high)
        low = self._level(c[..., 0, :, 0], left - 1, shrink)
        c = shrink(c)
        c[..., 0, :, 0] = low
        return self._synthesise(self._synthesise(c, x.shape[-2]).movedim(-1, -3), x.shape[-1])

    def _analyse(self, x: Tensor) -> Tensor:
        """(..., n) to (..., k, low or high)."""
        taps = self.filters.shape[-1]
        windows = functional.pad(x, (taps - 2, taps - 2 + x.shape[-1] % 2)).unfold(-1, taps, 2)
        return windows @ self.filters.mT

    def _synthesise(self, c: Tensor, n: int) -> Tensor:
        """The adjoint of `_analyse`, (..., k, low or high) to (..., n)."""
        taps, k = self.filters.shape[-1], c.shape[-2]
        pairs = (c @ self.filters).reshape(*c.shape[:-1], taps // 2, 2)  # (..., k, pair of taps, 2)
        x = c.new_zeros(*c.shape[:-2], k + taps // 2 - 1, 2)
        for i in range(taps // 2):
            x[..., i : i + k, :] += pairs[..., i, :]
        return x.flatten(-2)[..., taps - 2 : taps - 2 + n]
