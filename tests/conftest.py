"""Small synthetic scans in the fastMRI layout, the command line, and other processes."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from children import Child
from synthetic import make_header, make_kspace
from torch import Tensor

from mrgen import cli
from mrgen.prior import progress
from mrgen.review import output

torch.set_num_threads(1)  # the tensors of tests are small: threads would only wait for each other


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a module left open is found at its end, not in the next one, whose tests may take no warning."""
    if nextitem is None or nextitem.path != item.path:
        gc.collect()


@pytest.fixture
def phantom() -> Callable[..., Tensor]:
    return make_kspace


@pytest.fixture
def header() -> Callable[..., str]:
    return make_header


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten slices of texture in an ellipse, of one person to train on and of one to test on."""
    y, x = np.mgrid[-1:1:217j, -1:1:182j]
    inside = np.hypot(y / 0.85, x / 0.8) < 1
    slices = [inside * (120 + 60 * np.cos((9 + n % 7) * x) * np.sin((7 + n % 5) * y)) for n in range(20)]
    np.savez(tmp_path / "images.npz", slices=np.uint8(slices), subject=np.repeat([1, 60], 10))
    return tmp_path / "images.npz"


@pytest.fixture
def write_scan(tmp_path: Path) -> Callable[..., Path]:
    """write(kspace=..., name="scan.h5", **datasets) writes an HDF5 file to tmp_path and returns its path."""

    def write(name: str = "scan.h5", **datasets: Any) -> Path:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            file.attrs["patient_id"] = "Q4711Z"
            for key, value in datasets.items():
                file[key] = value if isinstance(value, str) else np.asarray(value)
        return path

    return write


@pytest.fixture
def scans() -> Path:
    """A data folder beside the repository with measured scans."""
    folder = Path(__file__).parents[1].parent / "shared" / "data" / "scans"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data/scans with measured data beside the repository")
    return folder


@pytest.fixture
def mrgen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the entry point as a shell would: (exit code, stdout, stderr). Other exceptions come through."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mrgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        streams = capsys.readouterr()
        return int(caught.value.code or 0), streams.out, streams.err

    return call


@pytest.fixture(scope="module")
def no_plots() -> Iterator[None]:
    """Without plots and figures, which take longer than all else: a figure's file has the images that it would show."""

    def images_alone(path: Path, *, images: dict[str, Any], **_: object) -> None:
        path.write_bytes(b"".join(image.tobytes() for image in images.values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "_plot", lambda *_: None)
        patch.setattr(output, "save_figure", images_alone)
        yield


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Child]]:
    """start(*arguments, processes=0) runs Python, or several by torchrun's agent, in a process group of its own.

    What still runs after the module's tests is killed, workers and all.
    """
    started = []

    def call(*arguments: object, processes: int = 0) -> Child:
        started.append(Child(arguments, processes))
        return started[-1]

    yield call
    for child in started:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


@pytest.fixture
def imported_by() -> Callable[..., set[str]]:
    """imported_by(*arguments): the modules that a process of its own has imported when the command has ended well."""

    def call(*arguments: object) -> set[str]:
        code = "import atexit, sys; from mrgen import cli; atexit.register(lambda: print(*sys.modules)); cli.main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split())

    return call
