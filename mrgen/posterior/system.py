"""The linear system of mrgen.posterior.proximal and its preconditioner,

    H = I + Q^(1/2) F E^(1/2) A^H A E^(1/2) F^H Q^(1/2),     Q = Lambda / sigma0^2,

in coordinates in which F is a transform without shifts: pixels as they are, frequencies from 0 on. It differs from the
centred F by an order and a phase of the frequencies, which change nothing in H but the order of Q.

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

from mrgen.physics.operators import from_rows, image_rows, line_gram
from mrgen.scans.scan import Slice

Map = Callable[[Tensor], Tensor]
LEAF = 48  # matrices up to this width are inverted by LAPACK


def transform(image: Tensor) -> Tensor:
    """Images (..., y, x) to k-space, frequency 0 first and without a scale: sqrt(N_y N_x) F."""
    kspace: Tensor = torch.fft.fft2(image)
    return kspace


def transform_back(kspace: Tensor) -> Tensor:
    """The adjoint of `transform`, sqrt(N_y N_x) F^H."""
    image: Tensor = torch.fft.ifft2(kspace, norm="forward")
    return image


def from_centred(kspace: Tensor) -> Tensor:
    """Centred k-space (..., ky, kx) as `transform` gives it, but for the scale."""
    centre = torch.zeros_like(kspace[(0,) * (kspace.ndim - 2)])
    centre[centre.shape[0] // 2, centre.shape[1] // 2] = 1
    plain: Tensor = transform(centre) * torch.fft.ifftshift(kspace, dim=(-2, -1))
    return plain


def fourier_diagonal(maps: Tensor, mask: Tensor) -> Tensor:
    """The diagonal of F A^H A F^H for A = M F S, (..., ky, kx) in the order of `mask`: how much is measured of each k.

    Element k is sum_c sum_q M_q |S_c(q - k)|^2 / N with S_c(q) the Fourier transform of a coil map (..., coil, y, x), a
    correlation of the mask with the power of the maps.
    """
    power = torch.view_as_real(transform(maps)).square().sum((-4, -1))
    shape = (power.shape[-2], power.shape[-1])
    sampled = torch.fft.rfft2(mask.expand(power.shape).to(power))
    diagonal: Tensor = torch.fft.irfft2(sampled * torch.fft.rfft2(power).conj(), s=shape)
    return (diagonal / math.prod(shape) ** 2).clamp_min(0)


def local_gram(gram: Tensor, spread: Tensor) -> Tensor:
    """E^(1/2) A^H A E^(1/2), (..., y, x, x), of that of A and of E^(1/2) (..., y, x)."""
    spread = spread.to(gram)  # else each product first makes a complex copy as large as the matrices
    return (spread.unsqueeze(-1) * gram).mul_(spread.unsqueeze(-2))


def _adjoint(a: Tensor) -> Tensor:
    """A^H in the order of memory that products take at full speed."""
    return a.conj_physical().mT


def _invert_factor(a: Tensor, w: Tensor) -> None:
    """Writes L^-1 of a = L L^H (..., x, x) into w, which is 0 above the diagonal.

    By halves, so that nearly all is products of large batches, which use all of a CPU or GPU; LAPACK takes one matrix
    after the other, and several threads for each, which only wait for each other.
    """
    n = a.shape[-1]
    if n <= LEAF:
        eye = torch.eye(n, dtype=a.dtype, device=a.device)
        w.copy_(torch.linalg.solve_triangular(torch.linalg.cholesky_ex(a).L, eye, upper=False))
        return
    h = n // 2
    first, last = w[..., :h, :h], w[..., h:, h:]
    _invert_factor(a[..., :h, :h], first)
    below = a[..., h:, :h] @ _adjoint(first)
    _invert_factor(a[..., h:, h:] - below @ _adjoint(below), last)
    w[..., h:, :h] = -(last @ (below @ first))


def inverse_rows(gram: Tensor, r: float | Tensor = 1.0) -> Tensor:
    """(I + r G)^-1 of Hermitian positive semi-definite matrices G (..., x, x)."""
    h, w, matrix = gram.shape[-1] // 2, torch.zeros_like(gram), r * gram
    matrix.diagonal(dim1=-2, dim2=-1).add_(1)
    _invert_factor(matrix, w)
    first, below, last = w[..., :h, :h], w[..., h:, :h], w[..., h:, h:]
    inverse, corner = torch.empty_like(gram), _adjoint(last) @ below
    inverse[..., :h, :h] = _adjoint(first) @ first + _adjoint(below) @ below
    inverse[..., h:, :h], inverse[..., :h, h:] = corner, _adjoint(corner)
    inverse[..., h:, h:] = _adjoint(last) @ last
    return inverse


def scaled(factor: Tensor, x: Tensor) -> Tensor:
    """Complex x times real numbers given twice, (..., 2), for the real and the imaginary part."""
    return torch.view_as_complex(factor * torch.view_as_real(x))


def twice(factor: Tensor) -> Tensor:
    """What `scaled` takes: real and imaginary part cost a pass over real numbers, a complex product more."""
    return torch.stack([factor, factor], dim=-1)


class System:
    """A^H A and P^-1 for one slice and any q and E.

    Images are (n, y, x), q and k-space (n, ky, kx) with frequency 0 first; with several sets of maps all have an axis
    for them after n. Of several q the first decides on r, so that the others hold no sway over an image's rounding.
    """

    def __init__(self, slice_: Slice) -> None:
        shape = slice_.kspace.shape[-2:]
        self.maps, self.sets, self.mask = slice_.maps, slice_.sets, torch.fft.ifftshift(slice_.mask.expand(shape))
        self.measured = fourier_diagonal(self.maps, self.mask)
        inside = slice_.support.any(-2).flatten().nonzero().flatten().tolist() or [0]
        self.columns = slice(inside[0], inside[-1] + 1)  # where there is anything that A sees
        gram = line_gram(slice_.maps, slice_.mask, sets=slice_.sets > 1)
        self.gram = None if gram is None else gram[:, self.columns, self.columns].contiguous()
        self.transforms = slice_.normal() if gram is None else None
        self.kept: tuple[int, Tensor] | None = None  # exponent of r and (I + r A^H A)^-1, (y, x, x)

    def _rows(self, matrices: Tensor, images: Tensor, beside: float) -> Tensor:
        """Matrices (y, x, x) times the `columns` of the rows of images, which elsewhere are multiplied by `beside`."""
        rows = image_rows(images, self.sets)
        whole = beside * rows
        whole[:, self.columns] = matrices @ rows[:, self.columns]
        return from_rows(whole, tuple(images.shape))

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x."""
        if self.gram is None:
            assert self.transforms is not None
            return self.transforms(x)
        return self._rows(self.gram, x, 0.0)

    def __call__(self, q: Tensor, spread: Tensor | None = None) -> Map:
        """r -> P^-1 r of k-space.

        q is (n, ky, kx) or one for all n, `spread` E^(1/2), (1, y, x), or None where it is 1.
        """
        measured, gram = self.measured, self.gram
        if spread is not None:
            measured = fourier_diagonal(self.maps * spread[0].unsqueeze(-3), self.mask)
        diagonal = 1 + q * measured
        first = q[0] if q.ndim == self.maps.ndim else q
        positive = first[first > 0]  # q of a set without support is 0
        exponent = round(float(positive.log2().mean()) / 2) if len(positive) else 0
        if gram is None or exponent <= 0:
            inverse_diagonal = twice(1 / diagonal)
            return lambda r: scaled(inverse_diagonal, r)
        if spread is not None:
            local = local_gram(gram, image_rows(spread, self.sets)[:, self.columns, 0])
            inverse = inverse_rows(local, 4.0**exponent)
        else:
            if self.kept is None or self.kept[0] != exponent:
                self.kept = exponent, inverse_rows(gram, 4.0**exponent)
            inverse = self.kept[1]
        g = twice(((1 + 4.0**exponent * measured) / (diagonal * math.prod(diagonal.shape[-2:]))).sqrt())

        def precondition(r: Tensor) -> Tensor:
            return scaled(g, transform(self._rows(inverse, transform_back(scaled(g, r)), 1.0)))

        return precondition
