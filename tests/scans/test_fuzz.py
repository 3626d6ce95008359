"""Damaged HDF5 files, read by a process of their own: damage can upset libhdf5 for what comes after."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["test_damaged_files.py", "test_ismrmrd.py"])
def test_damaged_files_never_crash_a_reader(module: str) -> None:
    tests = Path(__file__).with_name(module)
    command = [sys.executable, "-m", "pytest", "-m", "damage", "-v", "-p", "no:cacheprovider", tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
