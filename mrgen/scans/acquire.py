"""A volume goes through a simulated scanner: slices become raw k-space as `mrgen.scans.simulate` says, scanned at once.

The image lives on a grid at least as fine as the scan's; coils and phase act there, and the scan sees the centre of its
k-space, so that it is not a discrete transform of its own pixels. All slices share coils, phase and noise covariance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import centre_crop, centre_pad, fft2c, ifft2c
from mrgen.scans.heads import fade, head_mask, vary_head
from mrgen.scans.phantom import head_phantom, phantom_kspace
from mrgen.scans.simulate import ARRAYS, Maps, noise_factor, smooth_phase

PHANTOM_SLICES, _PHANTOM_SPACING, _PHANTOM_FOV = 10, 8.0, 240.0  # number, mm, mm
_SMALLEST = 16  # pixels
_TISSUE = 0.1  # of the brightest: what is above is tissue, below is air, bone and Gibbs ringing


@dataclass(frozen=True)
class Volume:
    """Slices (slice, y, x), float32; the brightest tissue is near 1."""

    images: Tensor
    fov: tuple[float, float]  # of a slice, y and x, mm
    thickness: float  # mm
    heights: tuple[float, ...]  # of the slices above the isocentre, mm

    def height_in_fields(self, height: float) -> float:
        """A height in half-fields of view, the unit of the coils."""
        return 2 * height / self.fov[0]

    def select(self, chosen: range) -> Volume:
        """Only these slices, where they are."""
        part = slice(chosen.start, chosen.stop)
        return replace(self, images=self.images[part], heights=self.heights[part])


def _heights(count: int, spacing: float) -> tuple[float, ...]:
    return tuple((i - (count - 1) / 2) * spacing for i in range(count))


def magnitude_volume(array: NDArray[np.float32], voxel: tuple[float, float, float]) -> Volume:
    """The volume of magnitude images (slice, y, x), with voxels of this size along these axes, mm.

    Intensities are divided by their 99.9th percentile, and set to 0 outside the body: the noise floor of a magnitude
    image would become a signal that every coil sees. Raises MrgenError for arrays that are no magnitude images.
    """
    if array.ndim != 3 or min(array.shape[1:]) < _SMALLEST:
        raise MrgenError(f"an array of shape {array.shape}, expected slices of at least {_SMALLEST} x {_SMALLEST}")
    if not np.isfinite(array).all():
        raise MrgenError("NaN or infinity among the pixels, expected finite numbers: repair the images")
    low, high = float(array.min()), float(array.max())
    if high <= 0 or low < -0.05 * high:
        raise MrgenError(f"pixels from {low:g} to {high:g}, expected magnitudes: not empty, not phase, not CT")
    images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).clamp_min(0)
    bright, brightest = (float(v) for v in np.quantile(images.numpy(), (0.99, 0.999)))
    images, level = images / (brightest or high), max(bright / (brightest or high), 0.2)
    count, n_y, n_x = images.shape
    body = torch.stack([i * fade(head_mask(i, level=level), (n_y, n_x)) for i in images])
    return Volume(body, (n_y * voxel[1], n_x * voxel[2]), voxel[0], _heights(count, voxel[0]))


def phantom_volume(matrix: tuple[int, int], chosen: range, generator: torch.Generator | None = None) -> Volume:
    """Slices of `head_phantom`, those `chosen` of its PHANTOM_SLICES, on a grid twice as fine as `matrix`.

    They are made from the exact k-space out to twice that of `matrix`: what a scan sees of it is exact as well.
    """
    shape = 2 * matrix[0], 2 * matrix[1]
    head = head_phantom(generator)
    heights = _heights(PHANTOM_SLICES, _PHANTOM_SPACING)[chosen.start : chosen.stop]
    images = [ifft2c(phantom_kspace(head, h / (_PHANTOM_FOV / 2), shape)).real.float() for h in heights]
    return Volume(torch.stack(images), (_PHANTOM_FOV, _PHANTOM_FOV), _PHANTOM_SPACING, heights)


def varied_volume(volume: Volume, matrix: tuple[int, int], generator: torch.Generator) -> Volume:
    """The volume as another head (`vary_head`) at the resolution `matrix`, all slices in the same way."""
    state, images = generator.get_state(), []
    for image in volume.images:
        generator.set_state(state)
        varied = vary_head(image, (image.shape[0], image.shape[1]), matrix, generator) if image.any() else None
        images.append(torch.zeros(matrix) if varied is None else varied)
    return replace(volume, images=torch.stack(images))


def encode(coil_images: Tensor, matrix: tuple[int, int], oversampling: int = 1) -> Tensor:
    """k-space (coil, oversampling * y, x) at the resolution `matrix` (y, x) of coil images on a grid at least as fine.

    Images keep their values: `ifft2c` of the k-space, cropped to `matrix`, is the image at its resolution. With
    oversampling the field of view along y, the readout, is so many times as large, with nothing in its outer part.
    """
    n_y, n_x = coil_images.shape[-2:]
    kspace = fft2c(centre_pad(coil_images, (oversampling * n_y, n_x)))
    scale = math.sqrt(matrix[0] * matrix[1] / (n_y * n_x))
    return centre_crop(kspace, (oversampling * matrix[0], matrix[1])) * scale


def tissue_signal(volume: Volume, maps: Maps) -> float:
    """Mean over the volume's tissue of the noise-free root of the sum of squares over the coils.

    Raises MrgenError where there is no tissue.
    """
    total, pixels = 0.0, 0
    for image, height in zip(volume.images, volume.heights, strict=True):
        rss = image * maps((image.shape[0], image.shape[1]), volume.height_in_fields(height)).norm(dim=0)
        tissue = image > _TISSUE
        total, pixels = total + float(rss[tissue].sum()), pixels + int(tissue.sum())
    if pixels == 0:
        raise MrgenError("nothing but background in these slices: choose others")
    return total / pixels


@dataclass(frozen=True)
class Scanner:
    """How a volume is scanned."""

    matrix: tuple[int, int]  # of the image, y (readout) and x (phase)
    oversampling: int  # of the readout
    snr: float  # mean tissue signal over the noise std of an average coil
    phase: float  # strength of the smooth phase, rad
    coils: int
    array: str  # a name in ARRAYS
    correlation: float  # of the noise between coils, about
    measured: tuple[Maps, Tensor] | None = None  # maps and noise factor instead of the last three, `measured_coils`

    def acquire(self, volume: Volume, generator: torch.Generator) -> tuple[Iterator[Tensor], Tensor]:
        """Fully sampled k-space (coil, oversampling * ky, kx), complex64, of each slice, and its noise covariance.

        Scaled so that the mean tissue signal (`tissue_signal`) is 1. The noise is L w / snr with w white of std 1
        (total complex), and L L^H has a mean of 1 over its diagonal: 1 / snr is the noise std of an average coil, in
        k-space as in its image. Raises MrgenError where the volume holds no tissue.
        """
        maps: Maps
        if self.measured:
            maps, factor = self.measured
        else:
            maps = ARRAYS[self.array](self.coils, generator).maps
            factor = noise_factor(self.coils, generator, self.correlation)
        shape = volume.images.shape[1], volume.images.shape[2]
        turned = torch.exp(1j * smooth_phase(shape, generator, self.phase)) / tissue_signal(volume, maps)

        def kspace() -> Iterator[Tensor]:
            for image, height in zip(volume.images, volume.heights, strict=True):
                seen = maps(shape, volume.height_in_fields(height)) * (image * turned)
                clean = encode(seen, self.matrix, self.oversampling)
                white = torch.randn(clean.shape, dtype=torch.complex64, generator=generator)
                yield clean + torch.einsum("dc,cyx->dyx", factor, white) / self.snr

        return kspace(), factor @ factor.mH / self.snr**2
