"""The examples run as their docstrings say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mrgen.prior.files import load_prior
from mrgen.settings import Protocol, load

ROOT = Path(__file__).parent.parent


def test_tiny_training_makes_a_prior_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "tiny_training.py"), "-o", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def run() -> str:
        done = subprocess.run(
            [*command, "--scans", "2", "--steps", "3"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = run()
    assert "estimated risk per pixel" in text
    assert (tmp_path / "prior.png").is_file()
    assert str(tmp_path / "prior.png") in text
    metadata = load_prior(tmp_path / "prior.safetensors").metadata
    assert metadata["steps_done"] == 3
    assert Protocol(**metadata["protocol"]) == load(Protocol, "tiny")
    text = run()
    assert "6 slices, 0 of them new" in text
    assert "resuming prior.safetensors at step 3 of 3" in text
