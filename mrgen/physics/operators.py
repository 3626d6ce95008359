"""Linear operators that compose like their formulas.

The forward model of a scan is y = M F S x + z, written `Mask(m) @ Fourier(shape) @ Coils(maps)`:
S multiplies by the coil maps, F is the centred orthonormal Fourier transform, M keeps the sampled points.

Shapes name the trailing axes that an operator acts on; any leading batch axes pass through and broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, ifft2c

Shape = tuple[int, ...]


class LinearOperator:
    """A linear map from `domain` to `range_` (trailing shapes) with its adjoint."""

    domain: Shape
    range_: Shape

    def forward(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no forward")

    def adjoint(self, y: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} defines no adjoint")

    def normal(self, x: Tensor) -> Tensor:
        return self.adjoint(self.forward(x))

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def __matmul__(self, right: LinearOperator) -> LinearOperator:
        return Composition(self, right)

    def dense(self) -> Tensor:
        """The matrix of the operator, complex128, (prod(range), prod(domain)); for small shapes only."""
        basis = torch.eye(math.prod(self.domain), dtype=torch.complex128).reshape(-1, *self.domain)
        return torch.stack([self.forward(e).reshape(-1) for e in basis], dim=1)


class Composition(LinearOperator):
    """`left @ right`: right acts first."""

    def __init__(self, left: LinearOperator, right: LinearOperator) -> None:
        if left.domain != right.range_:
            raise ValueError(f"cannot compose: left takes {left.domain}, right gives {right.range_}")
        self.left, self.right = left, right
        self.domain, self.range_ = right.domain, left.range_

    def forward(self, x: Tensor) -> Tensor:
        return self.left.forward(self.right.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.right.adjoint(self.left.adjoint(y))


class Fourier(LinearOperator):
    """F: image to centred k-space over the last two axes of `shape`."""

    def __init__(self, shape: Shape) -> None:
        self.domain = self.range_ = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return fft2c(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return ifft2c(y)


class Coils(LinearOperator):
    """S: image (..., y, x) to coil images (..., coil, y, x); `maps` is (..., coil, y, x).

    With sum_c |S_c|^2 = 1 on the support, S^H S is the indicator of the support.
    """

    def __init__(self, maps: Tensor) -> None:
        self.maps, self.conjugate = maps, maps.conj_physical()  # which each product would make anew
        self.domain, self.range_ = tuple(maps.shape[-2:]), tuple(maps.shape[-3:])

    def forward(self, x: Tensor) -> Tensor:
        return self.maps * x.unsqueeze(-3)

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.conjugate * y).sum(-3)


class CoilSets(LinearOperator):
    """S with several sets of maps: images (..., set, y, x) to coil images (..., coil, y, x), their sum over the sets.

    `maps` is (..., set, coil, y, x). Where an object wraps into the field of view two places share a pixel, and each
    needs maps and an image of its own (Uecker et al., Magn Reson Med 2014, on more than one set of maps).
    """

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps
        sets, coils, *shape = maps.shape[-4:]
        self.domain, self.range_ = (sets, *shape), (coils, *shape)

    def forward(self, x: Tensor) -> Tensor:
        return (self.maps * x.unsqueeze(-3)).sum(-4)

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.maps.conj() * y.unsqueeze(-4)).sum(-3)


class Mask(LinearOperator):
    """M: zero what was not sampled. `mask` (0 or 1) broadcasts against `shape`, e.g. (1, kx) for lines."""

    def __init__(self, mask: Tensor, shape: Shape) -> None:
        self.mask = mask
        self.domain = self.range_ = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask * y


class Lines(LinearOperator):
    """M F of coil images (..., coil, y, x) where only lines are sampled, without the others: (..., coil, ky, line).

    One product with as many waves as there are lines takes the place of the Fourier transform along x, so that nothing
    is computed at points that nobody has sampled. `mask` is (kx,).
    """

    def __init__(self, mask: Tensor, shape: Shape) -> None:
        n = shape[-1]
        self.columns = (mask > 0).nonzero().flatten()
        k, x = self.columns - n // 2, torch.arange(n, device=mask.device) - n // 2
        phase = (-2 * math.pi / n) * (x[:, None] * k % n).double()
        self.waves = torch.polar(torch.full_like(phase, n**-0.5), phase)  # (x, line)
        self.domain, self.range_ = tuple(shape), (*shape[:-1], len(k))

    def forward(self, x: Tensor) -> Tensor:
        along_y = torch.fft.ifftshift(x @ self.waves.to(x), dim=-2)
        kspace: Tensor = torch.fft.fftshift(torch.fft.fft(along_y, dim=-2, norm="ortho"), dim=-2)
        return kspace

    def adjoint(self, y: Tensor) -> Tensor:
        along_y = torch.fft.ifft(torch.fft.ifftshift(y, dim=-2), dim=-2, norm="ortho")
        image: Tensor = torch.fft.fftshift(along_y, dim=-2) @ self.waves.mH.to(y)
        return image


def sense(maps: Tensor, mask: Tensor, *, sets: bool = False) -> LinearOperator:
    """A = M F S for `maps` (..., coil, y, x) and `mask` broadcastable to (..., coil, ky, kx).

    With `sets` the maps are (..., set, coil, y, x) and A takes images (..., set, y, x).
    """
    coils = CoilSets(maps) if sets else Coils(maps)
    return Mask(mask, coils.range_) @ Fourier(coils.range_) @ coils


def sense_points(maps: Tensor, mask: Tensor, *, sets: bool = False) -> tuple[LinearOperator, Tensor | slice]:
    """A = M F S as `sense(maps, mask, sets=sets)` has it, and which columns of k-space it gives.

    Where only lines are sampled, `mask` (kx,), those are the sampled ones, (coil, ky, line); else all.
    """
    if mask.ndim > 1:
        return sense(maps, mask, sets=sets), slice(None)
    coils = CoilSets(maps) if sets else Coils(maps)
    lines = Lines(mask, coils.range_)
    return lines @ coils, lines.columns


def line_gram(maps: Tensor, mask: Tensor, *, sets: bool = False) -> Tensor | None:
    """A^H A of `sense(maps, mask, sets=sets)` as one matrix for each readout position, (y, x, x); None without lines.

    Where only lines are sampled, `mask` (kx,) or (1, kx), readout positions do not mix, and the matrix of each is
    (sum_c conj(S_c(j)) S_c(k)) times the mask's point spread function at j - k. Several sets make it that many times
    wider.
    """
    if mask.ndim > 1 and mask.shape[-2] > 1:
        return None
    n, count = maps.shape[-1], maps.shape[0] if sets else 1
    line = mask.reshape(n).to(maps)
    offset = torch.fft.ifft(torch.fft.ifftshift(line))  # point spread function at j - k = 0, 1, ...
    index = torch.arange(n, device=maps.device)
    spread = offset[(index[:, None] - index[None, :]) % n].repeat(count, count)
    rows = maps.reshape(count, -1, *maps.shape[-2:]).permute(2, 1, 0, 3).flatten(2)  # (y, coil, set * x)
    gram: Tensor = (rows.mH @ rows) * spread
    return gram


def image_rows(images: Tensor, sets: int) -> Tensor:
    """Images (n, y, x), or (n, set, y, x), as the columns that the matrices of `line_gram` take, (y, set * x, n)."""
    columns: Tensor = images.reshape(-1, sets, *images.shape[-2:]).permute(2, 1, 3, 0)
    return columns.flatten(1, 2)


def from_rows(rows: Tensor, shape: Shape) -> Tensor:
    """Images of `shape`, the inverse of `image_rows`."""
    n_y, n_x = shape[-2:]
    return rows.reshape(n_y, -1, n_x, rows.shape[-1]).permute(3, 1, 0, 2).reshape(shape)


def sense_normal(maps: Tensor, mask: Tensor, *, sets: bool = False) -> Callable[[Tensor], Tensor]:
    """A^H A of `sense(maps, mask, sets=sets)` for one slice, as a function of a batch of images, the fast way.

    With the matrices of `line_gram` one product of small matrices replaces two Fourier transforms of every coil, for
    all images of the batch at once.
    """
    gram = line_gram(maps, mask, sets=sets)
    if gram is None:
        return _transforms(CoilSets(maps) if sets else Coils(maps), mask, (-2, -1))
    count = maps.shape[0] if sets else 1

    def normal(x: Tensor) -> Tensor:
        return from_rows(gram @ image_rows(x, count), tuple(x.shape))

    return normal


def line_normal(maps: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """A^H A of `sense(maps, mask)` where only lines are sampled, for a batch of slices, each with its maps and mask.

    `maps` is (batch, coil, y, x), `mask` (batch, 1, 1, kx), the images (batch, y, x). Along the readout the transforms
    cancel, and along x the rest is a circular convolution, which does not care where the origin is: one Fourier
    transform each way along one axis.
    """
    return _transforms(Coils(maps), mask, (-1,))


def _transforms(coils: Coils | CoilSets, mask: Tensor, axes: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """S^H F^H M F S with transforms along `axes` whose origin is a corner, not the centre: only M cares, in k-space.

    M takes the scale of the inverse transform along, which would be a pass over all coils of its own.
    """
    size = math.prod(coils.domain[axis] for axis in axes)
    sampled = torch.fft.ifftshift(mask, dim=axes).to(coils.maps.real.dtype) / size

    def normal(x: Tensor) -> Tensor:
        kspace = torch.fft.fftn(coils.forward(x), dim=axes)
        return coils.adjoint(torch.fft.ifftn(sampled * kspace, dim=axes, norm="forward"))

    return normal
