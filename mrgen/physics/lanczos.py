"""The inverse root of a Hermitian positive definite operator, applied to a vector, by Lanczos' method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrgen.physics.cg import inner


def inverse_root(operator: Callable[[Tensor], Tensor], w: Tensor, iterations: int) -> Tensor:
    """H^(-1/2) w for each item of a batch, w (batch, ...), with H = `operator`.

    After m steps of Lanczos' recursion H V = V T + (what is orthogonal to V), V (N, m) with V e_1 = w / |w|, and

        H^(-1/2) w ~ |w| V T^(-1/2) e_1

    whose error falls as that of conjugate gradients (Higham, Functions of Matrices, 2008, section 13.2).
    """
    alphas, betas, basis = [], [], []

    norm = inner(w, w).sqrt().clamp_min(torch.finfo(w.real.dtype).tiny)
    v, before, beta = w / norm, torch.zeros_like(w), torch.zeros_like(norm)
    for _ in range(iterations):
        basis.append(v)
        u = operator(v) - beta * before
        alphas.append(inner(v, u))
        u = u - alphas[-1] * v
        beta = inner(u, u).sqrt()
        betas.append(beta)
        before, v = v, u / beta.clamp_min(1e-6)
    diagonal, beside = (torch.cat([x.reshape(-1, 1) for x in xs], 1).double() for xs in (alphas, betas))
    t = torch.diag_embed(diagonal) + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    values, vectors = torch.linalg.eigh(t)
    floor = (1e-6 * values[:, -1:]).clamp_min(torch.finfo(torch.double).tiny)  # what was not there has no direction
    weights = (vectors * values.maximum(floor).rsqrt()[:, None] @ vectors[:, :1].mT)[..., 0].to(norm.dtype)
    root = torch.zeros_like(w)
    for weight, v in zip(weights.T, basis, strict=True):
        root = root + weight.reshape(norm.shape) * v
    return norm * root
