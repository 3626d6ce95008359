"""Which GPU a process of torchrun takes."""

from __future__ import annotations

import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.prior.distributed import local_device


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [local_device(device) for device in ("cpu", "cuda")] == ["cpu", "cuda"]
    for rank in (0, 1):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert [local_device(device) for device in ("cpu", "cuda")] == ["cpu", f"cuda:{rank}"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert local_device("cpu") == "cpu"
    with pytest.raises(MrgenError, match=r"process 3 of this machine, which has 2 usable GPU.*--nproc-per-node"):
        local_device("cuda")


def test_processes_that_may_share_gpus_take_them_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank in range(5):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert local_device("cuda", in_turn=True) == f"cuda:{rank % 2}"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(MrgenError, match="which has 0 usable GPU"):
        local_device("cuda", in_turn=True)
