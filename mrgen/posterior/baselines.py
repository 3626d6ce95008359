"""Classical reconstructions of a prepared slice, the baselines beside every posterior mean.

For y = A x + z, A = M F S:

    zero-filled   A^H y
    CG-SENSE      argmin_x ||A x - y||^2 + lambda ||x||^2          (Pruessmann et al. 2001, doi 10.1002/mrm.1241)
    L1-wavelet    argmin_x 1/2 ||A x - y||^2 + lambda ||W x||_1    (Lustig et al. 2007, doi 10.1002/mrm.21391)
    TV            argmin_x 1/2 ||A x - y||^2 + lambda ||G x||_1    (Block et al. 2007, doi 10.1002/mrm.21236)

with W an orthogonal wavelet transform and G the differences of neighbours along y and along x. The modulus is taken of
each complex coefficient and of each difference, so TV is the anisotropic one. mrgen.posterior.regularisation chooses
lambda, mrgen.posterior.splitting has the methods with a learned denoiser.

All return the complex image (y, x) in scaled units, which is 0 where no coil has a map: A sees nothing there, and
what a penalty would continue into that region is not measured. With several sets of maps (mrgen.posterior.sets) all
images are solved for together, (set, y, x), and the penalty is the sum of those of each.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.repeated import repeated
from mrgen.physics.wavelet import Wavelet
from mrgen.scans.scan import Slice

DUAL_STEP = 1 / 80  # of the differences, that of the data being 1; with 1 for both 200 iterations are far from the end
TINY = 1e-30  # for wavelet coefficients that are 0


def zero_filled(slice_: Slice) -> Tensor:
    """A^H y, (y, x)."""
    return slice_.operator().adjoint(slice_.kspace)


def cg_sense(slice_: Slice, regularisation: float, iterations: int) -> Tensor:
    """Least squares with a Tikhonov term, (y, x); few iterations regularise as well."""
    normal = slice_.normal()
    return conjugate_gradient(
        lambda x: normal(x) + regularisation * x,
        zero_filled(slice_).unsqueeze(0),
        iterations=iterations,
    )[0]


def l1_wavelet(slice_: Slice, regularisation: float, iterations: int) -> Tensor:
    """Sparsity in orthogonal wavelets (db4), (y, x), by FISTA (Beck & Teboulle 2009, doi 10.1137/080716542)."""
    data, shape = zero_filled(slice_), _shape(slice_)
    normal = slice_.normal() if slice_.sets == 1 else slice_.operator().normal  # matrices for several sets are large
    wavelet = Wavelet.of(shape[1:], data.device)

    def soft(c: Tensor) -> Tensor:
        size = c.abs()
        return (size - regularisation).clamp_min(0) / size.clamp_min(TINY) * c

    def step(before: Tensor, z: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        x = z + data - normal(z[None])[0]  # a step of 1, as ||A|| <= 1: the maps have unit norm
        x = wavelet.shrink(x.reshape(shape), soft).reshape(data.shape)
        return x, x + momentum * (x - before)

    start = torch.zeros_like(data)
    x, _ = repeated(step, (start, start), _momenta(iterations).to(data.device))
    return x * slice_.support


def _momenta(iterations: int) -> Tensor:
    """(t_k - 1) / t_(k + 1) of FISTA, with t_1 = 1 and t_(k + 1) = (1 + sqrt(1 + 4 t_k^2)) / 2."""
    t = [1.0]
    for _ in range(iterations):
        t.append((1 + math.sqrt(1 + 4 * t[-1] ** 2)) / 2)
    return torch.tensor([(now - 1) / after for now, after in pairwise(t)])


def total_variation(slice_: Slice, regularisation: float, iterations: int) -> Tensor:
    """Sparse differences, (y, x), by sigpy's primal-dual hybrid gradients on the CPU."""
    from sigpy import linop, prox  # here, as they take seconds to import
    from sigpy.app import LinearLeastSquares

    coils, sets, n_y, n_x = len(slice_.kspace), *_shape(slice_)
    images = linop.Reshape((sets, 1, n_y, n_x), (sets, n_y, n_x))
    maps = linop.Multiply(images.oshape, slice_.maps.reshape(sets, coils, n_y, n_x).numpy(force=True))
    fourier = linop.FFT((coils, n_y, n_x), axes=(-2, -1)) * linop.Sum(maps.oshape, axes=(0,))
    mask = linop.Multiply(fourier.oshape, slice_.mask.expand(n_y, n_x).numpy(force=True))
    differences = linop.FiniteDifference(images.ishape, axes=(-2, -1))
    # tau (||A||^2 + DUAL_STEP ||G||^2) <= 1, as ||A||^2 <= 1 and ||G||^2 <= 8: no power iteration
    dual = np.full(slice_.kspace.numel() + 2 * slice_.support.numel(), DUAL_STEP, dtype=np.float32)
    dual[: slice_.kspace.numel()] = 1
    solver = LinearLeastSquares(
        mask * fourier * maps * images,
        slice_.kspace.numpy(force=True),
        proxg=prox.L1Reg(differences.oshape, regularisation),
        G=differences,
        tau=1 / (1 + 8 * DUAL_STEP),
        sigma=dual,
        max_iter=iterations,
        show_pbar=False,
    )
    return torch.as_tensor(solver.run()).to(slice_.kspace).reshape(slice_.support.shape) * slice_.support


def _shape(slice_: Slice) -> tuple[int, int, int]:
    """(set, y, x), also for one set."""
    return slice_.sets, slice_.kspace.shape[-2], slice_.kspace.shape[-1]
