"""The kernels for a GPU against PyTorch's own operations: on a GPU, and interpreted on a CPU where there is Triton."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from kernels import compiled, interpret
from torch import Tensor, nn

from mrgen.prior import unet
from mrgen.prior.unet import norm_silu

TILE = 1024  # numbers; and, in this order, cases of some chunks, of one that is full, and of groups with empty columns
CASES = [(16, (10, 15)), (32, (4, 8)), (48, (3, 5))]
LARGE = [(64, (60, 37)), (96, (40, 46)), (192, (20, 23))]


def results(norm: nn.GroupNorm, x: Tensor, modulation: Tensor | None, weight: Tensor) -> list[Tensor]:
    """The output and the gradients of all that goes in."""
    leaves = [t.detach().requires_grad_() for t in (x, modulation) if t is not None]
    out = norm_silu(leaves[0], norm, leaves[1] if modulation is not None else None)
    return [out, *torch.autograd.grad(out, [*leaves, norm.weight, norm.bias], weight.to(out))]


def compare(
    device: str, width: int, shape: tuple[int, int], modulated: bool, dtype: torch.dtype = torch.float32
) -> None:
    """Raises AssertionError where the kernels are not what the plain operations are in double precision."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(16, width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, weight = 1 + 2 * torch.randn(2, width, *shape), torch.randn(2, width, *shape)
    modulation = torch.randn(2, 2 * width) if modulated else None
    x, weight, modulation = (None if t is None else t.to(dtype) for t in (x, weight, modulation))
    wanted = results(norm.double(), x.double(), None if modulation is None else modulation.double(), weight.double())
    norm, on = norm.float().to(device), [None if t is None else t.to(device) for t in (x, modulation, weight)]
    got = results(norm, *on)
    assert got[0].dtype == dtype
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(got, wanted, strict=True):
        error = (a.double().cpu() - b).norm() / b.norm()
        assert error < (5e-3 if dtype == torch.bfloat16 else 1e-6), (width, shape, modulated, float(error))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_normalises_as_pytorch_does(dtype: torch.dtype) -> None:
    assert unet.TRITON
    for width, shape in LARGE:
        for modulated in (False, True, True):  # the last time as it is started from then on
            compare("cuda", width, shape, modulated, dtype)


def interpreted() -> None:
    """In single precision the kernels run, in double what they are compared with."""
    from mrgen.prior import fused

    fused.TILE, fused.TILES = TILE, 1
    plain = norm_silu
    globals()["norm_silu"] = lambda x, *rest: (plain if x.dtype == torch.float64 else fused.norm_silu)(x, *rest)
    for fused.CHUNKS in (64, 2):  # so the first case has three chunks of a tile, or two of two
        for width, shape in CASES:
            for modulated in (False, True):
                compare("cpu", width, shape, modulated, torch.float32)
    assert fused._divide(16, 150, 16) == (2, (16, 16, 1, 2, 128, 64))


def test_the_kernels_compute_what_pytorch_does() -> None:
    interpret(__file__)


def test_the_kernels_compile_for_an_h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For widths of the bundled prior, of which the second leaves columns empty."""
    pytest.importorskip("triton", reason="Triton, which compiles the kernels, is not there")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from mrgen.prior import fused

    types = {"pixels": "i32", "eps": "fp32", "x_at": "*bf16", "dh_at": "*bf16", "modulation_at": "*bf16"}
    for kernel, width, backward in product((fused._sums, fused._apply), (64, 96), (False, True)):
        sizes = (*fused._divide(width, 160 * 184, 16)[1], backward)
        constants = dict(zip(kernel.arg_names[-len(sizes) :], sizes, strict=True))
        assert compiled(kernel, constants, types, "*fp32"), (kernel, width, backward)


if __name__ == "__main__":
    interpreted()
