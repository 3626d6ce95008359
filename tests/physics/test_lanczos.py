"""H^(-1/2) w against the eigenvectors of H."""

import torch

from mrgen.physics.lanczos import inverse_root
from mrgen.physics.operators import sense


def test_it_is_the_root_of_the_dense_inverse_for_each_item() -> None:
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 8, 6, dtype=torch.complex128, generator=g)
    a = sense(maps / maps.norm(dim=0), torch.tensor([1.0, 0, 1, 1, 0, 0]).double())
    w = torch.randn(4, 8, 6, dtype=torch.complex128, generator=g) * torch.tensor([1, 1e3, 1e-3, 0])[:, None, None]

    def h(x: torch.Tensor) -> torch.Tensor:
        return a.normal(x) + 0.03 * x

    dense = a.dense().mH @ a.dense() + 0.03 * torch.eye(48)
    values, vectors = torch.linalg.eigh(dense)
    expected = (w.flatten(1) @ (vectors * values.rsqrt() @ vectors.mH).mT).reshape(w.shape)
    found = inverse_root(h, w, 25)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(inverse_root(h, w[1:2], 25), found[1:2])


def test_an_eigenvector_takes_one_iteration_and_keeps_its_root() -> None:
    w = torch.ones(1, 4, 4, dtype=torch.complex64)
    torch.testing.assert_close(inverse_root(lambda x: 4 * x, w, 9), w / 2)
