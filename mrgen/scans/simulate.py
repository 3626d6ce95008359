"""Simulated k-space: an image is seen by coils, with a smooth phase and noise that is correlated between coils.

    k_c = F (s_c x exp(i phi)) + n_c,     n ~ CN(0, C) across coils

The receive sensitivity s_c is that of a small loop, a magnetic dipole m at p outside the head, with d the unit vector
from p to r:  B(r) = (3 (m.d) d - m) / |r - p|^3.  The receiver sees B_1 - i B_2 in the plane across the main field, so
magnitude and phase are those of one field. Lengths are in half-fields of view, from the isocentre.
Every function takes a torch.Generator on the CPU and returns float32 or complex64 on the device of its image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mrgen.physics.fourier import fft2c, grid

LEAST_BRIGHT = 0.02  # of an image's maximum
Maps = Callable[[tuple[int, int], float], Tensor]  # shape (y, x) and height z to sensitivities (coil, y, x), complex64


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One draw from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


@dataclass(frozen=True)
class Loops:
    """Places and moments (coil, 3), axes y, x, z, and two unit vectors (3,) across the main field."""

    places: Tensor
    moments: Tensor
    across: tuple[Tensor, Tensor]

    def maps(self, shape: tuple[int, int], z: float = 0.0) -> Tensor:
        """Sensitivities (coil, y, x) in the plane at height `z`, complex64, not normalised."""
        y, x = grid(shape)
        maps = []
        for place, moment in zip(self.places, self.moments, strict=True):
            offset = torch.stack([v.expand(shape) for v in (y - place[0], x - place[1], z - place[2])], dim=-1)
            distance = offset.norm(dim=-1, keepdim=True).clamp_min(0.2)
            unit = offset / distance  # (y, x, 3)
            field = (3 * (unit @ moment)[..., None] * unit - moment) / distance**3
            maps.append(torch.complex(field @ self.across[0], -(field @ self.across[1])))
        return torch.stack(maps)


def _main_field(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two unit vectors across a main field that points anywhere, so the array serves any slice orientation."""
    field = functional.normalize(torch.randn(3, generator=generator), dim=0)
    across = functional.normalize(torch.linalg.cross(field, torch.randn(3, generator=generator)), dim=0)
    return across, torch.linalg.cross(field, across)


def _aimed(place: list[float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A loop's place, and its moment: towards the middle, but for about 10 degrees."""
    at = torch.tensor(place)
    return at, functional.normalize(-at + 0.2 * torch.randn(3, generator=generator), dim=0)


def ring(coils: int, generator: torch.Generator) -> Loops:
    """Loops at jittered angles on an ellipse with half-axes of 1.3 to 1.9, at heights between -0.8 and 0.8."""
    across = _main_field(generator)
    turn, a, b = uniform(0, 2 * math.pi, generator), uniform(1.3, 1.9, generator), uniform(1.3, 1.9, generator)
    loops = []
    for c in range(coils):
        angle = turn + 2 * math.pi * (c + uniform(-0.3, 0.3, generator)) / coils
        place = [a * math.sin(angle), b * math.cos(angle), uniform(-0.8, 0.8, generator)]
        loops.append(_aimed(place, generator))
    places, moments = (torch.stack(v) for v in zip(*loops, strict=True))
    return Loops(places, moments, across)


def helmet(coils: int, generator: torch.Generator) -> Loops:
    """Loops all over a dome: a golden spiral from 0.4 radii below the isocentre to the crown, jittered.

    The radius of 1.25 to 1.5 is a close fit; the dome opens towards -z.
    """
    across = _main_field(generator)
    turn, radius = uniform(0, 2 * math.pi, generator), uniform(1.25, 1.5, generator)
    loops = []
    for c in range(coils):
        height = -0.4 + 1.4 * (c + 0.5 + uniform(-0.2, 0.2, generator)) / coils
        angle = turn + c * math.pi * (3 - 5**0.5) + uniform(-0.1, 0.1, generator)
        across_axis = radius * (1 - height**2) ** 0.5
        place = [across_axis * math.sin(angle), across_axis * math.cos(angle), radius * height]
        loops.append(_aimed(place, generator))
    places, moments = (torch.stack(v) for v in zip(*loops, strict=True))
    return Loops(places, moments, across)


ARRAYS: dict[str, Callable[[int, torch.Generator], Loops]] = {"ring": ring, "helmet": helmet}


def receive_maps(shape: tuple[int, int], coils: int, generator: torch.Generator) -> Tensor:
    """Sensitivities (coil, y, x) in the middle of a random `ring`, complex64, not normalised."""
    return ring(coils, generator).maps(shape)


def smooth_phase(shape: tuple[int, int], generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """A smooth phase (y, x) in radians: low-order cosines of random direction, about `strength` rad each."""
    y, x = grid(shape)
    phase = torch.full(shape, uniform(0, 2 * math.pi, generator))
    for _ in range(6):
        k_y, k_x = (uniform(-1.5, 1.5, generator) for _ in range(2))
        shift = uniform(0, 2 * math.pi, generator)
        phase = phase + uniform(0, strength, generator) * torch.cos(math.pi * (k_y * y + k_x * x) + shift)
    return phase


def tissue_phase(image: Tensor, strength: float) -> Tensor:
    """A phase (y, x) in radians that follows the anatomy of a magnitude image, std `strength` inside the head.

    Susceptibility differs between tissues, so measured phase has detail where the magnitude has: here the image
    between 1.5 and 8 pixels (differences of two boxes), normalised.
    """
    fine, coarse = (
        functional.avg_pool2d(image[None, None], n, 1, n // 2, count_include_pad=False)[0, 0] for n in (3, 17)
    )
    inside = coarse > 0.1 * coarse.max()
    detail = (fine - coarse) * inside
    return strength * detail / detail[inside].std().clamp_min(1e-6)


def noise_factor(coils: int, generator: torch.Generator, correlation: float = 0.3) -> Tensor:
    """L (coil, coil) with L L^H = C: gains within about 20 % of each other and random correlations.

    The mean of C's diagonal, the noise variance of an average coil, is 1.
    """
    mixing: Tensor = torch.eye(coils, dtype=torch.complex64)
    mixing = mixing + correlation / coils**0.5 * torch.randn(coils, coils, dtype=torch.complex64, generator=generator)
    factor = (1 + 0.2 * torch.randn(coils, generator=generator)).clamp_min(0.5)[:, None] * mixing
    return factor / factor.abs().square().sum(1).mean().sqrt()


def simulate_kspace(
    image: Tensor, coils: int, sigma: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Fully sampled raw k-space (coil, ky, kx), its noise-free part, and a noise scan (coil, 4096).

    `image` is a magnitude (y, x). k-space is scaled so that the 99th percentile of its noise-free RSS image is 1;
    in these units `sigma` is the noise std (total complex): sigma^2 is the mean over coils of the noise variance,
    which differs between coils. The noise is correlated between coils as in the noise scan. Raises ValueError where
    there is no signal for `sigma` to relate to: for an image that is not finite, or bright in less than 1 % of it.
    """
    if not (torch.isfinite(image).all() and (image > LEAST_BRIGHT * image.max()).float().mean() > 0.01):
        raise ValueError("the image is empty or not finite, or nearly all of it is dark")
    shape = (image.shape[-2], image.shape[-1])
    maps = receive_maps(shape, coils, generator).to(image.device)
    phase = smooth_phase(shape, generator).to(image.device) + tissue_phase(image, uniform(-0.12, 0.12, generator))
    coil_images = maps * (image * torch.exp(1j * phase))
    rss = coil_images.abs().square().sum(0).sqrt()
    coil_images = coil_images / torch.quantile(rss.flatten(), 0.99)
    clean = fft2c(coil_images)
    factor = noise_factor(coils, generator).to(image.device)
    white = torch.randn(coils, shape[0] * shape[1] + 4096, dtype=torch.complex64, generator=generator)
    noise = sigma * factor @ white.to(image.device)
    return clean + noise[:, 4096:].reshape(coils, *shape), clean, noise[:, :4096]
