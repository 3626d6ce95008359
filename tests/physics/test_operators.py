"""Every operator, at odd, even and non-square sizes and in both precisions, through one list of checks.

The reference is the matrix written out from the formulas in numpy. The mutants at the end show that the
checks can fail.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mrgen.physics.fourier import AXES
from mrgen.physics.operators import (
    Coils,
    Composition,
    Fourier,
    LinearOperator,
    Lines,
    Mask,
    line_normal,
    sense,
    sense_normal,
    sense_points,
)

Shape = tuple[int, ...]
Factory = Callable[[Shape, torch.dtype], LinearOperator]
COILS = 3
SIZES = [(8, 6), (7, 5), (5, 8), (6, 1)]
DTYPES = [torch.complex64, torch.complex128]


def complex_normal(shape: Shape, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def line_mask(shape: Shape) -> Tensor:
    """Every other line, and its neighbour at the centre; (1, kx)."""
    mask = (torch.arange(shape[-1]) % 2 == 0).float()
    mask[shape[-1] // 2] = 1
    return mask.unsqueeze(0)


def point_mask(shape: Shape) -> Tensor:
    return (complex_normal(shape, seed=3).real > 0).float()


FACTORIES: dict[str, Factory] = {
    "fourier": lambda s, d: Fourier(s),
    "fourier of coil images": lambda s, d: Fourier((COILS, *s)),
    "coils": lambda s, d: Coils(complex_normal((COILS, *s), d)),
    "lines": lambda s, d: Lines(line_mask(s)[0], (COILS, *s)),
    "mask of lines": lambda s, d: Mask(line_mask(s), s),
    "mask of points": lambda s, d: Mask(point_mask(s), (COILS, *s)),
    "composition": lambda s, d: Fourier((COILS, *s)) @ Coils(complex_normal((COILS, *s), d)),
    "sense": lambda s, d: sense(complex_normal((COILS, *s), d), line_mask(s)),
    "sense, 2-D mask": lambda s, d: sense(complex_normal((COILS, *s), d), point_mask(s)),
}


@pytest.fixture(params=FACTORIES)
def factory(request: pytest.FixtureRequest) -> Factory:
    return FACTORIES[request.param]


def close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-5 if a.dtype in (torch.complex64, torch.float32) else 1e-12
    return bool((a - b).norm() <= tolerance * (1 + b.norm()))


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).sum()


def is_linear(op: LinearOperator, dtype: torch.dtype) -> bool:
    a, b = 2.0 - 1.5j, -0.3 + 0.7j
    u, v = complex_normal(op.domain, dtype, 1), complex_normal(op.domain, dtype, 2)
    return close(op.forward(a * u + b * v), a * op.forward(u) + b * op.forward(v))


def is_adjoint(op: LinearOperator, dtype: torch.dtype) -> bool:
    x, y = complex_normal(op.domain, dtype, 1), complex_normal(op.range_, dtype, 2)
    return close(inner(op.forward(x), y), inner(x, op.adjoint(y)))


def gradient_is_adjoint(op: LinearOperator, dtype: torch.dtype) -> bool:
    x, y = complex_normal(op.domain, dtype, 1).requires_grad_(), complex_normal(op.range_, dtype, 2)
    inner(y, op.forward(x)).real.backward()
    assert x.grad is not None
    return close(x.grad, op.adjoint(y))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_operator(factory: Factory, size: Shape, dtype: torch.dtype) -> None:
    op = factory(size, dtype)
    x, y = complex_normal(op.domain, dtype, 1), complex_normal(op.range_, dtype, 2)
    assert op.forward(x).shape == op.range_
    assert op.adjoint(y).shape == op.domain
    assert op.forward(x).dtype == op.adjoint(y).dtype == dtype
    assert is_linear(op, dtype)
    assert is_adjoint(op, dtype)
    assert gradient_is_adjoint(op, dtype)
    assert close(op.normal(x), op.adjoint(op.forward(x)))
    assert torch.equal(op(x), op.forward(x))
    assert close(op.dense().to(dtype) @ x.flatten(), op.forward(x).flatten())


def test_a_batch_is_its_items(factory: Factory) -> None:
    op = factory((8, 6), torch.complex128)
    x, y = complex_normal((2, 4, *op.domain)), complex_normal((2, 4, *op.range_))
    assert close(op.forward(x)[1, 2], op.forward(x[1, 2]))
    assert close(op.adjoint(y)[1, 2], op.adjoint(y[1, 2]))


def dft_matrix(n: int) -> np.ndarray:
    r = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(r, r) / n) / np.sqrt(n)


def sense_matrix(maps: Tensor, mask: Tensor) -> np.ndarray:
    """M F S written out: (coil * ky * kx, y * x)."""
    n_y, n_x = maps.shape[-2:]
    fourier = np.kron(dft_matrix(n_y), dft_matrix(n_x))
    rows = mask.expand(n_y, n_x).reshape(-1, 1).numpy()
    return np.concatenate([rows * fourier * m.reshape(1, -1) for m in maps.numpy()])


@pytest.mark.parametrize("size", [(8, 6), (7, 5)], ids=str)
@pytest.mark.parametrize("make_mask", [line_mask, point_mask])
def test_sense_is_its_matrix(size: Shape, make_mask: Callable[[Shape], Tensor]) -> None:
    maps, mask = complex_normal((COILS, *size)), make_mask(size)
    expected = sense_matrix(maps, mask)
    np.testing.assert_allclose(sense(maps, mask).dense().numpy(), expected, atol=1e-12)
    y = complex_normal((COILS, *size), seed=5)
    by_hand = expected.conj().T @ y.flatten().numpy()
    np.testing.assert_allclose(sense(maps, mask).adjoint(y).flatten().numpy(), by_hand, atol=1e-12)


def test_a_batch_of_maps_and_masks() -> None:
    maps, masks = complex_normal((2, COILS, 8, 6)), torch.stack([line_mask((8, 6)), point_mask((8, 6))[:1]])
    x = complex_normal((2, 8, 6), seed=1)
    together = sense(maps, masks.unsqueeze(1)).normal(x)
    for i in range(2):
        assert close(together[i], sense(maps[i], masks[i]).normal(x[i]))


@pytest.mark.parametrize(
    "make_mask", [lambda s: line_mask(s)[0], line_mask, point_mask], ids=["(kx)", "(1, kx)", "2-D"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_fast_normal_operator_is_that_of_sense(
    size: Shape, dtype: torch.dtype, make_mask: Callable[[Shape], Tensor]
) -> None:
    maps, mask, x = complex_normal((COILS, *size), dtype), make_mask(size), complex_normal((4, *size), dtype, 1)
    fast = sense_normal(maps, mask)(x)
    assert (fast.shape, fast.dtype) == (x.shape, dtype)
    assert close(fast, sense(maps, mask).normal(x))
    assert close(sense_normal(maps, mask)(x[2:3])[0], fast[2]), "a batch is its items"


@pytest.mark.parametrize("make_mask", [lambda s: line_mask(s)[0], point_mask], ids=["(kx)", "2-D"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_sampled_columns_are_those_of_sense(size: Shape, make_mask: Callable[[Shape], Tensor]) -> None:
    maps, mask, x = complex_normal((COILS, *size)), make_mask(size), complex_normal((4, *size), seed=1)
    operator, columns = sense_points(maps, mask)
    whole = sense(maps, mask).forward(x)
    assert close(operator.forward(x), whole[..., columns])
    assert close(operator.adjoint(whole[..., columns]), sense(maps, mask).adjoint(whole))
    assert whole[..., columns].norm() == pytest.approx(float(whole.norm()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_normal_operator_of_lines_is_that_of_sense(size: Shape, dtype: torch.dtype) -> None:
    maps, x = complex_normal((4, COILS, *size), dtype), complex_normal((4, *size), dtype, 1)
    masks = (complex_normal((4, 1, 1, size[-1]), seed=2).real > 0).float()
    fast = line_normal(maps, masks)(x)
    assert (fast.shape, fast.dtype) == (x.shape, dtype)
    assert close(fast, sense(maps, masks).normal(x))


def test_unit_norm_maps_make_the_normal_operator_a_contraction() -> None:
    maps = complex_normal((COILS, 8, 6))
    maps = maps / maps.norm(dim=0)
    matrix = sense(maps, torch.ones(1, 6)).dense()
    assert close(matrix.mH @ matrix, torch.eye(48, dtype=torch.complex128))
    assert torch.linalg.matrix_norm(sense(maps, line_mask((8, 6))).dense(), 2) <= 1 + 1e-12


def test_composition_refuses_shapes_that_do_not_meet() -> None:
    with pytest.raises(ValueError, match=r"left takes \(8, 6\), right gives \(3, 8, 6\)"):
        Fourier((8, 6)) @ Coils(complex_normal((COILS, 8, 6)))
    chain = Mask(line_mask((8, 6)), (COILS, 8, 6)) @ Fourier((COILS, 8, 6)) @ Coils(complex_normal((COILS, 8, 6)))
    assert isinstance(chain, Composition)
    assert (chain.domain, chain.range_) == ((8, 6), (COILS, 8, 6))


def test_the_base_class_names_what_is_missing() -> None:
    class Nothing(LinearOperator):
        domain = range_ = (2,)

    with pytest.raises(TypeError, match="Nothing defines no forward"):
        Nothing().forward(torch.zeros(2))
    with pytest.raises(TypeError, match="Nothing defines no adjoint"):
        Nothing().adjoint(torch.zeros(2))


# Mutants: each breaks one thing, and the check above that guards it says so.


class UnconjugatedCoils(Coils):
    def adjoint(self, y: Tensor) -> Tensor:
        return (self.maps * y).sum(-3)


class SwappedShifts(Fourier):
    def forward(self, x: Tensor) -> Tensor:
        shifted = torch.fft.fftshift(x, dim=AXES)
        return torch.fft.ifftshift(torch.fft.fft2(shifted, norm="ortho"), dim=AXES)


class Unscaled(Fourier):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_mutant_adjoint_without_conjugate_dies() -> None:
    mutant = UnconjugatedCoils(complex_normal((COILS, 8, 6)))
    assert not is_adjoint(mutant, torch.complex128)
    assert not gradient_is_adjoint(mutant, torch.complex128)


def test_mutant_swapped_shifts_dies_at_odd_sizes() -> None:
    assert is_adjoint(SwappedShifts((8, 6)), torch.complex128), "at even sizes the two shifts are the same"
    assert not is_adjoint(SwappedShifts((7, 5)), torch.complex128)


def test_mutant_wrong_scale_dies() -> None:
    assert not is_adjoint(Unscaled((8, 6)), torch.complex128)


def test_mutant_complemented_mask_dies() -> None:
    # A projection is its own adjoint, so only the written-out matrix can tell.
    maps, mask = complex_normal((COILS, 8, 6)), line_mask((8, 6))
    mutant = sense(maps, 1 - mask)
    assert is_adjoint(mutant, torch.complex128)
    assert not np.allclose(mutant.dense().numpy(), sense_matrix(maps, mask))


def test_several_sets_of_maps_sum_their_images_and_the_fast_normal_is_the_plain_one() -> None:
    g = torch.Generator().manual_seed(3)
    maps = torch.randn(2, 3, 8, 6, dtype=torch.complex128, generator=g)
    x, other = torch.randn(2, 5, 2, 8, 6, dtype=torch.complex128, generator=g)
    lines, points = (torch.arange(6) % 2 == 0).double(), (torch.rand(8, 6, generator=g) < 0.5).double()
    for mask in (lines, points):
        operator = sense(maps, mask, sets=True)
        y = operator.forward(x)
        torch.testing.assert_close(y, sense(maps[0], mask).forward(x[:, 0]) + sense(maps[1], mask).forward(x[:, 1]))
        z = torch.randn(y.shape, dtype=y.dtype, generator=g)
        left, right = (z.conj() * y).sum(), (operator.adjoint(z).conj() * x).sum()
        torch.testing.assert_close(left, right)
        torch.testing.assert_close(sense_normal(maps, mask, sets=True)(other), operator.normal(other))
