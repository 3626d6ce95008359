"""Small synthetic scans in the fastMRI layout, shared by the tests of the readers and of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from synthetic import make_header, make_kspace
from torch import Tensor

torch.set_num_threads(1)  # the tensors of tests are small: threads would only wait for each other


@pytest.fixture
def phantom() -> Callable[..., Tensor]:
    return make_kspace


@pytest.fixture
def header() -> Callable[..., str]:
    return make_header


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
