"""A volume through the simulated scanner: exact k-space, units, noise, oversampling, and varied heads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop, fft2c, grid, ifft2c
from mrgen.physics.noise import covariance
from mrgen.scans.acquire import (
    Scanner,
    Volume,
    encode,
    magnitude_volume,
    phantom_volume,
    tissue_signal,
    varied_volume,
)
from mrgen.scans.phantom import head_phantom, phantom_kspace
from mrgen.scans.simulate import ARRAYS, helmet, ring

SCANNER = Scanner(
    matrix=(48, 40), oversampling=1, snr=25.0, phase=1.0, coils=5, array="ring", correlation=0.3, measured=None
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(shape: tuple[int, int], z: float) -> Tensor:
    return torch.ones(1, *shape, dtype=torch.complex64)


@pytest.mark.parametrize("matrix", [(64, 48), (63, 49)])
@pytest.mark.parametrize("oversampling", [1, 2])
def test_a_uniform_coil_sees_the_exact_kspace_of_the_phantom(matrix: tuple[int, int], oversampling: int) -> None:
    volume = phantom_volume(matrix, range(4, 5))
    found = encode(volume.images[0][None], matrix, oversampling)[0]
    exact = phantom_kspace(head_phantom(), volume.heights[0] / 120, matrix)
    if oversampling == 2:  # twice the field of view: k-space is sampled twice as densely
        found = found[matrix[0] % 2 :: 2] * math.sqrt(2)
    inner = matrix[0] - 2, matrix[1] - 2  # without the Nyquist lines, which a real image has to split
    error = centre_crop(found, inner) - centre_crop(exact, inner)
    assert float(error.abs().max() / exact.abs().max()) < 1e-5


def shifted_kspace(matrix: tuple[int, int], a: float, b: float, z: float) -> Tensor:
    """Exact k-space at (k_y - a, k_x - b): the ellipses' transform summed anew, with scipy's Bessel function."""
    from scipy.special import j1

    k_y = ((torch.arange(matrix[0]) - matrix[0] // 2).double() - a)[:, None] / 2
    k_x = ((torch.arange(matrix[1]) - matrix[1] // 2).double() - b)[None] / 2
    total = torch.zeros(matrix, dtype=torch.complex128)
    for e in head_phantom():
        part = math.sqrt(max(0.0, 1 - ((z - e.centre[2]) / e.axes[2]) ** 2))
        c, s = math.cos(e.angle), math.sin(e.angle)
        far = torch.hypot(part * e.axes[0] * (c * k_y - s * k_x), part * e.axes[1] * (s * k_y + c * k_x)).clamp_min(
            1e-9
        )
        disc = part**2 * e.axes[0] * e.axes[1] * torch.from_numpy(j1(2 * math.pi * far.numpy())) / far
        total += e.signal * disc * torch.exp(-2j * math.pi * (k_y * e.centre[0] + k_x * e.centre[1]))
    return total * math.sqrt(matrix[0] * matrix[1]) / 4


@pytest.mark.parametrize(("a", "b"), [(0.5, 1.0), (-0.3, 0.7)])
def test_a_coil_with_a_linear_phase_sees_the_exact_kspace_between_the_samples(a: float, b: float) -> None:
    """A phase of exp(i pi (a y + b x)) moves k-space by (a, b) samples."""
    matrix, volume = (64, 48), phantom_volume((64, 48), range(4, 5))
    y, x = grid((128, 96))
    found = encode((volume.images[0] * torch.exp(1j * math.pi * (a * y + b * x)))[None], matrix)[0]
    between = shifted_kspace(matrix, a, b, volume.heights[0] / 120)
    assert float((found - between).norm() / between.norm()) < 2e-3
    # an image of the scan's own resolution would be off by far more: its edges have aliased
    coarse = ifft2c(phantom_kspace(head_phantom(), volume.heights[0] / 120, matrix))
    y, x = grid(matrix)
    crime = fft2c(coarse * torch.exp(1j * math.pi * (a * y + b * x)))
    assert float((crime - between).norm() / between.norm()) > 5 * float((found - between).norm() / between.norm())


@pytest.mark.parametrize("oversampling", [1, 2, 3])
@pytest.mark.parametrize("matrix", [(32, 24), (31, 24), (24, 17)])
def test_encoded_images_keep_their_values_and_place(matrix: tuple[int, int], oversampling: int) -> None:
    y, x = grid((64, 48))
    fine = torch.exp(-((y - 0.1) ** 2 + (x + 0.2) ** 2) / 0.05) + 0j
    kspace = encode(fine[None], matrix, oversampling)
    assert kspace.shape == (1, oversampling * matrix[0], matrix[1])
    image = ifft2c(kspace)[0]
    y, x = (torch.arange(n) - n // 2 for n in matrix)
    expected = torch.exp(-((2 * y[:, None] / matrix[0] - 0.1) ** 2 + (2 * x / matrix[1] + 0.2) ** 2) / 0.05)
    torch.testing.assert_close(centre_crop(image, matrix), expected + 0j, atol=2e-3, rtol=0)
    assert float(image.norm() / centre_crop(image, matrix).norm()) == pytest.approx(1, abs=1e-4)  # nothing outside


def test_tissue_has_a_mean_of_1_and_noise_a_std_of_1_over_snr() -> None:
    volume = phantom_volume((48, 40), range(3, 7))
    scanner = replace(SCANNER, oversampling=2)
    noisy, cov = scanner.acquire(volume, rng(1))
    clean, _ = replace(scanner, snr=1e9).acquire(volume, rng(1))
    signal, tissue, noise = [], [], []
    for image, one, other in zip(volume.images, noisy, clean, strict=True):
        assert one.dtype == torch.complex64
        assert one.shape == (5, 96, 40)
        noise.append((one - other).flatten(1))
        rss = centre_crop(ifft2c(other), (48, 40)).norm(dim=0)
        coarse = centre_crop(fft2c(image + 0j), (48, 40))
        tissue.append(ifft2c(coarse).real / 2 > 0.1)
        signal.append(rss)
    assert float(torch.stack(signal)[torch.stack(tissue)].mean()) == pytest.approx(1, rel=0.03)
    samples = torch.cat(noise, dim=1)  # 15,360 of each coil
    assert float(samples.abs().square().mean().sqrt()) == pytest.approx(1 / 25, rel=0.01)
    assert float(cov.diagonal().real.mean()) == pytest.approx(1 / 25**2, rel=1e-5)
    whitener = torch.linalg.inv(torch.linalg.cholesky(cov))
    assert (whitener @ covariance(samples) @ whitener.mH - torch.eye(5)).abs().max() < 0.04
    assert (cov - torch.diag(cov.diagonal())).abs().max() * 25**2 > 0.05  # correlated
    uncorrelated = replace(scanner, correlation=0.0).acquire(volume, rng(1))[1]
    assert (uncorrelated - torch.diag(uncorrelated.diagonal())).abs().max() == 0


def test_a_scan_is_a_function_of_the_generator() -> None:
    volume = phantom_volume((48, 40), range(4, 6))
    one, same, other = (torch.stack(list(SCANNER.acquire(volume, rng(s))[0])) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_measured_coils_are_used_as_they_are() -> None:
    volume = phantom_volume((48, 40), range(4, 5))
    factor = torch.tensor([[1.0, 0], [0.5, 0.7]]) + 0j
    scanner = replace(
        SCANNER, measured=(lambda shape, z: torch.stack([flat(shape, z)[0], 2 * flat(shape, z)[0]]), factor)
    )
    kspace, cov = scanner.acquire(volume, rng())
    images = ifft2c(next(kspace)).abs()
    bright = images[0] > 0.3
    assert float((images[1] / images[0])[bright].median()) == pytest.approx(2, rel=0.02)
    torch.testing.assert_close(cov, factor @ factor.mH / 25**2)


def test_coils_are_asked_for_the_heights_of_the_slices() -> None:
    volume, asked = phantom_volume((48, 40), range(2, 4)), []

    def maps(shape: tuple[int, int], z: float) -> Tensor:
        asked.append(z)
        return flat(shape, z)

    list(replace(SCANNER, measured=(maps, torch.eye(1) + 0j)).acquire(volume, rng())[0])
    # slices 2 and 3 of 10, 8 mm apart, in fields of 240 mm; once for the signal, once for the scan
    assert asked == pytest.approx([-20 / 120, -12 / 120] * 2)


def test_no_phase_leaves_that_of_the_coils() -> None:
    volume = phantom_volume((48, 40), range(4, 5))
    coil = (flat, torch.eye(1) + 0j)
    still, turned = (
        ifft2c(next(replace(SCANNER, snr=1e9, phase=p, measured=coil).acquire(volume, rng(3))[0]))[0]
        for p in (0.0, 1.0)
    )
    bright = still.abs() > 0.3
    assert (still * still[24, 20].conj()).angle()[bright].abs().max() < 0.1  # one phase everywhere
    assert (turned * turned[24, 20].conj()).angle()[bright].abs().max() > 0.5


@pytest.mark.parametrize("array", ARRAYS)
def test_arrays_surround_the_head_without_touching_it(array: str) -> None:
    loops = ARRAYS[array](24, rng(5))
    assert loops.places.shape == (24, 3)
    assert loops.places.norm(dim=1).min() > 1.2
    assert loops.places.norm(dim=1).max() < 2.1
    inward = -(loops.places * loops.moments).sum(1) / loops.places.norm(dim=1)
    assert inward.median() > 0.9
    low, high = loops.maps((32, 32), -0.7).norm(dim=0), loops.maps((32, 32), 0.7).norm(dim=0)
    assert torch.isfinite(low).all()
    assert float(low[16, 16] / high[16, 16]) != pytest.approx(1, abs=0.01)  # heights count


def test_the_helmet_is_a_dome_and_the_ring_is_not() -> None:
    dome = helmet(40, rng(1)).places
    assert dome[:, 2].max() / dome.norm(dim=1).max() > 0.9
    assert dome[:, 2].min() / dome.norm(dim=1).max() == pytest.approx(-0.4, abs=0.05)
    assert dome.norm(dim=1).max() == pytest.approx(float(dome.norm(dim=1).min()), rel=1e-4)
    assert ring(40, rng(1)).places[:, 2].abs().max() <= 0.8


def test_magnitudes_are_scaled_and_cleared_of_their_noise_floor() -> None:
    y, x = grid((96, 80))
    body = ((y / 0.6) ** 2 + (x / 0.6) ** 2 < 1).float()
    floor = 0.02 * torch.rand(3, 96, 80, generator=rng())
    array = (700 * (body * torch.tensor([1.0, 0.5, 0.0])[:, None, None] + floor)).numpy()
    volume = magnitude_volume(array, (3.0, 1.5, 2.0))
    assert volume.fov == (144.0, 160.0)
    assert volume.thickness == 3.0
    assert volume.heights == (-3.0, 0.0, 3.0)
    assert float(volume.images[0][body > 0].mean()) == pytest.approx(1, rel=0.02)
    assert float(volume.images[1][body > 0].mean()) == pytest.approx(0.5, rel=0.02)
    assert volume.images[:, :8].max() == 0  # the corners, where readers look for noise
    assert volume.images[2].max() == 0  # and a slice of air holds nothing
    part = volume.select(range(1, 3))
    assert part.heights == (0.0, 3.0)
    assert torch.equal(part.images, volume.images[1:])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 32, 32)), "not empty"),
        (np.linspace(-1, 1, 2048).reshape(2, 32, 32), "not phase"),
        (np.full((2, 32, 32), np.nan), "NaN"),
        (np.ones((2, 32, 8)), "at least 16 x 16"),
        (np.ones((32, 32)), "at least 16 x 16"),
    ],
)
def test_what_is_no_magnitude_volume_is_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(MrgenError, match=message):
        magnitude_volume(array.astype(np.float32), (1, 1, 1))


def test_slices_of_air_alone_are_refused() -> None:
    volume = Volume(torch.zeros(2, 32, 32), (240, 240), 5, (0, 5))
    with pytest.raises(MrgenError, match="nothing but background"):
        tissue_signal(volume, flat)


def test_slices_of_a_varied_volume_share_their_pose() -> None:
    y, x = grid((96, 96))
    body = ((y / 0.7) ** 2 + (x / 0.5) ** 2 < 1).float()
    volume = Volume(torch.stack([body, 0.5 * body, 0 * body]), (192, 192), 5, (-5, 0, 5))
    varied = varied_volume(volume, (64, 64), rng(4))
    assert varied.images.shape == (3, 64, 64)
    assert varied.heights == volume.heights
    first, second = (i > 0.3 * i.max() for i in varied.images[:2])
    assert float((first != second).float().mean()) < 0.01
    assert not torch.equal(varied.images, varied_volume(volume, (64, 64), rng(5)).images)
    assert varied.images[2].max() == 0
