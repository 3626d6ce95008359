"""Steps that are repeated: on a GPU by a recording, as on a CPU one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mrgen.physics.repeated import repeated


def fibonacci(device: str, times: int, size: int) -> tuple[Tensor, Tensor]:
    """a, b, a + n b, ... from 0 and 1, in arrays of one number."""
    start = torch.zeros(size, device=device), torch.ones(size, device=device)
    numbers = torch.arange(times, device=device).remainder(2).float()
    found = repeated(lambda a, b, n: (b.clone(), a + n * b.square().sqrt()), start, numbers)
    assert start[0].sum() == 0
    assert start[1].sum() == size
    return found


def check(device: str) -> None:
    for times in range(6):
        for size in (3, 1000):
            a, b = 0.0, 1.0
            for n in range(times):
                a, b = b, a + n % 2 * b
            for found, wanted in zip(fibonacci(device, times, size), (a, b), strict=True):
                assert torch.equal(found.cpu(), torch.full((size,), wanted))


def test_each_step_takes_what_the_one_before_gave() -> None:
    check("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_a_gpu_replays_a_step_as_often_as_it_is_wanted() -> None:
    check("cuda")
    with torch.inference_mode():
        check("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_a_gpu_without_memory_for_a_recording_runs_each_step() -> None:
    def greedy(a: Tensor, n: Tensor) -> tuple[Tensor]:
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2**50, device=a.device)
        return (2 * a + n,)

    (found,) = repeated(greedy, (torch.ones(3, device="cuda"),), torch.arange(4.0, device="cuda"))
    assert torch.equal(found.cpu(), torch.full((3,), 27.0))  # 2, 5, 12, 27
    check("cuda")
