"""Kernels of Triton without a GPU: interpreted in a process of their own, and compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest


def interpret(file: str) -> None:
    """Run a file of tests as a script in which kernels are interpreted."""
    pytest.importorskip("triton", reason="Triton, which interprets kernels without a GPU, is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compiled(kernel: Any, constants: dict[str, Any], types: dict[str, str], otherwise: str) -> bool:
    """Whether an H100's code comes of a kernel with these constants, and types of its other arguments."""
    triton = pytest.importorskip("triton", minversion="3.6", reason="Triton, which compiles kernels, is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, otherwise) for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name.endswith("_at")}
    return bool(triton.compile(ASTSource(kernel, signature, values, aligned), GPUTarget("cuda", 90, 32)).asm["cubin"])
