"""Conjugate gradients against numpy.linalg.solve, and what makes them safe for complex batches."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import mrgen.physics.cg as cg
from mrgen.physics.cg import conjugate_gradient

N = 12


def systems(batch: int, spread: float = 30.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Hermitian positive definite H (batch, N, N), eigenvalues 1 to `spread`, and right-hand sides (batch, N)."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(batch, N, N, dtype=torch.complex128, generator=generator))
    eigenvalues = torch.logspace(0, np.log10(spread), N, dtype=torch.float64)
    rhs = torch.randn(batch, N, dtype=torch.complex128, generator=generator)
    return basis @ torch.diag(eigenvalues).to(basis) @ basis.mH, rhs


def applies(matrices: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (matrices @ x.unsqueeze(-1)).squeeze(-1)


def test_solves_complex_hermitian_systems() -> None:
    matrices, rhs = systems(5)
    found = conjugate_gradient(applies(matrices), rhs, iterations=2 * N)
    expected = np.linalg.solve(matrices.numpy(), rhs.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_solves_real_systems() -> None:
    matrix = torch.tensor([[[4.0, 1.0], [1.0, 3.0]]], dtype=torch.float64)
    found = conjugate_gradient(applies(matrix), torch.tensor([[1.0, 2.0]], dtype=torch.float64), iterations=2)
    torch.testing.assert_close(found, torch.tensor([[1 / 11, 7 / 11]], dtype=torch.float64))


def test_is_exact_after_as_many_steps_as_distinct_eigenvalues() -> None:
    matrices, rhs = systems(1)
    matrices = torch.eye(N, dtype=torch.complex128) * 2 + 3 * torch.outer(rhs[0].conj(), rhs[0]).mH / rhs.norm() ** 2
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(1, N, dtype=torch.complex128, generator=generator)
    found = conjugate_gradient(applies(matrices), b, iterations=2)
    torch.testing.assert_close(applies(matrices)(found), b)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_batch_is_its_items(steps: int) -> None:
    matrices, rhs = systems(4)
    rhs = rhs * torch.logspace(-3, 3, 4).unsqueeze(1)  # items that differ, so that a shared step size shows
    together = conjugate_gradient(applies(matrices), rhs, iterations=steps)
    for i in range(4):
        alone = conjugate_gradient(applies(matrices[i : i + 1]), rhs[i : i + 1], iterations=steps)
        torch.testing.assert_close(together[i], alone[0])


def test_items_may_lie_along_two_axes() -> None:
    matrices, rhs = systems(6)
    rhs = rhs * torch.logspace(-3, 3, 6).unsqueeze(1)
    flat = conjugate_gradient(applies(matrices), rhs, iterations=8, settled=0.1)
    matrices, rhs = matrices.unflatten(0, (2, 3)), rhs.unflatten(0, (2, 3))
    found = conjugate_gradient(applies(matrices), rhs, iterations=8, settled=0.1, axes=2)
    torch.testing.assert_close(found.flatten(0, 1), flat)


def test_converged_and_zero_items_stay_put() -> None:
    matrices, rhs = systems(3)
    rhs[1] = 0
    found = conjugate_gradient(applies(matrices), rhs, iterations=200)
    assert torch.isfinite(torch.view_as_real(found)).all()
    assert torch.equal(found[1], torch.zeros_like(found[1]))
    torch.testing.assert_close(applies(matrices)(found), rhs)


def test_preconditioner_reaches_the_same_solution_sooner() -> None:
    matrices, rhs = systems(2, spread=3.0)
    scale = torch.logspace(0, 2, N, dtype=torch.float64).to(matrices.dtype)
    matrices = scale[:, None] * matrices * scale[None, :]  # badly scaled, condition number near 3e4
    diagonal = torch.diagonal(matrices, dim1=-2, dim2=-1)
    exact = torch.linalg.solve(matrices, rhs)

    def solve(steps: int, precondition: Callable[[Tensor], Tensor] | None) -> Tensor:
        return conjugate_gradient(applies(matrices), rhs, iterations=steps, precondition=precondition)

    def error(x: Tensor) -> float:
        return float((x - exact).norm() / exact.norm())

    assert error(solve(300, None)) < 1e-8
    assert error(solve(300, lambda r: r / diagonal)) < 1e-8
    assert error(solve(8, lambda r: r / diagonal)) < 0.1 * error(solve(8, None))


def test_start_is_used_and_left_alone() -> None:
    matrices, rhs = systems(2)
    exact = torch.linalg.solve(matrices, rhs)
    torch.testing.assert_close(conjugate_gradient(applies(matrices), rhs, iterations=0, start=exact), exact)
    torch.testing.assert_close(conjugate_gradient(applies(matrices), rhs, iterations=3, start=exact), exact)
    start, before = torch.ones_like(rhs), rhs.clone()
    found = conjugate_gradient(applies(matrices), rhs, iterations=2 * N, start=start)
    torch.testing.assert_close(found, exact)
    assert torch.equal(start, torch.ones_like(rhs))
    assert torch.equal(rhs, before)


def test_tolerance_stops_when_every_item_is_there() -> None:
    matrices, rhs = systems(2)
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return applies(matrices)(x)

    found = conjugate_gradient(counted, rhs, iterations=100, tolerance=1e-3)
    assert 0 < calls <= N
    residual = (rhs - applies(matrices)(found)).norm(dim=1) / rhs.norm(dim=1)
    assert (residual <= 1e-3).all()


def test_the_image_of_a_solution_is_added_to_the_start() -> None:
    """H = I + N B with B a wide matrix, and N its adjoint: B H^-1 rhs from the dense matrices."""
    generator = torch.Generator().manual_seed(3)
    b = torch.randn(2, 3, N, dtype=torch.complex128, generator=generator)
    rhs = torch.randn(2, N, dtype=torch.complex128, generator=generator)
    start = torch.randn(2, 3, dtype=torch.complex128, generator=generator)
    exact = b @ torch.linalg.solve(torch.eye(N) + b.mH @ b, rhs[..., None])
    found = conjugate_gradient(applies(b.mH), rhs, iterations=N, start=start, image=applies(b))
    torch.testing.assert_close(found, start + exact[..., 0])


def test_an_item_that_has_settled_stays_whatever_the_others_need() -> None:
    """The first system is solved in two iterations, the other needs many."""
    matrices, rhs = systems(2)
    matrices[0] = torch.eye(N) * torch.tensor([2.0] * (N // 2) + [3.0] * (N - N // 2))
    calls = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return applies(matrices)(x)

    together = conjugate_gradient(counted, rhs, iterations=100, settled=0.2)
    assert 3 < calls < 100
    alone = conjugate_gradient(applies(matrices[:1]), rhs[:1], iterations=100, settled=0.2)
    assert torch.equal(together[:1], alone)
    steps = [conjugate_gradient(applies(matrices[1:]), rhs[1:], iterations=k) for k in range(calls + 1)]
    changes = [float((b - a).norm() / b.norm()) for a, b in pairwise(steps)]
    assert changes[-1] < 0.2 <= min(changes[:-1])
    torch.testing.assert_close(together[1:], steps[-1])


# Mutants of the inner product.


def test_mutant_unconjugated_inner_product_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    # b^T b = 0 although b is not zero: without the conjugate the first step has length zero.
    matrix = torch.tensor([[[2, 1j], [-1j, 3]]], dtype=torch.complex128)
    rhs = torch.tensor([[1, 1j]], dtype=torch.complex128)
    exact = torch.linalg.solve(matrix, rhs)
    torch.testing.assert_close(conjugate_gradient(applies(matrix), rhs, iterations=2), exact)
    monkeypatch.setattr(cg, "inner", lambda a, b, axes: (a * b).flatten(1).sum(1).real.reshape(-1, 1))
    assert not torch.allclose(conjugate_gradient(applies(matrix), rhs, iterations=2), exact)


def test_mutant_one_step_size_for_the_batch_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices, rhs = systems(2)
    alone = conjugate_gradient(applies(matrices[:1]), rhs[:1], iterations=3)
    monkeypatch.setattr(cg, "inner", lambda a, b, axes: (a.conj() * b).real.sum())
    together = conjugate_gradient(applies(matrices), rhs, iterations=3)
    assert not torch.allclose(together[:1], alone)
