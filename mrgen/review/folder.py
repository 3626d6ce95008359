"""The folder that results are written to: whether it can be, and files that appear as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrgen.errors import MrgenError


def prepare_output_dir(path: Path) -> None:
    """Make the folder and try to write to it, before anything is computed. Raises MrgenError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise MrgenError(f"cannot write to the output folder {path}: {error.strerror}; choose another") from None


@contextmanager
def replacing(paths: list[Path]) -> Iterator[list[Path]]:
    """Temporary names beside `paths`, renamed to them together when the block ends well, removed when not."""
    partial = [p.with_name(p.name + ".partial") for p in paths]
    try:
        yield partial
        for temporary, path in zip(partial, paths, strict=True):
            os.replace(temporary, path)
    finally:
        for temporary in partial:
            temporary.unlink(missing_ok=True)
