"""Varied heads: sharpness and poses against closed forms, contrasts, and what lies outside the head."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mrgen.physics.fourier import centre_pad, fft2c, grid, ifft2c
from mrgen.scans.heads import (
    MEASURED_SPECTRUM,
    fade,
    head_mask,
    lower_resolution,
    match_sharpness,
    radial_power,
    resample,
    tone,
    vary_head,
)
from mrgen.scans.simulate import uniform

SLICES = Path(__file__).parents[2].parent / "shared/data/train/brain_t1_slices.npz"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(shape: tuple[int, int]) -> Tensor:
    """A few ellipses, the largest reaching 3/4 of the field of view."""
    y, x = grid(shape)
    image = 0.4 * ((y / 0.75) ** 2 + (x / 0.7) ** 2 < 1).float()
    image += 0.4 * (((y + 0.2) / 0.2) ** 2 + ((x - 0.1) / 0.3) ** 2 < 1)
    return image + 0.2 * (((y - 0.3) / 0.1) ** 2 + ((x + 0.2) / 0.15) ** 2 < 1)


def blurred(image: Tensor, width: float) -> Tensor:
    """The image through a Gaussian window that falls to 1/e at `width` of Nyquist."""
    y, x = grid((image.shape[-2], image.shape[-1]))
    return ifft2c(torch.exp(-(y**2 + x**2) / width**2) * fft2c(image + 0j)).real.clamp_min(0)


def above_measured(image: Tensor) -> Tensor:
    """Radial spectrum relative to 0.05 of Nyquist, above that of measured heads, dB, at 0.1, 0.2, ... 1.0."""
    power = radial_power(image)
    return 10 * torch.log10(power / power[1])[2::2] - torch.tensor(MEASURED_SPECTRUM)


def test_radial_power_knows_a_power_law_and_parseval() -> None:
    g = rng(5)
    y, x = grid((128, 96))
    shape = 1 / (0.02 + y**2 + x**2)
    image = ifft2c(shape * torch.exp(2j * math.pi * torch.rand(128, 96, generator=g)))
    radius = torch.arange(21) / 20
    expected = 1 / (0.02 + radius**2) ** 2
    torch.testing.assert_close(radial_power(image)[2:], expected[2:], rtol=0.2, atol=0)
    torch.testing.assert_close(radial_power(torch.randn(128, 96, generator=g)), torch.ones(21), rtol=0, atol=0.6)


def test_match_sharpness_reaches_the_measured_spectrum() -> None:
    smooth = blurred(head((240, 208)), 0.8)
    before, after = above_measured(smooth), above_measured(match_sharpness(smooth))
    assert before.min() < -15
    free = before.abs() < 11  # a gain of 4 is 12 dB
    assert free.sum() == 5  # up to 0.5 of Nyquist
    assert after[free].abs().max() < 1
    assert (after - before)[before < -14].max() < 13  # and where it does not suffice, it stays near 12 dB
    half = above_measured(match_sharpness(smooth, 0.5))
    torch.testing.assert_close(half[free], before[free] / 2, rtol=0, atol=0.7)
    torch.testing.assert_close(match_sharpness(smooth, 0.0), smooth, rtol=0, atol=1e-5)


@pytest.mark.skipif(not SLICES.is_file(), reason="no brain_t1_slices.npz in the data folder beside the repository")
@pytest.mark.parametrize(("number", "matrix"), [(100, (240, 208)), (250, (208, 176)), (30, (144, 128))])
def test_real_slices_reach_the_measured_spectrum(number: int, matrix: tuple[int, int]) -> None:
    with np.load(SLICES, allow_pickle=False) as data:
        image = resample(torch.tensor(data["slices"][number]).float() / 255, (240, 208), 0.2, 1.0, (0.0, 0.0))
    inside = head_mask(image)
    low = lower_resolution(image * inside, matrix)
    sharp = match_sharpness(low)
    assert above_measured(low).abs().max() > 6  # as a template, it is far from a measured scan
    assert above_measured(sharp).abs().max() < 0.5
    assert above_measured(sharp * fade(inside, matrix)).abs().max() < 0.7


def test_match_sharpness_stays_within_its_limits() -> None:
    # far too smooth: more than 12 dB would only blow up what is not there; the pedestal keeps it from being clipped
    smooth = blurred(head((240, 208)), 0.35) + 1
    gain = (radial_power(match_sharpness(smooth)) / radial_power(smooth)).sqrt()
    assert gain[10:13].tolist() == pytest.approx([4, 4, 4], rel=0.05)  # beyond, there is only rounding
    assert float(gain[0]) == pytest.approx(1, abs=0.1)
    flat = match_sharpness(torch.rand(64, 64, generator=rng()) + 2)  # white is too sharp: down by 3 dB at most
    noise = flat - flat.mean()
    assert float(noise.std()) == pytest.approx(0.7 * 12**-0.5, rel=0.1)


@pytest.mark.parametrize("shape", [(64, 48), (63, 49), (96, 80)])
def test_lower_resolution_keeps_intensity_and_field_of_view(shape: tuple[int, int]) -> None:
    image = blurred(head((96, 80)), 0.3)
    low = lower_resolution(image, shape)
    assert low.shape == shape
    assert float(low.mean()) == pytest.approx(float(image.mean()), rel=2e-3)
    for axis, (n, m) in enumerate(zip((96, 80), shape, strict=True)):
        # the centre of mass, in fractions of the field, from its middle
        fine = (image.sum(1 - axis) * (torch.arange(n) - n // 2) / n).sum() / image.sum()
        coarse = (low.sum(1 - axis) * (torch.arange(m) - m // 2) / m).sum() / low.sum()
        assert float(coarse) == pytest.approx(float(fine), abs=1e-3)
    if shape == (96, 80):
        torch.testing.assert_close(low, image, rtol=0, atol=1e-5)


def test_head_mask_fills_the_inside() -> None:
    image = torch.zeros(96, 80)
    y, x = grid((96, 80))
    radius = (y / 0.7) ** 2 + (x / 0.7) ** 2
    image[(radius < 1) & (radius > 0.72)] = 1.0  # scalp
    image[radius < 0.55] = 0.5  # brain; a dark skull of 3 pixels between
    image[48:54, 36:42] = 0  # a ventricle
    image[5, 5] = 1.0  # a speck
    mask = head_mask(image)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[radius < 0.95].min() == 1
    assert mask[radius > 1.1].max() == 0


def distance_outside(mask: Tensor) -> Tensor:
    """Chebyshev distance (y, x) in pixels to the nearest 1 of `mask`, up to 12."""
    return sum(1 - functional.max_pool2d(mask[None, None], 2 * r + 1, 1, r)[0, 0] for r in range(12))


def test_fade_is_1_on_the_head_and_0_farther_than_7_pixels() -> None:
    y, x = grid((96, 80))
    inside = ((y / 0.7) ** 2 + (x / 0.7) ** 2 < 1).float()
    window, away = fade(inside, (96, 80)), distance_outside(inside)
    assert window[away <= 1].min() == 1
    assert window[away > 7].max() == 0
    assert ((window > 0) & (window < 1)).any()
    step = torch.maximum(window.diff(dim=0).abs().max(), window.diff(dim=1).abs().max())
    assert step < 0.4  # over at least 3 pixels: no edge, whatever rings there
    coarse = fade(inside, (48, 40))
    near = functional.max_pool2d(inside[None, None], 2)[0, 0]  # pixels of the coarse matrix that hold some head
    assert coarse[near == 1].min() == 1
    assert coarse[distance_outside(near) > 7].max() == 0


def posed(image: Tensor, canvas: tuple[int, int], seed: int) -> Tensor:
    """The image in the pose that `vary_head` gives it."""
    g = rng(seed)
    shift = (uniform(-0.04, 0.04, g), uniform(-0.04, 0.04, g))
    return resample(image, canvas, uniform(-0.4, 0.4, g), uniform(0.9, 1.25, g), shift)


@pytest.mark.parametrize("seed", range(6))
def test_vary_head_is_a_function_of_the_seed_and_0_outside_the_head(seed: int) -> None:
    image, canvas, matrix = blurred(head((96, 80)), 0.6), (120, 112), (96, 88)
    varied = vary_head(image, canvas, matrix, rng(seed))
    assert varied.shape == matrix
    assert torch.equal(varied, vary_head(image, canvas, matrix, rng(seed)))
    assert not torch.equal(varied, vary_head(image, canvas, matrix, rng(seed + 100)))
    assert torch.isfinite(varied).all()
    assert varied.min() >= 0
    support = functional.interpolate(head_mask(posed(image, canvas, seed))[None, None], matrix, mode="bilinear")[0, 0]
    away = distance_outside((support > 0).float())
    level = float(varied.flatten().quantile(0.99))
    assert varied[away > 8].max() == 0  # 7, and 1 for this mask's own interpolation
    # nor does it end in an edge: where it fades, steps are far below those of the head
    steps = torch.maximum(varied.diff(dim=0)[:, 1:].abs(), varied.diff(dim=1)[1:].abs())
    assert steps[away[1:, 1:] > 2].max() < 0.2 * steps.max()
    assert varied[support == 1].square().mean().sqrt() > 0.3 * level


def test_tone_keeps_the_background_black_and_flattens_tissue() -> None:
    image, spreads = torch.linspace(0, 1, 401), []
    for seed in range(40):
        toned = tone(image, rng(seed))
        assert toned[0].abs() < 1e-6
        assert toned.min() > -1e-6
        assert toned.max() <= 1 + 1e-6
        assert toned.diff().abs().max() < 0.12  # continuous; a root is steep at 0
        spreads.append(float(toned[40:].std()))
    assert min(spreads) < 0.5 * max(spreads)


def turned(image: Tensor, shape: tuple[int, int], angle: float, zoom: float, shift: tuple[float, float]) -> Tensor:
    """Fourier series of the padded image, summed at R(angle) r / zoom + shift for every pixel r: no grid in between."""
    kspace = fft2c(centre_pad(image, shape).double() + 0j) / math.sqrt(shape[0] * shape[1])
    y, x = (torch.arange(n, dtype=torch.float64) - n // 2 for n in shape)
    c, s = math.cos(angle) / zoom, math.sin(angle) / zoom
    v = c * y[:, None] + s * x + shift[0] * shape[0]
    u = c * x - s * y[:, None] + shift[1] * shape[1]
    e_y = torch.exp(2j * math.pi * v.flatten()[:, None] * y / shape[0])
    e_x = torch.exp(2j * math.pi * u.flatten()[:, None] * x / shape[1])
    return ((e_y @ kspace) * e_x).sum(1).real.reshape(shape).float()


@pytest.mark.parametrize("shape", [(96, 80), (112, 96), (113, 97)])
def test_resample_without_a_move_is_the_padded_image(shape: tuple[int, int]) -> None:
    image = torch.rand(96, 80, generator=rng(1))  # white: what holds here holds for any image
    torch.testing.assert_close(
        resample(image, shape, 0.0, 1.0, (0.0, 0.0)), centre_pad(image, shape), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("shape", [(96, 80), (80, 80), (97, 91)])
@pytest.mark.parametrize(
    ("angle", "zoom", "shift"),
    [
        (0.3, 1.0, (0.0, 0.0)),
        (math.pi / 2, 1.0, (0.0, 0.0)),
        (0.0, 1.2, (0.0, 0.0)),
        (0.0, 1.0, (0.013, -0.031)),
        (-0.4, 0.9, (0.02, 0.04)),
    ],
)
def test_resample_is_the_fourier_series_of_the_image(
    shape: tuple[int, int], angle: float, zoom: float, shift: tuple[float, float]
) -> None:
    """Measured: 0.1 to 0.4 % of bicubic error; a shift by a twentieth of a pixel would already be 0.7 %."""
    y, x = grid((64, 64))
    blobs = torch.exp(-((y - 0.2) ** 2 + (x + 0.1) ** 2) / 0.01) + torch.exp(-((y + 0.3) ** 2 + x**2) / 0.02)
    image = blobs + 0.5 * torch.exp(-((y / 0.4) ** 2 + ((x - 0.1) / 0.3) ** 2))
    moved, expected = resample(image, shape, angle, zoom, shift), turned(image, shape, angle, zoom, shift)
    assert float((moved - expected).norm() / expected.norm()) < 0.005


def test_resample_turns_about_pixel_n_over_2_and_moves_by_whole_pixels() -> None:
    image = torch.zeros(64, 80)
    image[20, 50] = 1  # (-12, 10) from the centre
    for moved, place in (
        (resample(image, (80, 80), math.pi / 2, 1.0, (0.0, 0.0)), (40 - 10, 40 - 12)),
        (resample(image, (80, 80), math.pi, 1.0, (0.0, 0.0)), (40 + 12, 40 - 10)),
        (resample(image, (64, 80), 0.0, 1.0, (3 / 64, -5 / 80)), (20 - 3, 50 + 5)),
    ):
        expected = torch.zeros_like(moved)
        expected[place] = 1
        torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
    assert float(resample(blurred(image, 0.3), (64, 80), 0.0, 1.2, (0.0, 0.0)).sum()) == pytest.approx(1.44, rel=0.02)
