"""Centred, orthonormal Fourier transforms over the last two axes.

    (F x)_k = (N_y N_x)^(-1/2) sum_r x_r exp(-2 pi i k.r),   r = 0 at index N // 2, k = 0 at index N // 2

F is unitary: F^H F = I, so white noise keeps its std in both directions.
"""

import torch
from torch import Tensor

AXES = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Image (..., y, x) to k-space (..., ky, kx), both centred at N // 2."""
    shifted = torch.fft.ifftshift(image, dim=AXES)
    kspace: Tensor = torch.fft.fftshift(torch.fft.fft2(shifted, dim=AXES, norm="ortho"), dim=AXES)
    return kspace


def ifft2c(kspace: Tensor) -> Tensor:
    """k-space (..., ky, kx) to image (..., y, x); the adjoint and the inverse of `fft2c`."""
    shifted = torch.fft.ifftshift(kspace, dim=AXES)
    image: Tensor = torch.fft.fftshift(torch.fft.ifft2(shifted, dim=AXES, norm="ortho"), dim=AXES)
    return image


def grid(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Coordinates (y, 1) and (1, x) of the pixels, in [-1, 1], 0 at index N // 2."""
    y, x = ((torch.arange(n) - n // 2) / (n / 2) for n in shape)
    return y[:, None], x[None, :]


def centre_crop(array: Tensor, shape: tuple[int, int]) -> Tensor:
    """The central `shape` of the last two axes (a view); index N // 2 stays the centre."""
    (n_y, n_x), (m_y, m_x) = array.shape[-2:], shape
    if m_y > n_y or m_x > n_x:
        raise ValueError(f"cannot crop {n_y} x {n_x} to {m_y} x {m_x}")
    y, x = n_y // 2 - m_y // 2, n_x // 2 - m_x // 2
    return array[..., y : y + m_y, x : x + m_x]


def centre_pad(array: Tensor, shape: tuple[int, int]) -> Tensor:
    """Zero-pad the last two axes to `shape`; the adjoint of `centre_crop`."""
    padded = array.new_zeros((*array.shape[:-2], *shape))
    centre_crop(padded, (array.shape[-2], array.shape[-1])).copy_(array)
    return padded


def centre_fit(array: Tensor, shape: tuple[int, int]) -> Tensor:
    """Crop or zero-pad each of the last two axes to `shape`, whichever it needs."""
    inner = min(array.shape[-2], shape[0]), min(array.shape[-1], shape[1])
    return centre_pad(centre_crop(array, inner), shape)
