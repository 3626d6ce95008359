r"""An analytic head: ellipsoids whose slices have an exact Fourier transform.

A slice through an ellipsoid is an ellipse of half-axes a, b, turned by theta, at c. Its transform is

    F(k) = rho a b J_1(2 pi K) / K exp(-2 pi i k.c),    K = |(a k_a, b k_b)|,    k_a, k_b along the ellipse's own axes

(Koay et al., Magn Reson Med 2007, doi 10.1002/mrm.21292, have the ellipsoid's). k-space is then not a
discrete transform of pixels, and no reconstruction gets the advantage of using the grid that the data were made with.
Lengths are in half-fields of view, axes y (towards the back of the head), x (left), z (up), from the centre.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import scipy.special
import torch
from torch import Tensor

from mrgen.scans.simulate import uniform


@dataclass(frozen=True)
class Ellipsoid:
    """What it adds to the signal inside; angles (rad) turn the axes y, x about z, from x towards y."""

    signal: float
    centre: tuple[float, float, float]  # y, x, z
    axes: tuple[float, float, float]  # half-axes along y, x, z before the turn
    angle: float = 0.0

    def section(self, z: float) -> float:
        """What of the half-axes in the plane is left at height z, 0 outside."""
        return math.sqrt(max(0.0, 1 - ((z - self.centre[2]) / self.axes[2]) ** 2))


def phantom_kspace(ellipsoids: Iterable[Ellipsoid], z: float, shape: tuple[int, int]) -> Tensor:
    """Exact k-space (ky, kx), complex128, of the plane at height z, scaled as `fft2c` of its image (y, x) would be."""
    k_y, k_x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    k_y, k_x = k_y[:, None] / 2, k_x[None] / 2  # cycles per half-field
    total = torch.zeros(shape, dtype=torch.complex128)
    for e in ellipsoids:
        part = e.section(z)
        if part == 0:
            continue
        a, b = part * e.axes[0], part * e.axes[1]
        c, s = math.cos(e.angle), math.sin(e.angle)
        radius = torch.sqrt((a * (c * k_y - s * k_x)) ** 2 + (b * (s * k_y + c * k_x)) ** 2)
        j_1 = torch.from_numpy(scipy.special.j1(2 * math.pi * radius.numpy()))  # torch's own is right to 5e-7 only
        disc = torch.where(radius > 0, j_1 / radius, math.pi)
        place_y, place_x = (torch.exp(-2j * math.pi * k * c) for k, c in ((k_y, e.centre[0]), (k_x, e.centre[1])))
        total += e.signal * a * b * disc * place_y * place_x
    return total * (math.sqrt(shape[0] * shape[1]) / 4)  # a pixel is 4 / (n_y n_x) of the area


def head_phantom(generator: torch.Generator | None = None) -> tuple[Ellipsoid, ...]:
    """A head with scalp, skull, cerebrospinal fluid, grey and white matter, ventricles, sulci and fine detail.

    Signals are those of a T1-weighted scan, scalp 1. With a generator, another head: all signals but the ratio of skull
    and scalp differ by up to 15 %, sizes by 5 %, and the head is turned by up to 0.3 rad, scaled by 0.9 to 1.05 and
    shifted by up to 0.04.
    """

    def vary(spread: float) -> float:
        return 1.0 if generator is None else uniform(1 - spread, 1 + spread, generator)

    scalp = vary(0.15)
    parts = [
        Ellipsoid(scalp, (0, 0, 0), (0.80, 0.64, 0.86)),
        Ellipsoid(-0.92 * scalp, (0, 0, 0), (0.75, 0.59, 0.81)),
        Ellipsoid(0.17, (0, 0, 0), (0.70, 0.54, 0.76)),  # fluid
        Ellipsoid(0.35, (0, 0, 0), (0.665, 0.505, 0.72)),  # grey
        Ellipsoid(0.25, (0, 0, 0), (0.55, 0.40, 0.55)),  # white
        Ellipsoid(-0.20, (-0.02, 0, 0.2), (0.55, 0.010, 0.40)),  # fissure
        Ellipsoid(0.30, (0.24, -0.20, 0.05), (0.05, 0.04, 0.12)),  # lesions, bright and dark
        Ellipsoid(-0.25, (-0.38, 0.22, -0.05), (0.03, 0.03, 0.12)),
    ]
    for side in (-1, 1):
        parts += [
            Ellipsoid(-0.60, (-0.05, 0.13 * side, 0.05), (0.24, 0.05, 0.30), 0.25 * side),  # ventricles
            Ellipsoid(-0.18, (0.08, 0.24 * side, -0.05), (0.10, 0.035, 0.20), -0.2 * side),  # deep grey matter
        ]
    for z, size in ((-0.3, 0.91), (0.0, 1.0), (0.3, 0.91)):  # what is left of the grey matter at this height
        for i in range(16):
            turn = 2 * math.pi * (i + 0.5) / 16
            at = (0.585 * size * math.sin(turn), 0.43 * size * math.cos(turn), z)
            parts.append(Ellipsoid(-0.17, at, (0.012, 0.06, 0.12), turn))  # sulci, towards the middle
    for row, size in enumerate((0.020, 0.014, 0.010, 0.007)):  # dots as far apart as they are wide
        for column in range(4):
            at = (0.32 + 0.06 * row, 4 * size * (column - 1.5), 0.0)
            parts.append(Ellipsoid(-0.35, at, (size, size, 0.50)))
    if generator is None:
        return tuple(parts)

    turn, scale = uniform(-0.3, 0.3, generator), uniform(0.9, 1.05, generator)
    shift = uniform(-0.04, 0.04, generator), uniform(-0.04, 0.04, generator)
    c, s = math.cos(turn) * scale, math.sin(turn) * scale
    varied = []
    for number, part in enumerate(parts):
        (y, x, z), grow = part.centre, scale * vary(0.05) if number > 4 else scale
        varied.append(
            Ellipsoid(
                part.signal * (vary(0.15) if number > 1 else 1.0),
                (c * y + s * x + shift[0], c * x - s * y + shift[1], scale * z),
                (grow * part.axes[0], grow * part.axes[1], grow * part.axes[2]),
                part.angle + turn,
            )
        )
    return tuple(varied)
