"""How far samples are from a known mean and covariance."""

from typing import NamedTuple

import torch
from torch import Tensor

LEADING = 8  # eigenvectors of the covariance


class Errors(NamedTuple):
    mean: float  # rms over the pixels, in sd
    sd: float  # mean over the pixels of the ratio to the true sd, less 1
    covariance: float  # relative Frobenius error within the leading eigenvectors


def errors(mean: Tensor, covariance: Tensor, true_mean: Tensor, true_covariance: Tensor) -> Errors:
    """Of a mean (N,) and a covariance (N, N)."""
    sd = true_covariance.diagonal().real.sqrt()
    vectors = torch.linalg.eigh(true_covariance)[1][:, -LEADING:]
    found, true = (vectors.mH @ c @ vectors for c in (covariance, true_covariance))
    return Errors(
        float(((mean - true_mean).abs() / sd).square().mean().sqrt()),
        float((covariance.diagonal().real.sqrt() / sd).mean()) - 1,
        float((found - true).norm() / true.norm()),
    )


def sample_errors(samples: Tensor, true_mean: Tensor, true_covariance: Tensor) -> Errors:
    """Of samples (n, ...)."""
    flat = samples.flatten(1)
    centred = flat - flat.mean(0)
    return errors(flat.mean(0), centred.T @ centred.conj() / (len(flat) - 1), true_mean, true_covariance)
