"""Conjugate gradients for Hermitian positive definite H, complex-safe and batched.

Solves H x = b for each item of the leading axis with inner products <a, b> = sum conj(a) b and one step
size per item, so a batch gives what its items give one by one. (Hestenes and Stiefel 1952; the
preconditioned form of Saad, Iterative Methods, algorithm 9.1.)
"""

from collections.abc import Callable

import torch
from torch import Tensor


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> per item of the leading axis, real part, shaped to broadcast: (batch, 1, ..., 1)."""
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    iterations: int,
    start: Tensor | None = None,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 0.0,
    floor: float = 0.0,
) -> Tensor:
    """Approximate H^-1 rhs; `rhs` is (batch, ...), `normal` applies H to such a tensor.

    Stops after `iterations`, or when every item's residual norm is below `tolerance` times that of rhs.
    Items that have converged exactly stay as they are, and so does an item from the first direction p on with
    <p, H p> <= floor <p, p>: with a floor below the smallest eigenvalue, that tells an H that is not what it should be.
    """
    apply = precondition or (lambda r: r)
    x = torch.zeros_like(rhs) if start is None else start.clone()
    r = rhs - normal(x) if start is not None else rhs.clone()
    z = apply(r)
    p = z
    rho = inner(r, z)
    limit = tolerance**2 * inner(rhs, rhs)
    sound = torch.ones_like(rho, dtype=torch.bool)
    for _ in range(iterations):
        if tolerance > 0 and bool((inner(r, r) <= limit).all()):
            break
        q = normal(p)
        curvature = inner(p, q)
        sound = sound & (curvature > floor * inner(p, p))
        alpha = torch.where(sound, rho / curvature.clamp_min(1e-30), 0.0)
        x = x + alpha * p
        r = r - alpha * q
        z = apply(r)
        rho_next = inner(r, z)
        p = z + torch.where(rho > 0, rho_next / rho.clamp_min(1e-30), 0.0) * p
        rho = rho_next
    return x
