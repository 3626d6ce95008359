"""The kernel that draws for all items: on a GPU, and interpreted on a CPU where there is Triton."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from kernels import compiled, interpret
from torch import Tensor

from mrgen.prior.draws import DrawByCounter, DrawPerItem, complex_noise, draws_of_step, uniform

SHAPE = (3, 2, 61, 101)  # of a number of numbers that no block divides
NUMBERS = math.prod(SHAPE[1:])


def drawn(positions: list[int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Two draws of noise, and one of uniform numbers, of some items of a step."""
    draws = DrawByCounter([1000 + p for p in positions], device)
    like = torch.empty(len(positions), *SHAPE[1:], device=device)
    noise = like.to(torch.complex64)
    first, second = complex_noise(noise, draws), complex_noise(noise, draws)
    return first, second, uniform(like, draws)


def check(device: str) -> None:
    """Raises AssertionError where numbers are not as they should be, within six standard errors."""
    first, second, flat = drawn([0, 1, 2], device)
    error = 6 / NUMBERS**0.5
    parts = torch.cat([torch.view_as_real(t).flatten(1, -2).mT.flatten(0, 1) for t in (first, second)])
    assert (parts @ parts.mT / NUMBERS - torch.eye(len(parts), device=device) / 2).abs().max() < error
    assert (parts.pow(4).mean(1) - 3 / 4).abs().max() < 5 * error  # as normal numbers have it
    assert flat.min() >= 0
    assert flat.max() < 1
    assert (flat.flatten(1).mean(1) - 1 / 2).abs().max() < error / 12**0.5
    assert (flat.flatten(1).square().mean(1) - 1 / 3).abs().max() < error
    for wanted, found in zip((first, second, flat), drawn([2, 0], device), strict=True):
        assert torch.equal(found, wanted[[2, 0]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_a_gpu_draws_as_it_should() -> None:
    check("cuda")
    draws = draws_of_step(3, 4, range(2), "cuda")
    assert isinstance(draws, DrawByCounter)
    there, here = uniform(torch.empty(2, device="cuda"), draws), uniform(torch.empty(2), draws)
    assert here.device.type == "cpu"
    assert there.shape == here.shape


def test_numbers_on_the_cpu_are_those_of_generators_with_the_same_seeds() -> None:
    draws, plain = DrawByCounter([5, 7], "cpu"), DrawPerItem([torch.Generator().manual_seed(n) for n in (5, 7)])
    for like in (torch.empty(2), torch.empty(2, 3)):
        assert torch.equal(uniform(like, draws), uniform(like, plain))


def interpreted() -> None:
    """On a CPU `DrawByCounter` draws from generators; here it asks the kernel."""
    from mrgen.prior import philox

    philox.BLOCK = 256

    def normal(self: DrawByCounter, shape: tuple[int, ...], *_: object) -> Tensor:
        out = torch.empty(*shape, 2)
        self._fill(out, True, 0.5**0.5)
        return torch.view_as_complex(out)

    def flat(self: DrawByCounter, shape: tuple[int, ...], *_: object) -> Tensor:
        out = torch.empty(shape)
        self._fill(out, False, 1)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DrawByCounter, "normal", normal)
        patch.setattr(DrawByCounter, "uniform", flat)
        check("cpu")


def test_the_kernel_draws_as_it_should() -> None:
    interpret(__file__)


def test_the_kernel_compiles_for_an_h100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton, which compiles the kernel, is not there")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from mrgen.prior import philox

    types = {"seeds_at": "*i64", "out_at": "*fp32", "scale": "fp32"}
    for normal in (False, True):
        assert compiled(philox._draw, {"NORMAL": normal, "BLOCK": philox.BLOCK}, types, "i32")


if __name__ == "__main__":
    interpreted()
