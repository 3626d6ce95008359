"""Coil compression: fewer virtual coils that carry nearly all of the signal (Buehrer et al., Magn Reson Med 2007,
doi 10.1002/mrm.21237; Huang et al., Magn Reson Imaging 2008, doi 10.1016/j.mri.2007.04.010).

    k' = V k,    V V^H = I,    rows of V: the strongest eigenvectors of the coil covariance sum_k k k^H

V is orthonormal, so white noise stays white with the same std: compress after whitening, never before.
"""

import torch
from torch import Tensor


def compression_matrix(
    kspace: Tensor, *, coils: int | None = None, energy: float | None = None
) -> tuple[Tensor, float]:
    """V (virtual coil, coil), strongest first, and the share of the energy of `kspace` that it keeps.

    `kspace` (..., coil, ky, kx) is whitened calibration data; leading axes (slices) share one V. Give either the number
    of virtual `coils` or the share of the `energy` to keep, which takes the smallest number of coils that keeps it.
    The noise counts as energy too. Raises ValueError when not exactly one is given or when it is out of range.
    """
    available = kspace.shape[-3]
    if (coils is None) == (energy is None):
        raise ValueError("expected either a number of virtual coils or a share of the energy, not both or none")
    samples = kspace.movedim(-3, 0).flatten(1)
    power, vectors = torch.linalg.eigh(samples @ samples.mH)
    kept = power.flip(0).clamp_min(0).cumsum(0)
    kept = kept / kept[-1]
    if energy is not None:
        if not 0 < energy <= 1:
            raise ValueError(f"expected a share of the energy above 0 and at most 1, found {energy:g}")
        coils = min(int((kept < energy).sum()) + 1, available)
    assert coils is not None
    if not 1 <= coils <= available:
        raise ValueError(f"expected 1 to {available} virtual coils, found {coils}")
    return vectors.flip(1)[:, :coils].mH.contiguous(), float(kept[coils - 1])
