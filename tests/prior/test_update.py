"""The update of the weights against its formulas, also as a GPU replays it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrgen.prior.draws import stream
from mrgen.prior.update import WARM, Update, average_exponent

WIDTH, STEPS = 0.1, 2 * WARM + 2


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
            ],
        ),
    ],
)
def test_updates_are_those_of_adam_with_clipped_gradients_and_a_growing_average(device: str) -> None:
    """Kingma and Ba, arXiv 1412.6980, algorithm 1, in double precision; gradients of norms below 1 and above."""
    g = stream(0)
    start = {"a": torch.randn(3, 4, generator=g), "b": torch.randn(5, generator=g)}
    parameters = {name: nn.Parameter(w.to(device)) for name, w in start.items()}
    update, exponent = Update(parameters, WIDTH), average_exponent(WIDTH) + 1
    weights = {name: w.double() for name, w in start.items()}
    average = {name: torch.zeros_like(w) for name, w in weights.items()}
    mean, square = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step in range(STEPS):
        rate, gradients = 0.01 * (step + 1), {n: 10.0 ** (step % 3 - 2) * torch.randn(w.shape, generator=g)
                                              for n, w in start.items()}  # fmt: skip
        for name, p in parameters.items():
            p.grad = gradients[name].to(device)
        update(step, rate)
        norm = sum(float(d.double().square().sum()) for d in gradients.values()) ** 0.5
        for name, w in weights.items():
            d = gradients[name].double() * min(1, 1 / norm)
            mean[name] = 0.9 * mean[name] + 0.1 * d
            square[name] = 0.99 * square[name] + 0.01 * d**2
            unbiased, spread = mean[name] / (1 - 0.9 ** (step + 1)), square[name] / (1 - 0.99 ** (step + 1))
            w -= rate * unbiased / (spread.sqrt() + 1e-8)
            average[name] += (1 - (1 - 1 / (step + 1)) ** exponent) * (w - average[name])
    for name, w in weights.items():
        torch.testing.assert_close(parameters[name].detach().cpu().double(), w, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(update.average[name].cpu().double(), average[name], rtol=1e-4, atol=1e-5)
    assert (update.recorded is not None) == (device == "cuda")
