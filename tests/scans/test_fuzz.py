"""Damaged HDF5 files, read by a process of their own: damage can upset libhdf5 for what comes after."""

from collections.abc import Callable
from pathlib import Path

import pytest
from children import Child


@pytest.mark.parametrize("module", ["test_damaged_files.py", "test_ismrmrd.py"])
def test_damaged_files_never_crash_a_reader(module: str, start: Callable[..., Child]) -> None:
    tests = Path(__file__).with_name(module)
    folder = f"--rootdir={tests.parents[2]}"
    process = start("-m", "pytest", "-m", "damage", "-v", "-p", "no:cacheprovider", folder, tests)
    said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert " passed" in said
