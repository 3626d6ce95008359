"""The centred orthonormal transform against numpy, sigpy and fastMRI; crop and pad."""

import numpy as np
import pytest
import sigpy
import torch
from torch import Tensor

from mrgen.physics.fourier import centre_crop, centre_pad, fft2c, ifft2c

SIZES = [(8, 6), (7, 5), (5, 8), (1, 9), (64, 48)]


def image(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def numpy_fft2c(x: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(x, axes), norm="ortho"), axes)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_numpy_and_sigpy(size: tuple[int, int]) -> None:
    x = image((2, *size))
    k = fft2c(x)
    np.testing.assert_allclose(k.numpy(), numpy_fft2c(x.numpy()), atol=1e-12)
    np.testing.assert_allclose(k.numpy(), sigpy.fft(x.numpy(), axes=(-2, -1)), atol=1e-12)
    np.testing.assert_allclose(ifft2c(x).numpy(), sigpy.ifft(x.numpy(), axes=(-2, -1)), atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_fastmri(size: tuple[int, int]) -> None:
    fastmri = pytest.importorskip("fastmri", reason="fastmri is not installed", exc_type=ImportError)
    x = image((2, *size))
    expected = torch.view_as_complex(fastmri.fft2c(torch.view_as_real(x)).contiguous())
    torch.testing.assert_close(fft2c(x), expected)
    expected = torch.view_as_complex(fastmri.ifft2c(torch.view_as_real(x)).contiguous())
    torch.testing.assert_close(ifft2c(x), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_unitary(size: tuple[int, int]) -> None:
    x, y = image(size), image(size, 1)
    torch.testing.assert_close(ifft2c(fft2c(x)), x)
    torch.testing.assert_close(fft2c(ifft2c(x)), x)
    torch.testing.assert_close(
        torch.vdot(fft2c(x).flatten(), y.flatten()), torch.vdot(x.flatten(), ifft2c(y).flatten())
    )
    torch.testing.assert_close(fft2c(x).norm(), x.norm())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_both_sides_are_centred_at_half(size: tuple[int, int]) -> None:
    n_y, n_x = size
    delta = torch.zeros(size, dtype=torch.complex128)
    delta[n_y // 2, n_x // 2] = 1
    flat = torch.full(size, (n_y * n_x) ** -0.5, dtype=torch.complex128)
    torch.testing.assert_close(fft2c(delta), flat)
    torch.testing.assert_close(fft2c(flat), delta)


def test_mutant_fftshift_first_dies_at_odd_sizes() -> None:
    def mutant(x: np.ndarray) -> np.ndarray:
        return np.fft.fftshift(np.fft.fft2(np.fft.fftshift(x), norm="ortho"))

    even, odd = image((8, 6)), image((7, 5))
    assert np.allclose(mutant(even.numpy()), fft2c(even).numpy())
    assert not np.allclose(mutant(odd.numpy()), fft2c(odd).numpy())


@pytest.mark.parametrize(("large", "small"), [((8, 6), (4, 6)), ((9, 7), (4, 5)), ((8, 7), (5, 2)), ((5, 5), (5, 5))])
def test_crop_and_pad_are_adjoint_and_keep_the_centre(large: tuple[int, int], small: tuple[int, int]) -> None:
    x, y = image((3, *large)), image((3, *small), 1)
    cropped, padded = centre_crop(x, small), centre_pad(y, large)
    torch.testing.assert_close(torch.vdot(cropped.flatten(), y.flatten()), torch.vdot(x.flatten(), padded.flatten()))
    assert torch.equal(centre_crop(padded, small), y)
    assert torch.equal(cropped[..., small[0] // 2, small[1] // 2], x[..., large[0] // 2, large[1] // 2])
    np.testing.assert_array_equal(cropped.numpy(), sigpy.resize(x.numpy(), (3, *small)))
    np.testing.assert_array_equal(padded.numpy(), sigpy.resize(y.numpy(), (3, *large)))


def test_crop_refuses_to_grow() -> None:
    with pytest.raises(ValueError, match="cannot crop 4 x 6 to 5 x 6"):
        centre_crop(image((4, 6)), (5, 6))
    with pytest.raises(ValueError, match="cannot crop"):
        centre_pad(image((4, 6)), (4, 5))
