"""From raw k-space to a `Slice`: whitening, undersampling, scaling and coil maps.

    n ~ CN(0, C)        receiver noise across the coils of the raw k-space
    y = M W k / p       W C W^H = I,  p = 99th percentile of the RSS of the whitened image of the ACS lines

so the noise of y is sigma0^2 I with sigma0 = 1 / p. Whitening weighs the coils by their noise; `scale` is p
times the factor that best takes that RSS back to the RSS of the raw coils (least squares).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.espirit import espirit_maps
from mrgen.physics.fourier import ifft2c
from mrgen.physics.masks import acs_lines, sampling_mask
from mrgen.physics.noise import background_covariance, edge_covariance, whiten, whitening_matrix
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Sampling

BACKGROUND, EDGE = "image background", "k-space edge (an upper bound)"
_SMALLEST_ACS, _LINES, _READOUTS = 4, 24, 48  # calibration region: at least, and at most, so many samples


def default_center_fraction(acceleration: float) -> float:
    """fastMRI's fraction of lines in the fully sampled centre for R = `acceleration`."""
    if acceleration <= 4:
        return 0.08
    return 0.06 if acceleration <= 6 else 0.04


def undersampling_mask(scan: Scan, sampling: Sampling, acceleration: float, seed: int, slice_index: int) -> Tensor:
    """A mask (kx,) of 0 and 1 for a fully sampled scan, without the lines that the scanner zero-filled.

    `acceleration` is one of those of `sampling`, or another. The same file name, seed and index give the same
    mask; files of other names get other lines. Raises MrgenError for an R that cannot be.
    """
    text = f"{Path(scan.path).stem}:{seed}:{slice_index}"
    digest = hashlib.sha256(text.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    lines = scan.shape[-1]
    try:
        mask = sampling_mask(sampling.pattern, lines, acceleration, sampling.center_fraction, generator)
    except ValueError as error:
        raise MrgenError(f"cannot undersample {lines} lines with R = {acceleration:g}: {error}") from None
    left, right = scan.padding
    mask[:left] = 0
    mask[lines - right :] = 0
    return mask


def noise_covariance(raw: Tensor, mask: Tensor | None) -> tuple[Tensor, str]:
    """Coil covariance (coil, coil) of the k-space noise of `raw` (coil, ky, kx), and where it was found.

    A fully sampled slice (`mask` None) shows its noise in the image's corners; zero-filled lines carry none,
    which makes the image quieter than the measured lines by their share.
    """
    if mask is not None:
        return edge_covariance(raw * mask, mask), EDGE
    return background_covariance(raw) / _measured(raw).mean(), BACKGROUND


def _measured(raw: Tensor) -> Tensor:
    """(kx,) float: 1 for lines of (coil, ky, kx) that are not zero-filled."""
    return (raw != 0).flatten(0, 1).any(0).float()


def _rss(kspace: Tensor) -> Tensor:
    """Root of the sum of squares over the coils of the image, (y, x), of k-space (coil, ky, kx)."""
    return ifft2c(kspace).abs().square().sum(0).sqrt()


def _central(n: int, lines: slice, most: int) -> slice:
    """At most `most` of `lines`, the ones around n // 2."""
    return slice(max(lines.start, n // 2 - most // 2), min(lines.stop, n // 2 - most // 2 + most))


def prepare_slice(
    raw: Tensor, mask: Tensor | None, *, undersample: Tensor | None = None, keep_reference: bool
) -> Slice:
    """Prepare raw k-space (coil, ky, kx), complex64, in scanner units.

    `mask` (kx,) is that of an undersampled scan, None for a fully sampled one; `undersample` (kx,) is applied
    on top, retrospectively. The reference, kept on request and only for a fully sampled scan, is the RSS of the
    whitened coil images: whitened, so that it weighs the coils as the reconstruction does.

    Raises MrgenError when fewer than 4 lines around the centre are fully sampled, or when there is no noise to
    be found.
    """
    n_y, n_x = raw.shape[-2:]
    sampled = _measured(raw)
    for given in (mask, undersample):
        sampled = sampled if given is None else sampled * given
    acs = acs_lines(sampled)
    if acs.stop - acs.start < _SMALLEST_ACS:
        raise MrgenError(
            f"coil maps need at least {_SMALLEST_ACS} fully sampled lines at the centre of k-space (ACS), found "
            f"{acs.stop - acs.start}: scan them, or raise the centre fraction or lower R"
        )
    cov, noise_from = noise_covariance(raw, mask)
    try:
        whitened = whiten(raw, whitening_matrix(cov))
    except ValueError as error:
        raise MrgenError(f"{error} ({noise_from}): mrgen needs k-space as measured, not denoised or masked") from None

    calibration = torch.zeros_like(sampled)
    calibration[acs] = 1
    weighted = _rss(whitened * calibration)
    p = float(torch.quantile(weighted.flatten(), 0.99))
    back = float((weighted * _rss(raw * calibration)).sum() / weighted.square().sum())

    kspace = whitened * sampled / p
    rows, lines = _central(n_y, slice(0, n_y), _READOUTS), _central(n_x, acs, _LINES)
    maps, _ = espirit_maps(kspace[None, :, rows, lines], (n_y, n_x), 1 / p)
    known = keep_reference and mask is None
    return Slice(
        kspace=kspace,
        mask=sampled,
        maps=maps[0],
        sigma0=1 / p,
        scale=p * back,
        reference=_rss(whitened) / p if known else None,
        noise_from=noise_from,
    )
