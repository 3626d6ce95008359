"""Many equal steps of small operations, which on a GPU cost more to start than to do: one is recorded and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = tuple[Tensor, ...]


@dataclass
class _Recorder:
    """What the recordings of a device share: memory, which is theirs as long as one is kept, so the last one is."""

    stream: torch.cuda.Stream
    pool: Any = field(default_factory=torch.cuda.graph_pool_handle)
    last: torch.cuda.CUDAGraph | None = None


_recorders: dict[torch.device, _Recorder] = {}


def repeated(step: Callable[..., State], state: State, numbers: Tensor) -> State:
    """`state` after state = step(*state, n) for each n of `numbers` (times,), on the same device.

    What `step` does may depend on shapes, but not on values that a GPU would have to be asked for; what it gives is in
    new memory.
    """
    if not numbers.is_cuda or len(numbers) < 3:
        for number in numbers:
            state = step(*state, number)
        return state
    places, number = tuple(x.clone() for x in state), numbers[0].clone()

    def move() -> None:
        for place, new in zip(places, step(*places, number), strict=True):
            place.copy_(new)

    device, graph = numbers.device, torch.cuda.CUDAGraph()
    if device not in _recorders:
        _recorders[device] = _Recorder(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    recorder, main = _recorders[device], torch.cuda.current_stream(device)
    recorder.stream.wait_stream(main)
    again: Callable[[], None] = graph.replay
    with torch.cuda.stream(recorder.stream):
        move()  # in which libraries choose what they do
        try:  # not torch.cuda.graph, which gives all free memory back first
            graph.capture_begin(recorder.pool, capture_error_mode="thread_local")
            try:
                move()
            finally:
                graph.capture_end()
            recorder.last = graph
        except torch.OutOfMemoryError:  # a recording cannot use memory that others have given back
            del _recorders[device]
            again = move
    main.wait_stream(recorder.stream)
    for value in numbers[1:]:
        number.copy_(value)
        again()
    return places
