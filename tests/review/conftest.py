"""Results exported once for all tests that look at them with other readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import oblique
import pytest

from mrgen.review.export import Exports


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """exported(reverse=False): folder with scan.h5, nifti/ and dicom/, every kind of object, of the oblique result."""
    made: dict[bool, Path] = {}

    def export(reverse: bool = False) -> Path:
        if reverse not in made:
            out = made[reverse] = tmp_path_factory.mktemp("oblique")
            oblique.write_result(out / "scan.h5", oblique.oblique(reverse), samples=2, calibrated=True)
            Exports(samples=True, flag=oblique.FLAG, overlay=True).write(out, out / "scan.h5", print)
        return made[reverse]

    return export
