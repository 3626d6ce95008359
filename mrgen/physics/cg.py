"""Conjugate gradients for Hermitian positive definite H, complex-safe and batched.

Solves H x = b for each item of the leading axes with inner products <a, b> = sum conj(a) b and one step
size per item, so a batch gives what its items give one by one. (Hestenes and Stiefel 1952; the
preconditioned form of Saad, Iterative Methods, algorithm 9.1.)
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

LOOK_GPU = 3  # iterations between looks whether any item still moves


def _real(a: Tensor) -> Tensor:
    """The real numbers that a tensor is made of: of them Re <a, b> is the plain inner product."""
    return torch.view_as_real(a.resolve_conj()) if a.is_complex() else a


def inner(a: Tensor, b: Tensor, axes: int = 1) -> Tensor:
    """<a, b> per item of the leading `axes`, real part, shaped to broadcast: (batch, 1, ..., 1)."""
    return (_real(a) * _real(b)).flatten(axes).sum(-1).reshape(*a.shape[:axes], *[1] * (a.ndim - axes))


def _moved(a: Tensor, step: Tensor, b: Tensor, sign: int = 1) -> Tensor:
    """a + sign step b, with one real step per item, in one pass over memory."""
    if not a.is_complex():
        return torch.addcmul(a, step, b, value=sign)
    return torch.view_as_complex(torch.addcmul(_real(a), step.unsqueeze(-1), _real(b), value=sign))


def conjugate_gradient(
    normal: Callable[[Tensor], Tensor],
    rhs: Tensor,
    *,
    iterations: int,
    start: Tensor | None = None,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 0.0,
    floor: float = 0.0,
    image: Callable[[Tensor], Tensor] | None = None,
    settled: float = 0.0,
    axes: int = 1,
) -> Tensor:
    """Approximate H^-1 rhs; `rhs` is (batch, ...), with so many `axes` of items, `normal` applies H to such a tensor.

    With a linear `image` B, H is I + normal B, and the result is `start` + B H^-1 rhs, for what is wanted is B w and
    not w.

    Stops after `iterations`, or when every item's residual norm is below `tolerance` times that of rhs.
    Items that have converged exactly stay as they are, and so does an item from the first direction p on with
    <p, H p> <= floor <p, p>: with a floor below the smallest eigenvalue, that tells an H that is not what it should be.
    With `settled` an item also stays as it is from the first iteration on that changed it, in norm, by less than that
    share of itself, whatever the others need. On a GPU, whether all stay is asked now and then, as it has to be waited
    for; the answer changes the time only.
    """
    apply = precondition or (lambda r: r)
    dot = partial(inner, axes=axes)
    x = torch.zeros_like(rhs) if start is None else start
    r = rhs if start is None or image is not None else rhs - normal(start)
    z = p = apply(r)
    rho = dot(r, z)
    limit = tolerance**2 * dot(rhs, rhs)
    sound = torch.ones_like(rho, dtype=torch.bool)
    for step in range(iterations):
        if tolerance > 0 and bool((dot(r, r) <= limit).all()):
            break
        moves = p if image is None else image(p)
        q = normal(p) if image is None else p + normal(moves)
        curvature = dot(p, q)
        sound = sound & (curvature > (floor * dot(p, p) if floor else 0))
        alpha = torch.where(sound, rho / curvature, 0)
        x = _moved(x, alpha, moves)
        if settled > 0:
            sound = sound & (alpha.square() * dot(moves, moves) > settled**2 * dot(x, x))
        asked = settled > 0 and (step + 1) % (LOOK_GPU if rhs.is_cuda else 1) == 0
        if step + 1 == iterations or (asked and not bool(sound.any())):
            break
        r = _moved(r, alpha, q, -1)
        z = apply(r)
        rho_next = dot(r, z)
        p = _moved(z, torch.where(rho > 0, rho_next / rho, 0), p)
        rho = rho_next
    return x
