"""The compiled network: the numbers of the plain one, and a graph per matrix size, not per batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import case
from torch._dynamo.testing import CompileCounterWithBackend

import mrgen.prior.train as loop
from mrgen.prior.compiled import compile_network
from mrgen.prior.denoiser import Denoiser
from mrgen.prior.draws import DrawPerItem
from mrgen.settings import Network


def test_one_graph_serves_all_batches_of_a_matrix_size() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    plain, compiled = (Denoiser(Network(widths=(16, 32), blocks=1), 0.4) for _ in range(2))
    torch.nn.init.normal_(plain.network.leave[-1].weight)  # type: ignore[arg-type]
    compiled.load_state_dict(plain.state_dict())
    compile_network(compiled, counter)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for batch, *shape in ((4, 16, 12), (6, 16, 12), (3, 12, 16), (5, 12, 16), (7, 16, 12), (2, 15, 11)):
        x_t, sigma = torch.randn(batch, *shape, dtype=torch.complex64), 0.1 + torch.rand(batch)
        with DrawPerItem.of_step(0, 0, range(batch), "cpu") as draws:
            out = draws.outside(compiled)(x_t, sigma)
        expected = plain(x_t, sigma)
        torch.testing.assert_close(out, expected)
        for denoiser, image in ((compiled, out), (plain, expected)):
            denoiser.zero_grad()
            image.abs().square().sum().backward()
        for one, two in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad)
    assert counter.frame_count == 3


def test_a_cpu_never_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loop, "compile_network", refuse)
    data, settings = case("supervised")
    assert settings.training.compile
    loop.train(data, settings, tmp_path / "prior.safetensors", steps=1, report=lambda _: None)
