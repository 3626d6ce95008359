"""The wavelet transform against sigpy's, of even and odd images."""

from __future__ import annotations

import numpy as np
import pytest
import sigpy.linop
import torch

from mrgen.physics.wavelet import NAME, Wavelet


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(8, 6), (64, 60), (55, 60), (48, 97), (320, 368)])
def test_shrunk_coefficients_are_those_of_sigpy(shape: tuple[int, int]) -> None:
    """A soft threshold is no linear map, so that every coefficient has to be right, not their sum alone."""
    images, wavelet = noise(2, *shape), sigpy.linop.Wavelet((2, *shape), axes=(-2, -1), wave_name=NAME)

    def soft(c: torch.Tensor) -> torch.Tensor:
        return (c.abs() - 0.7).clamp_min(0) / c.abs() * c

    expected = wavelet.H(soft(torch.from_numpy(wavelet(images.numpy()))).nan_to_num().numpy())
    found = Wavelet.of(shape).shrink(images, soft)
    np.testing.assert_allclose(found.nan_to_num().numpy(), expected, atol=3e-6)
    assert np.abs(expected - images.numpy()).max() > 0.3


def test_the_transform_keeps_the_norm_and_is_undone_by_its_adjoint() -> None:
    images, parts = noise(3, 40, 52), []
    before = images.clone()

    def keep(c: torch.Tensor) -> torch.Tensor:
        parts.append(c.clone())
        return c.clone()

    wavelet = Wavelet.of((40, 52))
    torch.testing.assert_close(wavelet.shrink(images, keep), images, rtol=0, atol=3e-6)
    assert torch.equal(images, before)
    assert len(parts) == wavelet.levels + 1
    kept = parts[0].norm() ** 2 + sum(c.norm() ** 2 - c[..., 0, :, 0].norm() ** 2 for c in parts[1:])
    assert float(kept) == pytest.approx(float(images.norm() ** 2), rel=1e-5)
