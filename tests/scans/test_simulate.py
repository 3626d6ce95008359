"""Simulated scans: coils, noise, sharpness and poses do what their docstrings say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mrgen.physics.fourier import centre_pad, fft2c, grid, ifft2c
from mrgen.physics.noise import covariance, whiten, whitening_matrix
from mrgen.scans import simulate
from mrgen.scans.prepare import noise_covariance, prepare_slice
from mrgen.scans.simulate import (
    MEASURED_SPECTRUM,
    head_mask,
    lower_resolution,
    match_sharpness,
    noise_factor,
    radial_power,
    receive_maps,
    resample,
    simulate_kspace,
    smooth_phase,
    uniform,
    vary_head,
)


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


def steepness(maps: Tensor) -> float:
    """Largest change between neighbouring pixels inside the head, relative to the coil's largest value there."""
    y, x = grid((maps.shape[-2], maps.shape[-1]))
    inside = y**2 + x**2 < 0.85**2
    largest = (maps.abs() * inside).amax((-2, -1), keepdim=True)
    step = (maps[:, 1:, 1:] - maps[:, :-1, 1:]).abs() + (maps[:, 1:, 1:] - maps[:, 1:, :-1]).abs()
    return float((step * inside[1:, 1:] / largest).max())


@pytest.mark.parametrize("seed", range(4))
def test_receive_maps_are_smooth_and_finite(seed: int) -> None:
    coarse, fine = (receive_maps((n, n), 8, rng(seed)) for n in (64, 256))
    assert torch.isfinite(torch.view_as_real(fine)).all()
    assert fine.dtype == torch.complex64
    assert fine.abs().amin((-2, -1)).max() >= 0
    assert steepness(fine) < 0.15
    # four times finer, four times smaller steps: there are no jumps, in the phase neither
    assert steepness(fine) == pytest.approx(steepness(coarse) / 4, rel=0.25)
    torch.testing.assert_close(fine[:, ::4, ::4], coarse)  # the field, not the matrix, says where coils are


def test_receive_maps_are_a_function_of_the_seed() -> None:
    maps = receive_maps((32, 24), 6, rng(1))
    assert maps.shape == (6, 32, 24)
    assert torch.equal(maps, receive_maps((32, 24), 6, rng(1)))
    other = receive_maps((32, 24), 6, rng(2))
    likeness = (maps.conj() * other).sum((-2, -1)).abs() / (maps.norm(dim=(-2, -1)) * other.norm(dim=(-2, -1)))
    assert likeness.max() < 0.99


def test_kspace_without_noise_is_the_forward_model_exactly() -> None:
    shape, coils, image = (48, 40), 4, head((48, 40))
    noisy, clean, scan = simulate_kspace(image, coils, 0.0, rng(3))
    assert torch.equal(noisy, clean)
    assert scan.abs().max() == 0
    g = rng(3)
    coil_images = receive_maps(shape, coils, g) * image * torch.exp(1j * smooth_phase(shape, g))
    rss = coil_images.abs().square().sum(0).sqrt()
    torch.testing.assert_close(clean, fft2c(coil_images / rss.flatten().quantile(0.99)))
    assert torch.equal(simulate_kspace(image, coils, 0.3, rng(3))[1], clean)
    found = ifft2c(clean).abs().square().sum(0).sqrt().flatten()
    assert float(found.quantile(0.99)) == pytest.approx(1, abs=1e-4)


def test_noise_has_its_std_and_the_covariance_of_the_noise_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    factors: list[Tensor] = []

    def spy(coils: int, generator: torch.Generator) -> Tensor:
        factors.append(noise_factor(coils, generator))
        return factors[-1]

    monkeypatch.setattr(simulate, "noise_factor", spy)
    noisy, clean, scan = simulate_kspace(head((256, 256)), 3, 0.02, rng(4))
    noise = (noisy - clean).flatten(1)
    true = 0.02**2 * factors[0] @ factors[0].mH
    loudness = true.diagonal().real.sqrt()
    unit = loudness[:, None] * loudness
    # standard errors of an entry: 0.4 % from the 65,536 samples of the image, 1.6 % from the 4,096 of the scan
    assert ((covariance(noise) - true).abs() / unit).max() < 0.015
    assert ((covariance(scan) - true).abs() / unit).max() < 0.06
    torch.testing.assert_close(scan.abs().square().mean(1).sqrt(), loudness, rtol=0.03, atol=0)
    assert (noise @ noise.mT / noise.shape[1] / unit).abs().max() < 0.02  # circular
    assert (true - torch.diag(true.diagonal())).abs().max() > 0.05 * 0.02**2  # and correlated

    monkeypatch.setattr(simulate, "noise_factor", lambda coils, generator: torch.eye(coils) + 0j)
    noisy, clean, _ = simulate_kspace(head((256, 256)), 3, 0.02, rng(4))
    assert float((noisy - clean).abs().square().mean().sqrt()) == pytest.approx(0.02, rel=0.01)


def test_gains_and_correlations_leave_the_noise_near_sigma() -> None:
    power = torch.stack([noise_factor(8, rng(s)).abs().square().sum(1) for s in range(200)])
    # gains 1 +- 0.2 and correlations of 0.3 add (1 + 0.2^2) (1 + 0.3^2) - 1 = 13 % to the power, 6 % to the std
    assert float(power.mean().sqrt()) == pytest.approx(1.065, abs=0.015)
    assert float(power.sqrt().min()) > 0.4


@pytest.mark.parametrize("seed", [0, 1])
def test_prepared_simulation_has_white_noise_of_sigma0_within_3_percent(seed: int) -> None:
    noisy, clean, _ = simulate_kspace(head((256, 224)), 6, 0.03, rng(seed))
    mask = torch.zeros(224)
    mask[::3] = 1
    mask[100:124] = 1
    prepared = prepare_slice(noisy, None, undersample=mask, keep_reference=False)
    whitener = whitening_matrix(noise_covariance(noisy, None)[0])
    scale = prepared.sigma0  # 1 / p: the factor from whitened to scaled k-space
    residual = (prepared.kspace - scale * whiten(clean, whitener) * mask)[..., mask.bool()].flatten(1)
    assert float(residual.abs().square().mean().sqrt()) == pytest.approx(prepared.sigma0, rel=0.03)
    white = covariance(residual) / prepared.sigma0**2
    # the corners give 4 x 16 x 14 samples: a standard error of 3.3 % for each entry
    assert (white - torch.eye(6)).abs().max() < 0.15


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


def test_match_sharpness_brings_a_smooth_image_near_measured_scans() -> None:
    smooth = blurred(head((240, 208)), 0.8)
    before, after = above_measured(smooth), above_measured(match_sharpness(smooth))
    assert before.min() < -15
    # the ring at 0.05 that both are relative to gains 1.7 dB or so itself, which shows as a constant offset
    assert after.abs().max() < 6
    assert (after - after.mean()).abs().max() < 2.5
    half = above_measured(match_sharpness(smooth, 0.5))
    assert before.min() < half.min() < after.min()
    torch.testing.assert_close(match_sharpness(smooth, 0.0), smooth, rtol=0, atol=1e-5)


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


def posed(image: Tensor, canvas: tuple[int, int], seed: int) -> Tensor:
    """The image in the pose that `vary_head` gives it."""
    g = rng(seed)
    shift = (uniform(-0.04, 0.04, g), uniform(-0.04, 0.04, g))
    return resample(image, canvas, uniform(-0.4, 0.4, g), uniform(0.85, 1.15, g), shift)


@pytest.mark.parametrize("seed", range(6))
def test_vary_head_is_a_function_of_the_seed_and_dark_outside_the_head(seed: int) -> None:
    image, canvas, matrix = blurred(head((96, 80)), 0.6), (120, 112), (96, 88)
    varied = vary_head(image, canvas, matrix, rng(seed))
    assert varied.shape == matrix
    assert torch.equal(varied, vary_head(image, canvas, matrix, rng(seed)))
    assert not torch.equal(varied, vary_head(image, canvas, matrix, rng(seed + 100)))
    assert torch.isfinite(varied).all()
    assert varied.min() >= 0
    support = head_mask(posed(image, canvas, seed))
    outside = functional.interpolate(support[None, None], matrix, mode="bilinear")[0, 0] == 0
    outside = -functional.max_pool2d(-outside.float()[None, None], 9, 1, 4)[0, 0] > 0  # 4 pixels and more away
    level = float(varied.flatten().quantile(0.99))
    # cropping k-space rings, so "0" means dark: the scans' own noise is 0.4 to 4 % of that level
    assert float(varied[outside].square().mean().sqrt()) < 0.01 * level
    corners = torch.cat([varied[:6, :5], varied[:6, -5:], varied[-6:, :5], varied[-6:, -5:]])
    assert float(corners.square().mean().sqrt()) < 0.001 * level  # where noise is estimated


def centroid(image: Tensor) -> tuple[float, float]:
    """(y, x) in pixels from N // 2."""
    y, x = (torch.arange(n) - n // 2 for n in image.shape)
    return float((image * y[:, None]).sum() / image.sum()), float((image * x).sum() / image.sum())


def test_resample_without_a_move_is_the_padded_image() -> None:
    """Measured: 3.7 % relative error, all of it a shift by a quarter pixel (0.15 % against the image so shifted)."""
    image = blurred(head((96, 80)), 0.5)
    same, expected = resample(image, (112, 96), 0.0, 1.0, (0.0, 0.0)), centre_pad(image, (112, 96))
    assert float((same - expected).norm() / expected.norm()) < 0.05
    assert centroid(same) == pytest.approx(centroid(expected), abs=0.3)
    y, x = grid((112, 96))
    shifted = ifft2c(fft2c(expected + 0j) * torch.exp(0.25j * math.pi * (y + x))).real
    assert float((same - shifted).norm() / expected.norm()) < 0.003


@pytest.mark.parametrize(
    ("angle", "zoom", "shift", "place"),
    [
        (math.pi / 2, 1.0, (0.0, 0.0), (-6.5, -18.5)),
        (-math.pi / 2, 1.0, (0.0, 0.0), (6.5, 18.5)),
        (math.pi, 1.0, (0.0, 0.0), (18.5, -6.5)),
        (0.0, 1.2, (0.0, 0.0), (-22.2, 7.8)),
        (0.0, 1.0, (0.05, -0.1), (-22.9, 12.9)),  # a positive shift moves the object to smaller indices
    ],
)
@pytest.mark.parametrize("width", [64, 80])  # of the canvas, 64 high: angles hold for any aspect
def test_resample_puts_a_marker_where_it_belongs(
    angle: float, zoom: float, shift: tuple[float, float], place: tuple[float, float], width: int
) -> None:
    marker = torch.zeros(64, 64)
    marker[12:16, 37:41] = 1  # (y, x) = (-18.5, 6.5) from the middle
    moved = resample(blurred(marker, 0.5), (64, width), angle, zoom, (shift[0], shift[1] * 64 / width))
    assert centroid(moved) == pytest.approx(place, abs=1.0)  # 0.75 measured: rotation is about N / 2 - 1 / 2
    assert float(moved.sum() / blurred(marker, 0.5).sum()) == pytest.approx(zoom**2, rel=0.1)
