"""The analytic head against quadrature, closed forms and symmetries of the Fourier transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.scans.phantom import Ellipsoid, head_phantom, phantom_kspace


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rasterised(ellipsoids: tuple[Ellipsoid, ...], z: float, shape: tuple[int, int]) -> Tensor:
    """Signal at the middle of every pixel (y, x): which ellipsoids hold the point."""
    y, x = (v.double() for v in grid(shape))
    image = torch.zeros(shape, dtype=torch.float64)
    for e in ellipsoids:
        v, u = y - e.centre[0], x - e.centre[1]
        c, s = math.cos(e.angle), math.sin(e.angle)
        depth = ((z - e.centre[2]) / e.axes[2]) ** 2
        if depth >= 1:
            continue
        inside = ((c * v - s * u) / e.axes[0]) ** 2 + ((s * v + c * u) / e.axes[1]) ** 2 + depth < 1
        image += e.signal * inside
    return image


def test_a_disc_has_the_textbook_transform() -> None:
    radius, k = 0.4, np.arange(-16, 16) / 2  # of half-fields, cycles per half-field
    found = phantom_kspace([Ellipsoid(2.0, (0, 0, 0), (radius, radius, 1))], 0.0, (32, 32))
    far = np.hypot(*np.meshgrid(k, k, indexing="ij"))
    with np.errstate(invalid="ignore"):
        expected = 2 * radius * scipy.special.j1(2 * np.pi * radius * far) / far
    expected[16, 16] = 2 * np.pi * radius**2  # the integral
    np.testing.assert_allclose(found.numpy(), expected * 32 / 4, atol=1e-10)


@pytest.mark.parametrize(
    "ellipsoid",
    [
        Ellipsoid(1.0, (0, 0, 0), (0.6, 0.3, 1.0)),
        Ellipsoid(0.7, (0.2, -0.3, 0.1), (0.35, 0.15, 0.5), 0.4),
        Ellipsoid(-1.3, (-0.15, 0.25, -0.2), (0.1, 0.4, 0.9), -1.1),
    ],
)
@pytest.mark.parametrize("shape", [(32, 32), (24, 33)])
def test_kspace_is_the_integral_over_the_ellipse(ellipsoid: Ellipsoid, shape: tuple[int, int]) -> None:
    fine = rasterised((ellipsoid,), 0.15, (1200, 1200))
    y, x = (v.double().flatten() for v in grid((1200, 1200)))
    k_y, k_x = ((torch.arange(n) - n // 2).double() / 2 for n in shape)
    e_y, e_x = (torch.exp(-2j * math.pi * k[:, None] * v[None]) for k, v in ((k_y, y), (k_x, x)))
    integral = (e_y @ (fine + 0j) @ e_x.mT) * (2 / 1200) ** 2
    expected = integral * math.sqrt(shape[0] * shape[1]) / 4
    found = phantom_kspace([ellipsoid], 0.15, shape)
    assert float((found - expected).abs().max() / expected.abs().max()) < 2e-3


def test_a_plane_that_misses_an_ellipsoid_sees_nothing_of_it() -> None:
    ellipsoid = Ellipsoid(1.0, (0, 0, 0.2), (0.5, 0.5, 0.3))
    assert phantom_kspace([ellipsoid], 0.6, (16, 16)).abs().max() == 0
    middle, near = (phantom_kspace([ellipsoid], z, (16, 16))[8, 8].real for z in (0.2, 0.4))
    assert float(near / middle) == pytest.approx(1 - (0.2 / 0.3) ** 2)  # the section's area


@pytest.mark.parametrize("generator", [None, rng(1), rng(2)])
def test_the_head_is_a_positive_image_inside_the_field_of_view(generator: torch.Generator | None) -> None:
    head = head_phantom(generator)
    for z in (-0.3, 0.0, 0.3):
        image = rasterised(head, z, (240, 240))
        assert image.min() >= -1e-9  # where signals cancel, in the air
        assert image[torch.tensor([0, -1])].abs().max() < 1e-9
        assert image[:, torch.tensor([0, -1])].abs().max() < 1e-9
        assert 0.8 < image.max() < 1.4
        kspace = phantom_kspace(head, z, (240, 240))
        shown = ifft2c(kspace).real
        assert float((shown - image).norm() / image.norm()) < 0.15  # edges ring; the rest is the same
    smooth = torch.exp(-((grid((240, 240))[0] ** 2 + grid((240, 240))[1] ** 2) / 0.01))
    assert float(((kspace - fft2c(image + 0j)).abs() * smooth).norm() / (kspace.abs() * smooth).norm()) < 2e-2


def test_heads_differ_by_their_generator_only() -> None:
    assert head_phantom(rng(1)) == head_phantom(rng(1))
    assert head_phantom(rng(1)) != head_phantom(rng(2))
    plain, varied = head_phantom(), head_phantom(rng(3))
    ratios = [v.signal / p.signal for p, v in zip(plain, varied, strict=True)]
    assert all(0.849 < r < 1.151 for r in ratios)
    assert max(ratios) - min(ratios) > 0.2
    assert ratios[0] == pytest.approx(ratios[1])  # scalp and skull


def test_a_varied_head_is_turned_as_a_whole() -> None:
    plain, varied = head_phantom(), head_phantom(rng(3))
    turns = [v.angle - p.angle for p, v in zip(plain, varied, strict=True)]
    assert turns == pytest.approx([turns[0]] * len(turns))
    # from one lesion to the other: the direction, from x towards y, turns by the same angle
    before, after = (
        math.atan2(h[6].centre[0] - h[7].centre[0], h[6].centre[1] - h[7].centre[1]) for h in (plain, varied)
    )
    assert abs(turns[0]) > 0.01
    assert math.remainder(after - before - turns[0], 2 * math.pi) == pytest.approx(0, abs=1e-6)
