"""The real-valued network as compiled code, for training on a GPU.

One graph per matrix size and orientation, for any batch: the batch changes from step to step with the items whose
divergence is wanted, and padding them would cost up to twice the work, so it is dynamic. The matrix sizes of a study
are few, and a fixed size lets the compiler choose its kernels; with dynamic ones, torch 2.13 cannot compile the padding
to a multiple of the coarsest pixel. What is complex (Fourier transforms, coils, preconditioning) is never compiled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrgen.prior.denoiser import Denoiser

SIZES = 64  # graphs that are kept; a network called with more sizes runs uncompiled for the others


def compile_network(denoiser: Denoiser, backend: Any = "inductor") -> None:
    """Let `denoiser` run its network compiled; its weights and their names stay."""
    torch._dynamo.config.recompile_limit = SIZES
    network = torch.compile(denoiser.network.forward, dynamic=False, fullgraph=True, backend=backend)

    def forward(x: Tensor, c_noise: Tensor) -> Tensor:
        for tensor in (x, c_noise):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return network(x, c_noise)

    denoiser.network.forward = forward  # type: ignore[method-assign]
