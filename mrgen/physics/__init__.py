"""Fourier transforms, linear operators, masks, noise, coil maps and conjugate gradients, in pure torch."""

from mrgen.physics.cg import conjugate_gradient
from mrgen.physics.espirit import espirit_maps
from mrgen.physics.fourier import centre_crop, centre_pad, fft2c, ifft2c
from mrgen.physics.masks import (
    PATTERNS,
    achieved_acceleration,
    acs_lines,
    acs_region,
    fastmri_rng,
    sampling_mask,
    sampling_probability,
)
from mrgen.physics.noise import background_covariance, covariance, edge_covariance, whiten, whitening_matrix
from mrgen.physics.operators import Coils, Composition, Fourier, LinearOperator, Mask, sense, sense_normal

__all__ = [
    "PATTERNS",
    "Coils",
    "Composition",
    "Fourier",
    "LinearOperator",
    "Mask",
    "achieved_acceleration",
    "acs_lines",
    "acs_region",
    "background_covariance",
    "centre_crop",
    "centre_pad",
    "conjugate_gradient",
    "covariance",
    "edge_covariance",
    "espirit_maps",
    "fastmri_rng",
    "fft2c",
    "ifft2c",
    "sampling_mask",
    "sampling_probability",
    "sense",
    "sense_normal",
    "whiten",
    "whitening_matrix",
]
