"""Coil maps by ESPIRiT (Uecker et al., Magn Reson Med 2014, doi 10.1002/mrm.24751).

The rows of the calibration matrix A are the neighbourhoods, `kernel` samples wide over all coils, of the fully sampled
centre of k-space (ACS). With A^H A = sum_i e_i v_i v_i^H, n rows and noise of std sigma, what signal there is lies in

    W = sum_i w_i v_i v_i^H,    w_i = 1 - n sigma^2 / e_i  where sqrt(e_i) > sigma (sqrt(rows) + sqrt(columns)),  else 0

the Wiener filter of the neighbourhoods, cut at the edge of the spectrum of a matrix of pure noise (Marchenko and Pastur
1967): no threshold has to be tuned. A source at pixel r that the coils see as the unit vector c fills neighbourhoods
with h = c exp(2 pi i k.r) / (kernel's area)^(1/2), so the eigenvalues and eigenvectors, over c, of

    G(r),    c^H G(r) c = h^H W h

tell the coil maps: an eigenvalue near 1 is a direction of the coils that carries signal. G(r) is a trigonometric
polynomial in r, whose Fourier coefficients are summed over the kernels first.

Where there is no signal. The largest power along h that the data allow, 1 / h^H (A^H A / n)^-1 h (Capon, Proc IEEE
1969, doi 10.1109/PROC.1969.7278), is sigma^2 / (1 - lambda) once the noise outside W has its known power. So the
eigenvalue lambda bounds the signal-to-noise ratio of what can be at a pixel, per pixel and averaged over the kernel's
resolution (the field of view / kernel):

    SNR(r) <= 1 / sqrt(1 - lambda(r))

Pixels where this bound is below `least_snr` are outside the support: nothing visible can be there (Rose, J Opt Soc Am
1948, puts the limit of what an eye can see at 3 to 5). Those that the support encloses are kept nevertheless: few noisy
calibration lines may hide tissue that stronger tissue surrounds, and what lies there would have to go elsewhere.

The phase. An eigenvector has none of its own, so it is turned to that of one coil. Around a point where this coil is
blind the phase of the maps, and of the image that they combine, would turn by 2 pi; the virtual coil that sees the
object best on average often has such a point inside it. So the coil is taken whose smallest |S_c| is the largest.
"""

import math
from collections.abc import Iterator

import scipy
import torch
from torch import Tensor

from mrgen.physics.fourier import centre_fit, ifft2c

# Entries of G held at once. 8 MB stay in a processor's cache. A GPU is three times as fast with four times as many (one
# H100, 15 coils).
_ENTRIES = {"cpu": 2**20, "cuda": 2**22}
_SOLVED_AT_ONCE = 4096  # matrices; cuSOLVER takes about 0.65 MB for each
_OBJECT = 0.1  # of the 99th percentile of the image: darker pixels count as empty
_EXACT = 1e-4  # residual |G v - lambda v| of a map; its error 1 - |<v, v_true>| is of the order of the square


def calibration_gram(acs: Tensor, kernel: tuple[int, int]) -> Tensor:
    """A^H A of the calibration matrix: (batch, m, m), m = coil * kernel area; rows of A are neighbourhoods."""
    patches = acs.unfold(-2, kernel[0], 1).unfold(-2, kernel[1], 1)  # (batch, coil, py, px, ky, kx)
    rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (batch, patch, m)
    return rows.mH @ rows


def _signal_filter(gram: Tensor, rows: int, sigma: float) -> Tensor:
    """W, (batch, m, m). The strongest direction is always kept, so that a region of pure noise still gives maps."""
    power, vectors = torch.linalg.eigh(gram)
    edge = sigma * (rows**0.5 + gram.shape[-1] ** 0.5)
    kept = power > edge**2
    kept[:, -1] = True
    weight = torch.where(kept, (1 - rows * sigma**2 / power).clamp_min(1e-3), 0)
    filtered: Tensor = (vectors * weight.unsqueeze(1)) @ vectors.mH
    return filtered


def _waves(n: int, width: int) -> Tensor:
    """exp(-2 pi i l r / n) at pixels r (0 at n // 2) and lags l = 1 - width, ... width - 1; (n, lag)."""
    r = torch.arange(n, dtype=torch.float64) - n // 2
    lag = torch.arange(1 - width, width, dtype=torch.float64)
    return torch.exp(-2j * math.pi / n * torch.outer(r, lag))


def _pixel_operators(
    signal: Tensor, coils: int, kernel: tuple[int, int], shape: tuple[int, int]
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the image and their G(r), (row * x, coil, coil), from W of one item, (m, m), with rows h^T."""
    k_y, k_x = kernel
    blocks = signal.reshape(coils, k_y, k_x, coils, k_y, k_x)
    lags = signal.new_zeros(2 * k_y - 1, 2 * k_x - 1, coils, coils)
    for y in range(k_y):
        for x in range(k_x):
            # element (a, b) multiplies exp(-2 pi i (b - a).r): it lies at lag b - a, lag 0 in the middle
            window = lags[k_y - 1 - y : 2 * k_y - 1 - y, k_x - 1 - x : 2 * k_x - 1 - x]
            window += blocks[:, y, x].permute(2, 3, 0, 1)
    waves_y, waves_x = (_waves(n, k).to(signal) for n, k in zip(shape, kernel, strict=True))
    lines = torch.einsum("xl,mlab->mxab", waves_x, lags).flatten(1) / (k_y * k_x)  # (lag, x * coil * coil)
    step = max(1, _ENTRIES[signal.device.type] // (coils**2 * shape[1]))
    for first in range(0, shape[0], step):
        rows = slice(first, first + step)
        yield rows, (waves_y[rows] @ lines).reshape(-1, coils, coils)


def _eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` of (n, coil, coil), some at a time, which bounds the memory of a GPU."""
    values, vectors = zip(*map(torch.linalg.eigh, torch.split(matrices, _SOLVED_AT_ONCE)), strict=True)
    return torch.cat(values), torch.cat(vectors)


def _leading_vectors(matrices: Tensor, start: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Eigenvalue (n, 1) and eigenvector (n, coil, 1) of the largest eigenvalue of (n, coil, coil).

    20 steps of the power iteration are enough nearly everywhere; the other pixels are solved exactly, but for those
    with an eigenvalue below `floor`, whose vector is not needed.
    """
    vector = start.reshape(1, -1, 1).expand(len(matrices), -1, -1)
    for _ in range(4):
        for _ in range(5):
            vector = matrices @ vector
        vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(1e-30)
    image = matrices @ vector
    value = (vector.conj() * image).real.sum(1)
    residual = (image - value.unsqueeze(-1) * vector).norm(dim=1)
    slow = ((residual > _EXACT) & (value + residual >= floor)).squeeze(1)
    if slow.any():
        values, vectors = _eigh(matrices[slow])
        value[slow], vector[slow] = values[:, -1:], vectors[..., -1:]
    return value, vector


def _enclosed(support: Tensor) -> Tensor:
    """Pixels (y, x) in the holes of `support`."""
    filled = torch.from_numpy(scipy.ndimage.binary_fill_holes(support.numpy(force=True)))
    return filled.to(support.device) & ~support


def _phase_reference(maps: Tensor, acs: Tensor) -> Tensor:
    """That one of the maps (batch, set, coil, y, x), for each set, that sees all of the object, (batch, set, 1, y, x).

    Its smallest |S_c| in the image of `acs` (batch, coil, ay, ax) through the set is the largest of all coils.
    """
    images = ifft2c(centre_fit(acs, (maps.shape[-2], maps.shape[-1])))
    combined = torch.einsum("bscyx,bcyx->bsyx", maps.conj(), images).abs().flatten(2)
    inside = combined >= _OBJECT * combined.quantile(0.99, dim=-1, keepdim=True)
    weakest = maps.abs().flatten(3).where(inside.unsqueeze(2), math.inf).amin(-1)
    return maps.take_along_dim(weakest.argmax(-1)[..., None, None, None], dim=2)


def espirit_maps(
    acs: Tensor,
    shape: tuple[int, int],
    sigma: float,
    *,
    sets: int | None = None,
    kernel: int = 6,
    least_snr: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Coil maps (batch, coil, y, x) and their eigenvalues (batch, y, x), in [0, 1].

    `acs` is the fully sampled centre of whitened k-space, (batch, coil, ay, ax), with noise std `sigma`. At every pixel
    sum_c |S_c|^2 is 1, or 0 where a signal could not reach `least_snr` times the noise, but for pixels that others
    enclose; `least_snr=0` keeps every pixel. The phase is that of the coil that sees everything best, whose map is real
    and positive: the image carries its phase.

    With `sets` an axis is added: (batch, set, coil, y, x) and (batch, set, y, x), in descending order of eigenvalues,
    each set cut by its own. Two sets, orthogonal at every pixel, describe a field of view into which the object wraps:
    two places share a pixel there, and one map cannot serve both.

    Raises ValueError when the region is too small, or for more sets than coils. The kernel shrinks to half the
    region's width before that happens.
    """
    batch, coils, a_y, a_x = acs.shape
    count = 1 if sets is None else sets
    if not 1 <= count <= coils:
        raise ValueError(f"expected 1 to {coils} sets of maps, as many as coils at most, found {count}")
    size = (min(kernel, a_y // 2 + 1), min(kernel, a_x // 2 + 1))
    if min(size) < 3:
        raise ValueError(f"coil maps need at least 4 x 4 calibration samples, found {a_y} x {a_x}")
    patches = (a_y - size[0] + 1) * (a_x - size[1] + 1)
    # Rows of A are neighbourhoods h^T without conjugation, so conj(W) filters the h themselves.
    signal = _signal_filter(calibration_gram(acs, size), patches, sigma).conj()

    flat = acs.flatten(2)
    start = torch.linalg.eigh(flat @ flat.mH)[1][..., -1]  # (batch, coil), the dominant virtual coil
    floor = 1 - 1 / least_snr**2 if least_snr > 1 else -1.0
    maps = acs.new_empty(batch, count, coils, *shape)
    eigenvalue = acs.real.new_empty(batch, count, *shape)
    for item in range(batch):
        for rows, pixels in _pixel_operators(signal[item], coils, size, shape):
            if count == 1:
                value, vector = _leading_vectors(pixels, start[item], floor)
            else:
                values, vectors = _eigh(pixels)
                value, vector = values[:, -count:].flip(-1), vectors[..., -count:].flip(-1)
            maps[item, :, :, rows] = vector.permute(2, 1, 0).reshape(count, coils, -1, shape[1])
            eigenvalue[item, :, rows] = value.T.reshape(count, -1, shape[1])
    kept = eigenvalue >= floor
    for item in range(batch):
        holes = _enclosed(kept[item, 0])
        kept[item, 0] |= holes
        if count == 1 and holes.any():  # their vectors were not needed before
            for rows, pixels in _pixel_operators(signal[item], coils, size, shape):
                if (inside := holes[rows]).any():
                    maps[item, 0, :, rows][:, inside] = _eigh(pixels[inside.flatten()])[1][..., -1].T
    maps = maps * kept.unsqueeze(2)
    maps = maps * torch.exp(-1j * _phase_reference(maps, acs).angle())
    return (maps[:, 0], eigenvalue[:, 0]) if sets is None else (maps, eigenvalue)


def second_share(acs: Tensor, sigma: float) -> float:
    """Share of the power of the image of `acs` (coil, ay, ax), noise std `sigma`, that a second set of maps holds.

    It is found on the matrix of `acs`, in a small part of the time that the maps take. 0 for a single coil.
    """
    if len(acs) < 2:
        return 0.0
    maps, _ = espirit_maps(acs[None], (acs.shape[-2], acs.shape[-1]), sigma, sets=2)
    images = ifft2c(acs)
    second = (maps[0, 1].conj() * images).sum(0)
    return float(second.norm() ** 2 / images.norm() ** 2)
