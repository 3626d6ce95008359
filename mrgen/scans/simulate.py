"""Simulated multi-coil scans: an image volume becomes raw k-space with coils, phase and correlated noise.

    k_c = F (s_c x exp(i phi)) + n_c,     n ~ CN(0, C) across coils

The receive sensitivity s_c is that of a small loop, a magnetic dipole m at p_c outside the head,
B(r) = (3 (m.d) d - m) / |r - p_c|^3 with d the unit vector from p_c to r, of which the receiver sees
B_1 - i B_2 in the plane across the main field. Its magnitude and its phase are then those of one field.
Every function takes a torch.Generator on the CPU and returns float32 or complex64 on the device of its image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mrgen.physics.fourier import centre_crop, centre_pad, fft2c, grid, ifft2c

# Radial power of measured heads relative to 0.05 of Nyquist, dB, at 0.1, 0.2, ... 1.0 of Nyquist: the mean of
# an 8-coil T1, a T2 and two sections of a 3-D T1 scan (docs/method.md).
MEASURED_SPECTRUM = (-4.9, -11.6, -17.5, -21.2, -24.2, -25.5, -28.3, -29.8, -31.8, -33.4)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One draw from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def receive_maps(shape: tuple[int, int], coils: int, generator: torch.Generator) -> Tensor:
    """Sensitivities (coil, y, x) of loops around the head, complex64, not normalised.

    Loops sit at jittered angles on an ellipse of 1.3 to 1.9 half-fields of view and at varied heights; the
    main field points anywhere, so the array serves any slice orientation.
    """
    y, x = grid(shape)
    field = functional.normalize(torch.randn(3, generator=generator), dim=0)
    across = functional.normalize(torch.linalg.cross(field, torch.randn(3, generator=generator)), dim=0)
    other = torch.linalg.cross(field, across)
    turn, a, b = uniform(0, 2 * math.pi, generator), uniform(1.3, 1.9, generator), uniform(1.3, 1.9, generator)
    maps = []
    for c in range(coils):
        angle = turn + 2 * math.pi * (c + uniform(-0.3, 0.3, generator)) / coils
        place = torch.tensor([a * math.sin(angle), b * math.cos(angle), uniform(-0.8, 0.8, generator)])
        aim = -place + 0.2 * torch.randn(3, generator=generator)
        moment = functional.normalize(aim, dim=0)
        offset = torch.stack([v.expand(shape) for v in (y - place[0], x - place[1], -place[2])], dim=-1)  # (y, x, 3)
        distance = offset.norm(dim=-1, keepdim=True).clamp_min(0.2)
        unit = offset / distance
        b_field = (3 * (unit @ moment)[..., None] * unit - moment) / distance**3
        maps.append(torch.complex(b_field @ across, -(b_field @ other)))
    return torch.stack(maps)


def smooth_phase(shape: tuple[int, int], generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """A smooth phase (y, x) in radians: low-order cosines of random direction, about `strength` rad each."""
    y, x = grid(shape)
    phase = torch.full(shape, uniform(0, 2 * math.pi, generator))
    for _ in range(6):
        k_y, k_x = (uniform(-1.5, 1.5, generator) for _ in range(2))
        shift = uniform(0, 2 * math.pi, generator)
        phase = phase + uniform(0, strength, generator) * torch.cos(math.pi * (k_y * y + k_x * x) + shift)
    return phase


def noise_factor(coils: int, generator: torch.Generator, correlation: float = 0.3) -> Tensor:
    """L (coil, coil) with L L^H = C: gains within about 20 % of each other and random correlations."""
    mixing: Tensor = torch.eye(coils, dtype=torch.complex64)
    mixing = mixing + correlation / coils**0.5 * torch.randn(coils, coils, dtype=torch.complex64, generator=generator)
    return (1 + 0.2 * torch.randn(coils, generator=generator)).clamp_min(0.5)[:, None] * mixing


def radial_power(image: Tensor, bins: int = 20) -> Tensor:
    """Mean k-space power of image (y, x) in `bins` + 1 rings of radius 0, 1/bins, ... 1 of Nyquist."""
    y, x = grid((image.shape[-2], image.shape[-1]))
    ring = ((y.square() + x.square()).sqrt() * bins).round().long().clamp_max(bins + 1).flatten().to(image.device)
    power = fft2c(image + 0j).abs().square().flatten()
    total = torch.zeros(bins + 2, device=image.device).index_add(0, ring, power)
    count = torch.zeros(bins + 2, device=image.device).index_add(0, ring, torch.ones_like(power))
    return (total / count)[: bins + 1]


def match_sharpness(image: Tensor, strength: float = 1.0) -> Tensor:
    """Give a magnitude image (y, x) the radial spectrum of measured scans at its own Nyquist.

    Images that were resampled (to a template, say) are smooth near Nyquist, and a prior trained on them learns
    to blur. The gain in amplitude is (measured / own)^(strength / 2), within [0.7, 4], smooth over k.
    """
    own = radial_power(image)[1:]  # 0.05, 0.10, ... 1.0 of Nyquist
    own_db = 10 * torch.log10(own / own[0])[1::2]
    target = torch.tensor(MEASURED_SPECTRUM, device=image.device)
    gain = 10 ** (strength * (target - own_db) / 20)
    knots = torch.cat([torch.ones(1, device=image.device), gain.clamp(0.7, 4.0)])  # at 0, 0.1, ... 1.0
    y, x = grid((image.shape[-2], image.shape[-1]))
    radius = ((y.square() + x.square()).sqrt() * 10).clamp_max(9.999).to(image.device)
    low = radius.long()
    smooth = knots[low] + (radius - low) * (knots[low + 1] - knots[low])
    return ifft2c(smooth * fft2c(image + 0j)).real.clamp_min(0)


def head_mask(image: Tensor, threshold: float = 0.08, reach: int = 6) -> Tensor:
    """1 inside the head of a magnitude image (y, x): what is above `threshold`, closed by `reach` pixels."""
    bright = (image > threshold * torch.quantile(image.flatten(), 0.99)).float()[None, None]
    width = 2 * reach + 1
    clean = functional.max_pool2d(-functional.max_pool2d(-bright, 3, 1, 1), 3, 1, 1)  # opening: no specks
    closed = -functional.max_pool2d(-functional.max_pool2d(clean, width, 1, reach), width, 1, reach)
    return closed[0, 0]


def tone(image: Tensor, generator: torch.Generator) -> Tensor:
    """Another contrast of the same anatomy: a random continuous curve on intensities in [0, 1], f(0) = 0."""
    kind = uniform(0, 1, generator)
    if kind < 0.4:
        return image
    if kind < 0.6:
        return image ** uniform(0.5, 1.6, generator)
    knots = torch.rand(6, generator=generator).to(image.device)
    knots = torch.cat([torch.zeros(1, device=image.device), 0.1 + 0.9 * knots])
    position = image.clamp(0, 0.9999) * 6
    low = position.long()
    return knots[low] + (position - low) * (knots[low + 1] - knots[low])


def brighten_rim(image: Tensor, inside: Tensor, gain: float, depth: float) -> Tensor:
    """Multiply by 1 + gain exp(-d / depth), d in pixels from the edge of `inside`: scalp fat is bright."""
    eroded, distance = inside[None, None], torch.zeros_like(image)
    for _ in range(round(3 * depth)):
        distance = distance + eroded[0, 0]
        eroded = -functional.max_pool2d(-eroded, 3, stride=1, padding=1)
    return image * (1 + gain * torch.exp(-distance / depth))


def resample(image: Tensor, shape: tuple[int, int], angle: float, zoom: float, shift: tuple[float, float]) -> Tensor:
    """Rotate by `angle` (rad), magnify by `zoom`, shift (fractions of the field) and pad to `shape` (y, x).

    Bicubic on a twofold sinc-interpolated image, so that little is lost near Nyquist.
    """
    canvas = centre_pad(image, shape)
    fine = ifft2c(centre_pad(fft2c(canvas + 0j), (2 * shape[0], 2 * shape[1]))).real * 2
    aspect = shape[1] / shape[0]
    c, s = math.cos(angle) / zoom, math.sin(angle) / zoom
    matrix = torch.tensor([[c, -s / aspect, 2 * shift[1]], [s * aspect, c, 2 * shift[0]]], device=image.device)
    points = functional.affine_grid(matrix[None], [1, 1, *shape], align_corners=False)
    return functional.grid_sample(fine[None, None], points, mode="bicubic", align_corners=False)[0, 0].clamp_min(0)


def lower_resolution(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The image at the coarser matrix `shape` (y, x): its k-space is cropped, the field of view kept."""
    scale = math.sqrt(shape[0] * shape[1] / (image.shape[-2] * image.shape[-1]))
    return (ifft2c(centre_crop(fft2c(image + 0j), shape)) * scale).real.clamp_min(0)


def simulate_kspace(
    image: Tensor, coils: int, sigma: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Fully sampled raw k-space (coil, ky, kx), its noise-free part, and a noise scan (coil, 4096).

    `image` is a magnitude (y, x); `sigma` the noise std (total complex) per coil relative to the 99th
    percentile of the RSS image. The noise is correlated between coils as in the noise scan.
    """
    shape = (image.shape[-2], image.shape[-1])
    maps = receive_maps(shape, coils, generator).to(image.device)
    phase = smooth_phase(shape, generator).to(image.device)
    coil_images = maps * (image * torch.exp(1j * phase))
    rss = coil_images.abs().square().sum(0).sqrt()
    coil_images = coil_images / torch.quantile(rss.flatten(), 0.99)
    clean = fft2c(coil_images)
    factor = noise_factor(coils, generator).to(image.device)
    white = torch.randn(coils, shape[0] * shape[1] + 4096, dtype=torch.complex64, generator=generator)
    noise = sigma * factor @ white.to(image.device)
    return clean + noise[:, 4096:].reshape(coils, *shape), clean, noise[:, :4096]


def vary_head(image: Tensor, canvas: tuple[int, int], matrix: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One magnitude (y, x) of shape `matrix` from a template slice: other pose, contrast, scalp and resolution.

    `canvas` is the field of view in template pixels; the result is as sharp at its own Nyquist as a measured
    scan (`match_sharpness`, to a varied degree) and 0 outside the head.
    """
    shift = (uniform(-0.04, 0.04, generator), uniform(-0.04, 0.04, generator))
    posed = resample(image, canvas, uniform(-0.4, 0.4, generator), uniform(0.85, 1.15, generator), shift)
    inside = head_mask(posed)
    contrast = tone((posed / torch.quantile(posed.flatten(), 0.999)).clamp(0, 1), generator) * inside
    scalp = brighten_rim(contrast, inside, uniform(0, 3, generator), uniform(2, 5, generator))
    return match_sharpness(lower_resolution(scalp, matrix), uniform(0.5, 1.0, generator))
