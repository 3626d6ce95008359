"""Opening foreign files: what goes wrong becomes one line that names the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from mrgen.errors import MrgenError

_LONGEST_TEXT = 2**24  # bytes


def check_file(path: Path, expected: str) -> None:
    """Raises MrgenError where `path` is no file to read, saying what was `expected`, such as "a BART .cfl file"."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "there is no such file"
        raise MrgenError(f"{path.name}: {found}, expected {expected}: check the path")
    if not os.access(path, os.R_OK):
        raise MrgenError(f"{path.name}: you may not read this file: change its permissions")


def plain(text: str, longest: int = 60) -> str:
    """Foreign text, fit for an error message."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:longest])
    return shown if len(text) <= longest else f"{shown}..."


def reason(error: Exception) -> str:
    """What a library said, in one short line."""
    return plain(str(error).partition("\n")[0], 120) or type(error).__name__


def listing(names: Iterable[str]) -> str:
    """The first of the names that a file holds."""
    return ", ".join(plain(name, 40) for name in sorted(names)[:5]) or "nothing"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of a MrgenError raised inside, unless it is there."""
    try:
        yield
    except MrgenError as error:
        start = f"{path.name}: "
        raise MrgenError(str(error) if str(error).startswith(start) else start + str(error)) from None


@contextmanager
def hdf5(path: Path) -> Iterator[h5py.File]:
    """The HDF5 file, open for reading inside the block only.

    Raises MrgenError, naming the file, for a MrgenError inside and for a file that h5py cannot read.
    """
    try:
        with naming(path), h5py.File(path, "r") as file:
            yield file
    except MrgenError:
        raise
    except Exception as error:  # h5py raises nearly every type there is for damaged files
        raise MrgenError(f"{path.name}: not a readable HDF5 file ({reason(error)}): copy it again") from None


def stored_text(dataset: object, name: str) -> str:
    """The text in an HDF5 dataset, which is a scalar or has one entry. Raises MrgenError for anything else."""
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.size != 1
        or dataset.dtype.kind not in "OS"
        or dataset.dtype.itemsize > _LONGEST_TEXT
    ):
        raise MrgenError(f"{name} is not one text, expected XML: repair it or remove the dataset")
    text = np.asarray(dataset[()]).item()
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
