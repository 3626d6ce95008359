"""What can be wrong with raw data that opens without an error: one small function a check, a sentence or None.

Most checks look at whitened k-space w, whose receiver noise n has E|n|^2 = 1 in every sample and every coil: what is
much quieter was not measured, what is much louder than its surroundings is no signal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mrgen.physics.fourier import ifft2c
from mrgen.physics.noise import EDGE
from mrgen.scans.prepare import NOISE_SCAN
from mrgen.scans.scan import Scan, Slice

_QUIET = 0.5  # mean |w|^2 below which samples are no measured ones
_LOUD, _SILENT = 3.0, 0.1  # noise std of a coil over the median one
_DEAD = 2.0  # a coil's energy in the centre of k-space over that of its noise
_COPIES = 0.95  # correlation of two coils, of noise and of k-space alike
_SPIKE, _WINDOW = 10.0, 7  # robust std above the median of a neighbourhood of so many samples
_CLIPPED = 4  # samples of a coil that share its largest value; at most one does, but for chance
_PRECISE = 1e4  # largest SNR to be believed
_SYMMETRIC = 0.9  # correlation of y(k) with conj y(-k) in the outer k-space: 0 for noise, 1 for real images
_WHITE = 0.3  # correlation of the noise of neighbouring pixels
_CENTRE = 9  # samples: a box around the peak of k-space
_EMPTY = 3.0  # mean |w|^2 in the loudest such box of a k-space without signal


@dataclass(frozen=True)
class Evidence:
    """What the checks look at: one slice of a scan, raw, whitened and prepared; None where that was not possible."""

    scan: Scan
    index: int
    raw: Tensor  # (coil, ky, kx) complex64
    covariance: Tensor | None  # (coil, coil) of the noise in raw
    noise_from: str | None
    white: Tensor | None  # (coil, ky, kx), E|n|^2 = 1
    slice: Slice | None
    snr: float | None
    explained: float | None
    two_signals_area: float | None

    @property
    def measured(self) -> Tensor:
        """(ky, kx) bool, where any coil is not zero."""
        return (self.raw != 0).any(0)

    @property
    def lines(self) -> Tensor:
        """(kx,) bool, the lines that hold anything."""
        return self.measured.any(0)


def _energy(kspace: Tensor) -> Tensor:
    return kspace.abs().double().square().sum(0)


def _share(energy: Tensor, count: int) -> float:
    """Share of all energy (y, x) in the `count` strongest samples."""
    return float(energy.flatten().topk(count).values.sum() / energy.sum())


def images_for_kspace(e: Evidence) -> str | None:
    """k-space has its energy in few samples, an image has not: the Fourier transform must spread it."""
    count = max(1, int(e.measured.sum()) // 100)
    before, after = _share(_energy(e.raw), count), _share(_energy(ifft2c(e.raw)), count)
    if after <= 1.5 * before:
        return None
    return (
        f"its strongest 1 % of samples hold {before:.0%} of the energy, and {after:.0%} after a Fourier transform: "
        "these are images, not k-space; store their centred 2-D Fourier transform"
    )


def _off_centre(e: Evidence) -> tuple[int, int]:
    """Rows and columns from n // 2 to the peak of k-space, smoothed over 3 x 3 samples."""
    smooth = functional.avg_pool2d(_energy(e.raw)[None, None], 3, 1, 1)[0, 0]
    y, x = divmod(int(smooth.argmax()), smooth.shape[1])
    return y - smooth.shape[0] // 2, x - smooth.shape[1] // 2


def centre_elsewhere(e: Evidence) -> str | None:
    """The centre of k-space has to be at n // 2, within an eighth of its size."""
    off, shape = _off_centre(e), e.raw.shape[-2:]
    if all(abs(o) <= n // 8 for o, n in zip(off, shape, strict=True)):
        return None
    found, expected = ((o + n // 2 for o, n in zip(o_, shape, strict=True)) for o_ in (off, (0, 0)))
    return (
        "k-space peaks at ({}, {}), expected ({}, {}): ".format(*found, *expected)
        + "apply fftshift, or roll its centre there"
    )


def echo_shifted(e: Evidence) -> str | None:
    off, shape = _off_centre(e), e.raw.shape[-2:]
    small = [max(3, n // 32) for n in shape]
    if centre_elsewhere(e) or all(abs(o) <= s for o, s in zip(off, small, strict=True)):
        return None
    return "k-space peaks {} rows and {} columns from its centre: the image has a steep phase".format(*off)


def nothing_but_noise(e: Evidence) -> str | None:
    """The mean energy of the loudest 9 x 9 samples is that of noise."""
    if e.white is None:
        return None
    measured = e.measured.double()
    energy = _energy(e.white) / len(e.white)
    sums, counts = (functional.avg_pool2d(v[None, None], _CENTRE, 1, _CENTRE // 2) for v in (energy, measured))
    loudest = float((sums / counts.clamp_min(0.2)).max())
    return None if loudest > _EMPTY else "no part of k-space is louder than noise: expected the signal of an object"


def silent_edges(e: Evidence) -> str | None:
    """Rows or lines at the edges whose energy is below that of noise."""
    if e.white is None or e.noise_from == EDGE:
        return None
    energy, found = _energy(e.white) / len(e.white), []
    points = e.measured.double()
    for axis, name in ((1, "readout samples"), (0, "phase-encoding lines")):
        mean = energy.sum(axis) / points.sum(axis).clamp_min(1)
        present = torch.nonzero(mean > _QUIET).flatten()
        if not len(present):
            continue
        quiet = (mean > 0) & (mean <= _QUIET)
        first, last = int(present[0]), int(present[-1])
        before, after = int(quiet[:first].sum()), int(quiet[last + 1 :].sum())
        if before + after:
            found.append(f"the first {before} and last {after} {name}")
    if not found:
        return None
    return (
        f"{' and '.join(found)} are quieter than noise: filtered, interpolated or zero-filled before they were stored"
    )


def coloured_noise(e: Evidence) -> str | None:
    """The noise of neighbouring pixels in the image's quiet corners has to be independent."""
    if e.scan.mask is not None or e.white is None:
        return None
    image = ifft2c(e.white)
    size = [max(8, n // 16) for n in image.shape[-2:]]
    corners = [
        image[:, y, x] for y in (slice(size[0]), slice(-size[0], None)) for x in (slice(size[1]), slice(-size[1], None))
    ]
    quiet = min(corners, key=lambda c: float(c.abs().square().mean()))
    along = []
    if bool(e.measured.any(1).all()):
        along.append((quiet[:, 1:], quiet[:, :-1]))
    if bool(e.lines.all()):
        along.append((quiet[:, :, 1:], quiet[:, :, :-1]))
    found = [float((a * b.conj()).sum().abs() / (a.norm() * b.norm()).clamp_min(1e-30)) for a, b in along]
    if max(found, default=0.0) <= _WHITE:
        return None
    return (
        f"the noise of neighbouring background pixels is correlated ({max(found):.2f}): k-space was filtered, "
        "interpolated or denoised, or the object reaches into the corners; the noise level is unreliable"
    )


def too_clean(e: Evidence) -> str | None:
    if e.snr is None or e.snr <= _PRECISE:
        return None
    return f"an SNR of {e.snr:.3g} is more than any scan's: simulated without noise, denoised, or masked"


def quiet_background(e: Evidence) -> str | None:
    """Noise in the image's corners that is below the noise scan's."""
    if e.scan.mask is not None or e.white is None or e.noise_from != NOISE_SCAN:
        return None
    image = _energy(ifft2c(e.white)) / len(e.white) / e.measured.double().mean()
    h, w = (max(4, n // 16) for n in image.shape)
    corners = float(torch.stack([image[:h, :w], image[:h, -w:], image[-h:, :w], image[-h:, -w:]]).mean())
    if corners >= _QUIET:
        return None
    return (
        f"the image's corners hold {corners:.2g} of the noise power that the noise scan tells: its scale is another, "
        "or the k-space was denoised or masked"
    )


def noise_is_a_bound(e: Evidence) -> str | None:
    if e.noise_from != EDGE:
        return None
    return "the noise level is an upper bound, from samples that hold signal too: a noise scan would tell it"


def _coils(indices: list[int]) -> str:
    return ("coil " if len(indices) == 1 else "coils ") + ", ".join(map(str, indices))


def _noise_std(e: Evidence) -> Tensor | None:
    return None if e.covariance is None else e.covariance.diagonal().real.clamp_min(0).sqrt()


def loud_coils(e: Evidence) -> str | None:
    std = _noise_std(e)
    if std is None or len(std) < 3:
        return None
    loud = torch.nonzero(std > _LOUD * std.median()).flatten().tolist()
    return (
        f"{_coils(loud)} {'has' if len(loud) == 1 else 'have'} more than {_LOUD:g} times the noise of the others"
        if loud
        else None
    )


def dead_coils(e: Evidence) -> str | None:
    """Coils without noise, or without signal around the peak of k-space."""
    std = _noise_std(e)
    if std is None or len(std) < 2:
        return None
    n_y, n_x = e.raw.shape[-2:]
    box = e.raw[:, n_y // 2 - _CENTRE : n_y // 2 + _CENTRE + 1, n_x // 2 - _CENTRE : n_x // 2 + _CENTRE + 1]
    counts = (box != 0).any(0).sum().clamp_min(1)
    signal = box.abs().square().sum((1, 2)) / counts / std.square().clamp_min(1e-30)
    dead = torch.nonzero((std < _SILENT * std.median()) | (signal < _DEAD)).flatten().tolist()
    return f"{_coils(dead)} {'is' if len(dead) == 1 else 'are'} dead: no signal, or no noise" if dead else None


def _correlation(covariance: Tensor) -> Tensor:
    std = covariance.diagonal().real.clamp_min(1e-30).sqrt()
    found: Tensor = (covariance / std[:, None] / std).abs().fill_diagonal_(0)
    return found


def copied_coils(e: Evidence) -> str | None:
    """Two coils that are alike in noise and signal are one."""
    if e.covariance is None or len(e.covariance) < 2:
        return None
    flat = e.raw.flatten(1)
    both = torch.minimum(_correlation(e.covariance), _correlation(flat @ flat.mH))
    pairs = torch.nonzero((both > _COPIES).triu()).tolist()
    return (
        f"coils {' and '.join(map(str, pairs[0]))} are the same signal (correlation {float(both.max()):.3f})"
        if pairs
        else None
    )


def spikes(e: Evidence) -> str | None:
    """Samples far above their neighbourhood, outside the centre of k-space and the cross of straight edges through it.

    Lines that were left out are closed up; points in two directions are not checked, as they have few neighbours.
    """
    if e.white is None or (e.scan.mask is not None and e.scan.mask.ndim == 2):
        return None
    columns = torch.nonzero(e.lines).flatten()
    magnitude = _energy(e.white).sqrt().float()[:, columns]
    n_y, n_x = magnitude.shape
    half = _WINDOW // 2
    padded = functional.pad(magnitude[None, None], (half,) * 4, mode="reflect")
    around = functional.unfold(padded, _WINDOW)[0]  # (window, ky * kx)
    median = around.median(0).values
    spread = 1.4826 * (around - median).abs().median(0).values
    above = ((magnitude.flatten() - median) / spread.clamp_min(0.2)).reshape(n_y, n_x)
    off_y, off_x = ((torch.arange(n) - n // 2).abs() / n for n in (n_y, n_x))
    nearer, farther = torch.minimum(off_y[:, None], off_x), torch.maximum(off_y[:, None], off_x)
    above[(nearer < 1 / 16) | (farther < 1 / 8)] = 0
    where = torch.nonzero(above > _SPIKE)
    if not len(where):
        return None
    y, x = divmod(int(above.argmax()), n_x)
    return (
        f"{len(where)} spike(s) in k-space, the strongest at ({y}, {int(columns[x])}), {float(above[y, x]):.0f} robust "
        "standard deviations above its surroundings: expect stripes"
    )


def clipped(e: Evidence) -> str | None:
    """Several samples of a coil at exactly its largest real or imaginary part."""
    parts = torch.view_as_real(e.raw).abs().flatten(1)
    largest = parts.amax(1, keepdim=True)
    counts = ((parts >= largest * (1 - 1e-6)) & (largest > 0)).sum(1)
    hit = torch.nonzero(counts >= _CLIPPED).flatten().tolist()
    return (
        f"{int(counts.max())} samples share the largest value of {_coils(hit)}: the receiver was saturated"
        if hit
        else None
    )


def from_magnitudes(e: Evidence) -> str | None:
    """k-space of real images is conjugate symmetric, its noise too; what a receiver measures never is."""
    n_y, n_x = e.raw.shape[-2:]
    mirrored = e.raw.flip(1, 2).roll((1 - n_y % 2, 1 - n_x % 2), (1, 2)).conj()
    outer = torch.ones(n_y, n_x, dtype=torch.bool)
    outer[n_y // 4 : -(n_y // 4), n_x // 4 : -(n_x // 4)] = False
    outer[0], outer[:, 0] = outer[0] & bool(n_y % 2), outer[:, 0] & bool(n_x % 2)
    a, b = e.raw * outer, mirrored * outer
    found = float((a * b.conj()).sum().abs() / (a.norm() * b.norm()).clamp_min(1e-30))
    if found <= _SYMMETRIC:
        return None
    return f"k-space is conjugate symmetric ({found:.2f}): made from magnitude images, not measured"


def one_coil(e: Evidence) -> str | None:
    return "one coil: nothing but the prior fills in what is not sampled" if len(e.raw) == 1 else None


def maps_too_few(e: Evidence) -> str | None:
    """One set of maps cannot explain pixels that two parts of the body share, as where the body wraps around."""
    if e.two_signals_area is None or e.explained is None:
        return None
    if e.two_signals_area <= TWO_SIGNALS_AREA or 1 - e.explained <= LEFT_OUT:
        return None
    return (
        f"in {e.two_signals_area:.0%} of the object two signals share a pixel, and one set of coil maps leaves out "
        f"{1 - e.explained:.1%} of the energy: does the body wrap around the field of view? mrgen recon takes two sets"
    )


TWO_SIGNALS_AREA, LEFT_OUT = 0.02, 0.003  # of the object, of its energy
Check = Callable[[Evidence], str | None]
REASONS: tuple[Check, ...] = (images_for_kspace, centre_elsewhere, nothing_but_noise)  # not to use a scan
WARNINGS: tuple[Check, ...] = (
    echo_shifted,
    noise_is_a_bound,
    silent_edges,
    coloured_noise,
    quiet_background,
    too_clean,
    from_magnitudes,
    dead_coils,
    loud_coils,
    copied_coils,
    one_coil,
    maps_too_few,
    spikes,
    clipped,
)
