"""Runs that are ended from outside, by any signal and at any moment, go on to the same weights, to the bit."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import Child
from processes import case

from mrgen.errors import MrgenError
from mrgen.prior import train as loop
from mrgen.prior.checkpoint import stop_signals
from mrgen.prior.files import read_safetensors, write_safetensors
from mrgen.prior.train import train

HERE = Path(__file__).parent
Start = Callable[..., Child]


def quiet(text: str) -> None:
    del text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, no_plots: None) -> Path:
    """The same training without interruption."""
    out = tmp_path_factory.mktemp("whole") / "prior.safetensors"
    return train(*case("gsure-fourier"), out, steps=15, report=quiet)


def assert_same(one: Path, two: Path) -> None:
    """Weights, average, moments and log, the prior and the table."""
    for suffix in (".checkpoint.safetensors", ".safetensors"):
        (a, metadata), (b, other) = (read_safetensors(path.with_suffix(suffix)) for path in (one, two))
        assert metadata == other
        assert a.keys() == b.keys()
        assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert one.with_suffix(".csv").read_bytes() == two.with_suffix(".csv").read_bytes()


def after_a_step(process: Child) -> None:
    assert any("step" in line and "risk" in line for line in process.stdout)


def test_sigkill_at_random_moments(start: Start, whole: Path, tmp_path: Path) -> None:
    parts, seed = tmp_path / "parts", random.Random()
    for _ in range(2):
        process = start(HERE / "processes.py", "long", parts)
        after_a_step(process)
        time.sleep(seed.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    process = start(HERE / "processes.py", "long", parts)
    text = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert_same(whole, parts / "prior.safetensors")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(
    start: Start, whole: Path, tmp_path: Path, number: int
) -> None:
    parts = tmp_path / "parts"
    process = start(HERE / "processes.py", "long", parts)
    after_a_step(process)
    os.kill(process.pid, number)
    text = process.communicate(timeout=60)
    message = rf"{signal.Signals(number).name} stopped the training at step \d+ of 15; prior.checkpoint.safetensors is"
    assert process.returncode != 0
    assert "the same command goes on from there" in text
    assert re.search(message, text)
    assert not (parts / "prior.safetensors").exists()
    data, settings = case("gsure-fourier")
    train(data, settings, parts / "prior.safetensors", steps=15, report=quiet)
    assert_same(whole, parts / "prior.safetensors")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("write", range(0, 30, 4))
def test_an_end_just_before_a_file_is_replaced(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    parts, (data, settings), replace, count = tmp_path / "prior.safetensors", case("gsure-fourier"), os.replace, [0]

    def killed(*paths: Path) -> None:
        if count[0] == write:
            raise Killed
        count[0] += 1
        replace(*paths)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "REPORT_SECONDS", 0.0)
        patched.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        patched.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train(data, settings, parts, steps=15, report=quiet)
    train(data, settings, parts, steps=15, report=quiet)
    assert_same(whole, parts)


def test_a_checkpoint_without_its_log_is_refused(whole: Path, tmp_path: Path) -> None:
    tensors, metadata = read_safetensors(whole.with_suffix(".checkpoint.safetensors"))
    del tensors["log"]
    write_safetensors(tmp_path / "prior.checkpoint.safetensors", tensors, metadata)
    with pytest.raises(MrgenError, match=r"earlier mrgen.*--no-resume"):
        train(*case("gsure-fourier"), tmp_path / "prior.safetensors", steps=15, report=quiet)


def test_signals_are_heard_only_within(request: pytest.FixtureRequest) -> None:
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background is given none
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, given))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_signals() as heard:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert heard == ["SIGTERM", "SIGTERM", "SIGINT"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_in_a_thread_hears_none() -> None:
    heard: list[object] = []

    def other() -> None:
        with stop_signals() as signals:
            heard.append(signals)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert heard == [[]]
