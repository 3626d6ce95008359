"""Coil maps by ESPIRiT (Uecker et al., Magn Reson Med 2014, doi 10.1002/mrm.24751).

k-space neighbourhoods of the calibration region (ACS) span a low-dimensional space; V are its singular
vectors. The local coil sensitivities at a pixel are the eigenvector, with eigenvalue near 1, of

    G(r) = (1 / k^2) sum_v v(r) v(r)^H,     v(r) = the kernel v transformed to the image

G(r) is a trigonometric polynomial: its (2k-1)^2 Fourier coefficients, summed over the kernels first, are
transformed once per coil pair, so the cost does not grow with the number of kernels. The dominant
eigenvector of each pixel is found by power iteration.
"""

import math

import torch
from torch import Tensor

from mrgen.physics.fourier import centre_pad, fft2c


def calibration_gram(acs: Tensor, kernel: tuple[int, int]) -> Tensor:
    """A^H A of the calibration matrix: (batch, m, m), m = coil * kernel area; rows of A are neighbourhoods."""
    patches = acs.unfold(-2, kernel[0], 1).unfold(-2, kernel[1], 1)  # (batch, coil, py, px, ky, kx)
    rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (batch, patch, m)
    return rows.mH @ rows


def _signal_projector(gram: Tensor, noise_edge: float) -> Tensor:
    """Projector (batch, m, m) on the singular vectors of A whose singular value exceeds `noise_edge`.

    The strongest vector is always kept, so that a region of pure noise still gives maps.
    """
    eigenvalues, vectors = torch.linalg.eigh(gram)
    limit = torch.minimum(torch.full_like(eigenvalues[:, -1:], noise_edge**2), eigenvalues[:, -1:])
    kept: Tensor = vectors * (eigenvalues >= limit).unsqueeze(1)
    return kept @ kept.mH


def _pixel_operator(projector: Tensor, coils: int, kernel: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """G(r), (batch, y, x, coil, coil), Hermitian with eigenvalues in [0, 1]."""
    k_y, k_x = kernel
    batch = projector.shape[0]
    blocks = projector.reshape(batch, coils, k_y, k_x, coils, k_y, k_x)
    lags = projector.new_zeros(batch, coils, coils, 2 * k_y - 1, 2 * k_x - 1)
    for y in range(k_y):
        for x in range(k_x):
            # element (a, b) multiplies exp(-2 pi i (b - a).r): it lies at lag b - a, lag 0 in the middle
            window = (slice(k_y - 1 - y, 2 * k_y - 1 - y), slice(k_x - 1 - x, 2 * k_x - 1 - x))
            lags[..., window[0], window[1]] += blocks[:, :, y, x]
    padded = centre_pad(lags, shape)
    scale = math.sqrt(shape[0] * shape[1]) / (k_y * k_x)
    return fft2c(padded).permute(0, 3, 4, 1, 2) * scale


def espirit_maps(
    acs: Tensor, shape: tuple[int, int], sigma: float, *, kernel: int = 6, iterations: int = 40
) -> tuple[Tensor, Tensor]:
    """Coil maps (batch, coil, y, x) with sum_c |S_c|^2 = 1, and the eigenvalue map (batch, y, x).

    `acs` is the fully sampled centre of whitened k-space, (batch, coil, ay, ax), with noise std `sigma`.
    Singular values up to sigma (sqrt(rows) + sqrt(columns)), the edge of a pure-noise calibration matrix,
    are taken for noise: no threshold has to be tuned. The phase is that of the calibration data's dominant
    virtual coil, so the maps are smooth and the image carries its phase. Raises ValueError when the region
    is too small; the kernel shrinks to half the region's width before that happens.
    """
    batch, coils, a_y, a_x = acs.shape
    size = (min(kernel, a_y // 2 + 1), min(kernel, a_x // 2 + 1))
    if min(size) < 3:
        raise ValueError(f"coil maps need at least 4 x 4 calibration samples, found {a_y} x {a_x}")
    rows, columns = (a_y - size[0] + 1) * (a_x - size[1] + 1), coils * size[0] * size[1]
    projector = _signal_projector(calibration_gram(acs, size), sigma * (rows**0.5 + columns**0.5))
    # Rows of A are neighbourhoods h^T without conjugation, so conj(V V^H) projects the h themselves.
    pixel = _pixel_operator(projector.conj(), coils, size, shape)

    flat = acs.flatten(2)
    dominant = torch.linalg.eigh(flat @ flat.mH)[1][..., -1]  # (batch, coil)
    vector = dominant.reshape(batch, 1, 1, coils, 1).expand(-1, *shape, -1, -1).clone()
    eigenvalue = vector.new_zeros(batch, *shape)
    for _ in range(iterations):
        vector = pixel @ vector
        norm = vector.norm(dim=-2, keepdim=True)
        vector = vector / norm.clamp_min(1e-12)
        eigenvalue = norm[..., 0, 0]
    maps = vector[..., 0].permute(0, 3, 1, 2)
    reference = torch.einsum("bc,bcyx->byx", dominant.conj(), maps).unsqueeze(1)
    maps = maps * torch.exp(-1j * reference.angle())
    return maps, eigenvalue.real
