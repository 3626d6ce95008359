"""What each process of torchrun does in test_train_distributed.py: `processes.py CASE FOLDER`."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import torch
from tinyset import image, protocol, slices

import mrgen.prior.train as loop
from mrgen.errors import MrgenError
from mrgen.prior import progress
from mrgen.prior.data import TrainingSet
from mrgen.settings import Protocol

torch.set_num_threads(1)


def case(kind: str, **training: object) -> tuple[TrainingSet, Protocol]:
    """Four items in batches of three: with two processes shares of 2, 1 and, in each second batch, 1 and none."""
    settings = protocol(steps=5, batch=3, learning_rate=5e-4, **training)
    if kind == "supervised":
        return TrainingSet.from_images([image(i) for i in range(4)], "clean"), settings.model_copy(
            update={"training": settings.training.model_copy(update={"objective": kind})}
        )
    measured = [item for coils in (2, 3) for item in slices(2, coils).items]
    data = TrainingSet(measured, [(32, 32)] * 4, "measured")  # type: ignore[arg-type]
    basis = kind.removeprefix("gsure-")
    return data, settings.model_copy(update={"training": settings.training.model_copy(update={"basis": basis})})


KINDS = ("gsure-fourier", "gsure-sense", "supervised")


class Damaged:
    """An item that cannot be read."""

    def __getattr__(self, name: str) -> None:
        raise MrgenError("this file is damaged")


def say(text: str) -> None:
    print(f"rank {os.environ.get('RANK')}: {text}", flush=True)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    progress._plot = lambda *_: None  # which takes longer than all else
    if what == "all":
        for kind in KINDS:
            loop.train(*case(kind), folder / f"{kind}.safetensors", report=say)
        loop.train(*case("gsure-fourier", accumulate=2), folder / "accumulate.safetensors", report=say)
        data, settings = case("gsure-fourier")
        if os.environ["RANK"] == "1":
            for item in data.items:
                item.kspace[:] = math.nan  # type: ignore[union-attr]
        try:
            loop.train(data, settings, folder / "nan.safetensors", report=say)
        except MrgenError as error:
            print(f"process {os.environ['RANK']} stopped: {error}", flush=True)
    loop.REPORT_SECONDS = loop.CHECKPOINT_SECONDS = 0.0
    data, settings = case("gsure-fourier")
    loop.train(data, settings, folder / "prior.safetensors", steps=15, report=say)
    if what == "all":
        if os.environ["RANK"] == "1":
            data.items[3] = Damaged()  # type: ignore[index]
        loop.train(data, settings, folder / "damaged.safetensors", report=say)


if __name__ == "__main__":
    main()
