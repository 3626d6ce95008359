"""From raw k-space to a `Slice`: whitening, undersampling, scaling and coil maps.

    n ~ CN(0, C)        receiver noise across the coils of the raw k-space
    y = M W k / p       W C W^H = I,  p = 99th percentile of the RSS of the whitened image of the ACS lines

so the noise of y is sigma0^2 I with sigma0 = 1 / p. Whitening weighs the coils by their noise; `scale` is p
times the factor that best takes that RSS back to the RSS of the raw coils (least squares). On request V y takes the
place of y, the strongest virtual coils of the whitened calibration data (mrgen.physics.compression); p stays.

One set of maps S serves an object that fits into the field of view. Where it wraps, two places share a pixel, and
y = M F sum_m S_m x_m takes two (mrgen.physics.espirit). Objects that fit leave at most 0.03 % of the power of their
calibration image to a second set, a head that wraps 0.16 % or more (docs/results/2026-11-22-two-sets.md): the choice is
made between.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.compression import compression_matrix
from mrgen.physics.espirit import espirit_maps, second_share
from mrgen.physics.fourier import centre_fit, ifft2c
from mrgen.physics.masks import acs_lines, acs_region, fastmri_rng, sampling_mask
from mrgen.physics.noise import background_covariance, covariance, undersampled_covariance, whiten, whitening_matrix
from mrgen.scans.scan import Scan, Slice
from mrgen.settings import Sampling

NOISE_SCAN, BACKGROUND = "noise scan", "image background"
WRAPS = 0.001  # share of the calibration image's power in a second set, from which on it is needed
_SMALLEST_ACS, CALIBRATION_LINES, _READOUTS = 4, 24, 48  # calibration region: at least, and at most, so many samples


def default_center_fraction(acceleration: float) -> float:
    """fastMRI's fraction of lines in the fully sampled centre for R = `acceleration`."""
    if acceleration <= 4:
        return 0.08
    return 0.06 if acceleration <= 6 else 0.04


def undersampling_mask(scan: Scan, sampling: Sampling, acceleration: float, seed: int, slice_index: int) -> Tensor:
    """A mask of 0 and 1 for a fully sampled scan, (kx,), or (ky, kx) for a Poisson-disc pattern.

    Without the lines that the scanner zero-filled. `acceleration` is one of those of `sampling`, or another. The same
    file name, seed and index give the same mask, with seed and index 0 the one of fastMRI's evaluation; files of other
    names get other lines. Raises MrgenError for an R that cannot be.
    """
    rng = fastmri_rng(Path(scan.path).name, seed, slice_index)
    _, _, rows, lines = scan.shape
    try:
        fraction = sampling.fraction(acceleration)
        mask = sampling_mask(sampling.pattern, lines, acceleration, fraction, rng, rows)
    except ValueError as error:
        raise MrgenError(f"cannot undersample {lines} lines with R = {acceleration:g}: {error}") from None
    left, right = scan.padding
    mask[..., :left] = 0
    mask[..., lines - right :] = 0
    return mask


def noise_covariance(raw: Tensor, mask: Tensor | None, noise: Tensor | None = None) -> tuple[Tensor, str]:
    """Coil covariance (coil, coil) of the k-space noise of `raw` (coil, ky, kx), and where it was found.

    A noise scan, `noise` (coil, n), is believed first. Without one, a fully sampled slice (`mask` None) shows its
    noise in the image's corners; zero-filled samples carry none, which makes the image quieter than the measured
    ones by their share.
    """
    if noise is not None:
        return covariance(noise.to(raw)), NOISE_SCAN
    if mask is not None:
        return undersampled_covariance(raw * mask.to(raw.device), mask.to(raw.device))
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


def calibration_region(sampled: Tensor, rows: int) -> tuple[slice, slice]:
    """Rows and columns of the fully sampled centre, from a mask (kx,) or (ky, kx). Raises MrgenError without one."""
    region = (slice(0, rows), acs_lines(sampled)) if sampled.ndim == 1 else acs_region(sampled)
    height, width = (s.stop - s.start for s in region)
    if min(height, width) < _SMALLEST_ACS:
        found = f"{width} lines" if sampled.ndim == 1 else f"{height} x {width} samples"
        raise MrgenError(
            f"coil maps need at least {_SMALLEST_ACS} fully sampled lines at the centre of k-space (ACS), found "
            f"{found}: name a calibration scan of the same coils and field of view, or scan them, or raise the "
            "centre fraction or lower R"
        )
    return region


def calibration_data(raw: Tensor, sampled: Tensor, calibration: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The fully sampled centre of k-space on the grid of `raw` (coil, ky, kx), and its part for ESPIRiT (coil, ay, ax).

    `sampled` is the mask, (kx,) or (ky, kx); `calibration` (coil, ay, ax) replaces the centre of `raw`. Raises
    MrgenError where fewer than 4 lines are fully sampled and there is no `calibration`.
    """
    n_y, n_x = raw.shape[-2:]
    if calibration is None:
        rows, columns = calibration_region(sampled, n_y)
        centre = torch.zeros_like(raw)
        centre[:, rows, columns] = raw[:, rows, columns]
        return centre, raw[:, _central(n_y, rows, _READOUTS), _central(n_x, columns, CALIBRATION_LINES)]
    apart = calibration.to(raw)
    a_y, a_x = apart.shape[-2:]
    rows, columns = _central(a_y, slice(0, a_y), _READOUTS), _central(a_x, slice(0, a_x), CALIBRATION_LINES)
    return centre_fit(apart, (n_y, n_x)), apart[:, rows, columns]


def prepare_slice(
    raw: Tensor,
    mask: Tensor | None,
    *,
    undersample: Tensor | None = None,
    noise: Tensor | None = None,
    calibration: Tensor | None = None,
    coils: int | None = None,
    map_sets: int | None = 1,
    keep_reference: bool,
) -> Slice:
    """Prepare raw k-space (coil, ky, kx), complex64, in scanner units.

    `mask`, (kx,) or (ky, kx), is that of an undersampled scan, None for a fully sampled one; `undersample`, of either
    shape, is applied on top, retrospectively. `noise` (coil, n) is a noise scan, `calibration` (coil, ay, ax) a fully
    sampled centre of k-space measured apart. `coils` compresses the whitened data to so many virtual coils.
    `map_sets` is the number of sets of coil maps, None for 2 where the calibration data show that the object wraps.

    On request, a fully sampled scan keeps two references. One is its coil combination S^H F^H k, the unbiased estimate
    of least variance of the image x that A = M F S takes to the data, noise included; its magnitude is that of
    `Slice.magnitude`. The other is the RSS of the whitened images of all coils, as fastMRI has it; the noise of C coils
    raises its background to sqrt(C) sigma0, which no image of A's has.

    Raises MrgenError when fewer than 4 lines around the centre are fully sampled and there is no `calibration`, when
    the coils of noise, calibration and k-space differ in number, when there are fewer than `coils` or `map_sets`, or
    when there is no noise to be found.
    """
    available, n_y, n_x = raw.shape
    for name, other in (("noise scan", noise), ("calibration scan", calibration)):
        if other is not None and len(other) != available:
            raise MrgenError(f"the {name} has {len(other)} coils, the k-space {available}: expected the same array")
    if coils is not None and not 1 <= coils <= available:
        raise MrgenError(f"cannot compress {available} coils to {coils}: expected 1 to {available} virtual coils")
    sampled = _measured(raw)
    for given in (mask, undersample):
        sampled = sampled if given is None else sampled * given.to(sampled)
    cov, noise_from = noise_covariance(raw, mask, noise)
    try:
        matrix = whitening_matrix(cov)
    except ValueError as error:
        raise MrgenError(f"{error} ({noise_from}): mrgen needs k-space as measured, not denoised or masked") from None

    centre, acs = calibration_data(raw, sampled, calibration)
    whitened, low, acs = (whiten(data, matrix) for data in (raw, centre, acs))
    common = sampled * (low != 0)
    strength = (whitened * common).norm() / (low * common).norm()  # 1 unless the calibration is a scan of its own
    weighted = _rss(low)
    p = float(torch.quantile(weighted.flatten(), 0.99) * strength)
    back = float((weighted * _rss(centre)).sum() / weighted.square().sum())

    known = keep_reference and mask is None
    rss = _rss(whitened) / p if known else None
    coil_energy = None
    if coils is not None:
        virtual, coil_energy = compression_matrix(acs, coils=coils)
        whitened, acs = (torch.einsum("vc,cyx->vyx", virtual, data) for data in (whitened, acs))
    share = None if map_sets == 1 else second_share(acs, 1.0)
    sets = (2 if share is not None and share > WRAPS else 1) if map_sets is None else map_sets
    if sets > len(acs):
        raise MrgenError(f"cannot make {sets} sets of coil maps of {len(acs)} coil(s): expected as many coils at least")
    maps, _ = espirit_maps(acs[None], (n_y, n_x), 1.0, sets=None if sets == 1 else sets)
    found = Slice(
        kspace=whitened * sampled / p,
        mask=sampled,
        maps=maps[0],
        sigma0=1 / p,
        scale=p * back,
        reference=None,
        rss=rss,
        noise_from=noise_from,
        coil_energy=coil_energy,
        sets=sets,
        second_share=share,
    )
    if not known:
        return found
    combined = found.operator(torch.ones_like(sampled)).adjoint(whitened)
    return replace(found, reference=found.magnitude(combined) / p)


def prepare(
    scan: Scan,
    index: int,
    *,
    undersample: Tensor | None = None,
    calibration: Scan | None = None,
    coils: int | None = None,
    map_sets: int | None = 1,
    keep_reference: bool = False,
    device: torch.device | str = "cpu",
) -> Slice:
    """Slice `index` of a scan, read and prepared on `device` with all that the scan brings along.

    Coil maps come from `calibration`, the fully sampled centre of another scan of the same coils, slices and field of
    view, where it is given; else from the scan's own calibration data, if it has any; else from the centre of the slice
    itself. Raises MrgenError as `prepare_slice` does, and for a calibration scan without that slice.
    """
    centre = None
    if calibration is not None:
        centre = calibration_centre(calibration, index if calibration.slices > 1 else 0)
    elif scan.read_calibration is not None:
        centre = scan.read_calibration(index)
    return prepare_slice(
        scan.read_slice(index).to(device),
        scan.mask,
        undersample=undersample,
        noise=scan.noise,
        calibration=centre,
        coils=coils,
        map_sets=map_sets,
        keep_reference=keep_reference,
    )


def calibration_centre(scan: Scan, index: int) -> Tensor:
    """The fully sampled centre (coil, ay, ax) of a slice of a calibration scan, in scanner units."""
    if not 0 <= index < scan.slices:
        raise MrgenError(f"the calibration scan has {scan.slices} slices, expected slice {index} or a single one")
    raw = scan.read_slice(index)
    n_y, n_x = raw.shape[-2:]
    rows, columns = calibration_region(_measured(raw) if scan.mask is None else scan.mask, n_y)
    # what is kept lies symmetrically around the centre of k-space, so that it can be embedded in another matrix
    half = [min(m // 2 - s.start, s.stop - m // 2) for m, s in zip((n_y, n_x), (rows, columns), strict=True)]
    return raw[:, n_y // 2 - half[0] : n_y // 2 + half[0], n_x // 2 - half[1] : n_x // 2 + half[1]]
