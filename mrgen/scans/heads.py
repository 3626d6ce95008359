"""Varied heads from one template: other poses, contrasts, scalps and resolutions, as sharp as measured scans.

Images are magnitudes (y, x), float32, with the centre of rotation, zoom and resolution at pixel N // 2. Randomness
comes from a torch.Generator on the CPU; results stay on the device of their image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mrgen.physics.fourier import centre_crop, centre_pad, fft2c, grid, ifft2c
from mrgen.scans.simulate import uniform

# Radial power of measured heads relative to 0.05 of Nyquist, dB, at 0.1, 0.2, ... 1.0 of Nyquist: the mean of
# an 8-coil T1, a T2 and two sections of a 3-D T1 scan (docs/method.md).
MEASURED_SPECTRUM = (-4.9, -11.6, -17.5, -21.2, -24.2, -25.5, -28.3, -29.8, -31.8, -33.4)
_SMALLEST_GAIN, _LARGEST_GAIN = 0.7, 4.0  # beyond these a gain blows up rounding and ringing, not structure
_MARGIN = 3  # pixels; the head's own blur and ringing are kept so far out, and gone at twice that


def _radius(shape: tuple[int, int], device: torch.device) -> Tensor:
    """|k| of every sample of k-space (ky, kx), in units of Nyquist."""
    y, x = grid(shape)
    return (y.square() + x.square()).sqrt().to(device)


def radial_power(image: Tensor, bins: int = 20) -> Tensor:
    """Mean k-space power of image (y, x) in `bins` + 1 rings of radius 0, 1/bins, ... 1 of Nyquist."""
    ring = (_radius((image.shape[-2], image.shape[-1]), image.device) * bins).round().long().clamp_max(bins + 1)
    power = fft2c(image + 0j).abs().square().flatten()
    total = torch.zeros(bins + 2, device=image.device).index_add(0, ring.flatten(), power)
    count = torch.zeros(bins + 2, device=image.device).index_add(0, ring.flatten(), torch.ones_like(power))
    return (total / count)[: bins + 1]


def _spectrum(image: Tensor) -> Tensor:
    """Radial power relative to 0.05 of Nyquist, dB, at the radii of MEASURED_SPECTRUM."""
    power = radial_power(image)
    return 10 * torch.log10(power / power[1])[2::2]


def match_sharpness(image: Tensor, strength: float = 1.0) -> Tensor:
    """Give a magnitude image (y, x) the radial spectrum of measured scans at its own Nyquist.

    Images that were resampled (to a template, say) are smooth near Nyquist, and a prior trained on them learns
    to blur. The difference to the measured spectrum, in dB, shrinks to 1 - `strength` of what it was, but for gains
    in amplitude beyond [0.7, 4]. Gains are linear in |k| between the radii of MEASURED_SPECTRUM and 1 at the ring
    they are relative to. Neighbouring rings leak into each other and negative values are cut off, so the gains are
    corrected by what they have achieved, twice.
    """
    kspace, own = fft2c(image + 0j), _spectrum(image)
    wanted = own + strength * (torch.tensor(MEASURED_SPECTRUM, device=image.device) - own)
    position = (_radius((image.shape[-2], image.shape[-1]), image.device) * 20).clamp_max(19.999)
    low = position.long()
    sharp, log_gain, one = image, torch.zeros_like(own), torch.ones(1, device=image.device)
    limits = 20 * math.log10(_SMALLEST_GAIN), 20 * math.log10(_LARGEST_GAIN)
    for _ in range(3):
        log_gain = (log_gain + wanted - _spectrum(sharp)).clamp(*limits)
        knots = torch.cat([one, 10 ** (log_gain / 20)])  # at 0, 0.1, ... 1.0 of Nyquist
        between = (knots[:-1] + knots[1:]) / 2
        between[0] = 1  # at 0.05
        fine = torch.cat([torch.stack([knots[:-1], between], dim=1).flatten(), knots[-1:]])  # at 0, 0.05, ... 1.0
        sharp = ifft2c((fine[low] + (position - low) * (fine[low + 1] - fine[low])) * kspace).real.clamp_min(0)
    return sharp


def _dilate(mask: Tensor, reach: int) -> Tensor:
    """Largest value of mask (y, x) within a square of `reach` pixels around; the square's two axes one by one."""
    width = 2 * reach + 1
    rows = functional.max_pool2d(mask[None, None], (width, 1), 1, (reach, 0))
    return functional.max_pool2d(rows, (1, width), 1, (0, reach))[0, 0]


def _erode(mask: Tensor, reach: int) -> Tensor:
    return -_dilate(-mask, reach)


def head_mask(image: Tensor, threshold: float = 0.08, reach: int = 6, level: float | None = None) -> Tensor:
    """1 inside the head of a magnitude image (y, x): what is above `threshold`, closed by `reach` pixels.

    The threshold is relative to `level`, by default the image's own 99th percentile.
    """
    bright = (image > threshold * (level or torch.quantile(image.flatten(), 0.99))).float()
    clean = _dilate(_erode(bright, 1), 1)  # no specks
    return _erode(_dilate(clean, reach), reach)


def fade(inside: Tensor, matrix: tuple[int, int]) -> Tensor:
    """A window (y, x) of shape `matrix`: 1 within 1 pixel of `inside`, a mask of the same field of view, 0 beyond 7.

    It cuts off what rings outside the head and leaves the head's own edge as it is.
    """
    near = _dilate(functional.adaptive_max_pool2d(inside[None, None], matrix)[0, 0], _MARGIN + 1)
    window = near[None, None]
    for _ in range(_MARGIN):
        window = functional.avg_pool2d(window, 3, 1, 1, count_include_pad=False)
    return window[0, 0]


def tone(image: Tensor, generator: torch.Generator) -> Tensor:
    """Another contrast of the same anatomy: a random continuous curve on intensities in [0, 1], f(0) = 0.

    A fifth of the heads are inverted but for what is nearly black, as fluid is bright in T2-weighted scans of what is
    given as T1-weighted. Half of the heads then lose contrast, as in proton-density weighted scans: tissues move
    towards their mean.
    """
    kind, flatness = uniform(0, 1, generator), max(0.0, uniform(-0.7, 0.7, generator))
    if 0.3 <= kind < 0.5:
        image = image ** uniform(0.5, 1.6, generator)
    elif kind >= 0.5:
        knots = torch.rand(6, generator=generator).to(image.device)
        if kind >= 0.8:
            knots = knots.sort(descending=True).values
        knots = torch.cat([torch.zeros(1, device=image.device), 0.1 + 0.9 * knots])
        position = image.clamp(0, 0.9999) * 6
        low = position.long()
        image = knots[low] + (position - low) * (knots[low + 1] - knots[low])
    tissue = image > 0.1
    mean = image[tissue].mean() if bool(tissue.any()) else image.mean()
    return image + flatness * (mean - image) * (image / 0.1).clamp_max(1)


def brighten_rim(image: Tensor, inside: Tensor, gain: float, depth: float) -> Tensor:
    """Multiply by 1 + gain exp(-d / depth), d in pixels from the edge of `inside`: scalp fat is bright."""
    eroded, distance = inside, torch.zeros_like(image)
    for _ in range(round(3 * depth)):
        distance = distance + eroded
        eroded = _erode(eroded, 1)
    return image * (1 + gain * torch.exp(-distance / depth))


def resample(image: Tensor, shape: tuple[int, int], angle: float, zoom: float, shift: tuple[float, float]) -> Tensor:
    """Pad to `shape` (y, x), rotate by `angle` (rad) and magnify by `zoom` about pixel N // 2, and shift.

    Output pixel r, counted from the centre, shows the input at R(angle) r / zoom + shift * shape: a positive shift,
    in fractions of the field, moves the object to smaller indices. Bicubic on a twofold sinc-interpolated image, so
    that little is lost near Nyquist, and without a move the pixels are the input's own.
    """
    canvas = centre_pad(image, shape)
    fine = ifft2c(centre_pad(fft2c(canvas + 0j), (2 * shape[0], 2 * shape[1]))).real * 2
    y, x = (torch.arange(n, device=image.device) - n // 2 for n in shape)
    c, s = math.cos(angle) / zoom, math.sin(angle) / zoom
    source_y = c * y[:, None] + s * x + shift[0] * shape[0]
    source_x = c * x - s * y[:, None] + shift[1] * shape[1]
    # The centre of 2 n fine samples is sample n, and offsets double; grid_sample calls samples 0 and 2 n - 1 -1 and 1.
    points = torch.stack(
        [2 * (n + 2 * v) / (2 * n - 1) - 1 for n, v in ((shape[1], source_x), (shape[0], source_y))], dim=-1
    )
    moved = functional.grid_sample(fine[None, None], points[None], mode="bicubic", align_corners=True)
    return moved[0, 0].clamp_min(0)


def lower_resolution(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """The image at the coarser matrix `shape` (y, x): its k-space is cropped, the field of view kept."""
    scale = math.sqrt(shape[0] * shape[1] / (image.shape[-2] * image.shape[-1]))
    return (ifft2c(centre_crop(fft2c(image + 0j), shape)) * scale).real.clamp_min(0)


def vary_head(image: Tensor, canvas: tuple[int, int], matrix: tuple[int, int], generator: torch.Generator) -> Tensor:
    """One magnitude (y, x) of shape `matrix` from a template slice: other pose, contrast, scalp and resolution.

    `canvas` is the field of view in template pixels; the result is as sharp at its own Nyquist as a measured
    scan (`match_sharpness`, to a varied degree) and 0 farther than 7 pixels from the head.
    """
    shift = (uniform(-0.04, 0.04, generator), uniform(-0.04, 0.04, generator))
    posed = resample(image, canvas, uniform(-0.4, 0.4, generator), uniform(0.9, 1.25, generator), shift)
    inside = head_mask(posed)
    contrast = tone((posed / torch.quantile(posed.flatten(), 0.999)).clamp(0, 1), generator) * inside
    scalp = brighten_rim(contrast, inside, uniform(0, 3, generator), uniform(2, 5, generator))
    return match_sharpness(lower_resolution(scalp, matrix), uniform(0.8, 1.2, generator)) * fade(inside, matrix)
