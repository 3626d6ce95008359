"""Classical reconstructions of a prepared slice, the baselines beside every posterior mean.

For y = A x + z, A = M F S:

    zero-filled   A^H y
    CG-SENSE      argmin_x ||A x - y||^2 + lambda ||x||^2          (Pruessmann et al. 2001, doi 10.1002/mrm.1241)
    L1-wavelet    argmin_x 1/2 ||A x - y||^2 + lambda ||W x||_1    (Lustig et al. 2007, doi 10.1002/mrm.21391)

All return the complex image (y, x) in scaled units. k-space is scaled so that intensities are near [0, 1], and
lambda is in those units: the same value means the same for every scan.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.scans.scan import Slice


def zero_filled(slice_: Slice) -> Tensor:
    """A^H y, (y, x)."""
    return slice_.operator().adjoint(slice_.kspace)


def cg_sense(slice_: Slice, regularisation: float, iterations: int) -> Tensor:
    """Least squares with a Tikhonov term, (y, x); few iterations regularise as well."""
    operator = slice_.operator()
    return conjugate_gradient(
        lambda x: operator.normal(x) + regularisation * x,
        operator.adjoint(slice_.kspace).unsqueeze(0),
        iterations=iterations,
    )[0]


def l1_wavelet(slice_: Slice, regularisation: float, iterations: int) -> Tensor:
    """Sparsity in orthogonal wavelets (db4), (y, x), by sigpy's FISTA on the CPU."""
    from sigpy.mri.app import L1WaveletRecon  # here, as it takes seconds to import

    kspace = slice_.kspace.numpy(force=True)
    weights = slice_.mask.expand(kspace.shape[-2:]).numpy(force=True)  # else sigpy takes exact zeros for unsampled
    app = L1WaveletRecon(
        kspace,
        slice_.maps.numpy(force=True),
        regularisation,
        weights=weights,
        alpha=1.0,  # ||A|| <= 1, as the maps have unit norm: no power iteration from a random start
        max_iter=iterations,
        show_pbar=False,
    )
    return torch.as_tensor(app.run()).to(slice_.kspace)
