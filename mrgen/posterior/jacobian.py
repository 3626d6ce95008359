"""The transposed Jacobian of a denoiser, by back-propagation to its input.

A network sees real and imaginary part as two channels, so D is differentiable in the real sense only: its Jacobian J
is a real 2N x 2N matrix, linear over the real numbers and not, in general, over the complex ones. J^T is its transpose
for the inner product Re <a, b>, which is what autograd returns for a complex v.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrgen.prior.denoiser import Denoise

Pullback = Callable[[Tensor], Tensor]


def denoise_with_pullback(denoise: Denoise, x_t: Tensor, sigma: Tensor) -> tuple[Tensor, Pullback]:
    """D(x_t) (n, y, x), and v -> J^T v for v of that shape, as often as wished at the cost of a backward pass each.

    It differentiates inside `torch.inference_mode` as well, and leaves x_t as it is.
    """
    with torch.inference_mode(False), torch.enable_grad():
        point = x_t.detach().clone().requires_grad_()  # a clone made here is no inference tensor
        mean = denoise(point, sigma.clone())

    def pullback(v: Tensor) -> Tensor:
        with torch.inference_mode(False):
            (out,) = torch.autograd.grad(mean, point, v.clone(), retain_graph=True)
        return out

    return mean.detach(), pullback
