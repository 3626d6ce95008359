"""A preconditioner for H = I + Q^(1/2) F E^(1/2) A^H A E^(1/2) F^H Q^(1/2), Q = Lambda / sigma0^2 and E those of V_t.

Read A for A E^(1/2): where E is 1 nothing of what follows changes from level to level but Q.

Two matrices near H are easy. One is its diagonal, 1 + q m with m that of F A^H A F^H; it misses that undersampling
couples the frequencies that fold onto each other. The other is H for one r in place of all q, I + r F A^H A F^H: where
only lines are sampled A^H A is one small matrix for each readout position, and its inverse is exact. Scaled to the
diagonal of H the second one has both,

    P = G F (I + r A^H A) F^H G,     G^2 = (1 + q m) / (1 + r m)

For points that are not lines, and for r below 2, P is the diagonal. r is the geometric mean of q, to a power of 4: the
solve hardly depends on it, and so, where E is 1, few matrices are ever inverted. With E they are at every level: it
changes, and the solve depends on that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.operators import from_rows, image_rows, line_gram
from mrgen.scans.scan import Slice


def fourier_diagonal(maps: Tensor, mask: Tensor) -> Tensor:
    """The diagonal of F A^H A F^H for A = M F S, (..., ky, kx): how much of each frequency the scan measures.

    Element k is sum_c sum_q M_q |S_c(q - k)|^2 / N with S_c(q) the Fourier transform of a coil map (..., coil, y, x), a
    correlation of the mask with the power of the maps.
    """
    spread = fft2c(maps).abs().square().sum(-3)
    sampled = mask.expand(spread.shape).to(spread)
    correlation = fft2c(ifft2c(sampled + 0j) * ifft2c(spread + 0j).conj()).real
    diagonal: Tensor = (correlation / math.prod(spread.shape[-2:]) ** 0.5).clamp_min(0)
    return diagonal


def local_gram(gram: Tensor, spread: Tensor) -> Tensor:
    """E^(1/2) A^H A E^(1/2), (..., y, x, x), of that of A and of E^(1/2) (..., y, x)."""
    return spread.unsqueeze(-1) * gram * spread.unsqueeze(-2)


def inverse_rows(gram: Tensor) -> Tensor:
    """(I + G)^-1 of Hermitian positive semi-definite matrices (..., x, x)."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(eye + gram))


class Preconditioner:
    """P^-1 for one slice and any q; call it as q (n, ky, kx), (ky, kx) or () -> (r (n, ky, kx) -> P^-1 r).

    With several sets of maps q and r have an axis for them before the last two.

    `spread` is E^(1/2), (1, y, x), or None where it is 1. Of several q the first decides on r, so that the others hold
    no sway over an image's rounding.
    """

    def __init__(self, slice_: Slice) -> None:
        self.slice = slice_
        self.measured = fourier_diagonal(slice_.maps, slice_.mask)
        self.gram = line_gram(slice_.maps, slice_.mask, sets=slice_.sets > 1)
        self.kept: tuple[int, Tensor] | None = None  # exponent of r and (I + r A^H A)^-1, (y, x, x)

    def _inverse(self, gram: Tensor, exponent: int, spread: Tensor | None) -> Tensor:
        if spread is not None:
            rows = image_rows(spread, self.slice.sets)[..., 0]
            return inverse_rows(4.0**exponent * local_gram(gram, rows))
        if self.kept is None or self.kept[0] != exponent:
            self.kept = exponent, inverse_rows(4.0**exponent * gram)
        return self.kept[1]

    def __call__(self, q: Tensor, spread: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        measured = self.measured
        if spread is not None:
            measured = fourier_diagonal(self.slice.maps * spread[0].unsqueeze(-3), self.slice.mask)
        diagonal = 1 + q * measured
        exponent = round(float((q[0] if q.ndim >= 3 else q).log2().mean()) / 2)
        if self.gram is None or exponent <= 0:
            return lambda r: r / diagonal
        inverse = self._inverse(self.gram, exponent, spread)
        g = (diagonal / (1 + 4.0**exponent * measured)).sqrt()

        def apply(r: Tensor) -> Tensor:
            rows = inverse @ image_rows(ifft2c(r / g), self.slice.sets)
            return fft2c(from_rows(rows, tuple(r.shape))) / g

        return apply
