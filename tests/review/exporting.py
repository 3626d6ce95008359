"""What the tests of the DICOM objects share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import oblique
import pydicom
import pytest

from mrgen.review.export import Exports
from mrgen.scans.geometry import Geometry


def needs(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: it comes with the Debian package {package}")


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def converted(program: str, source: Path, folder: Path) -> Any:
    """The NIfTI image that a program of dcmqi makes of a DICOM object."""
    found_at = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found_at is None:
        pytest.skip(f"{program} is not installed: it comes with the package dcmqi of PyPI")
    said = run(found_at, "--inputDICOM", source, "--outputDirectory", folder, "--outputType", "nii")
    found = list(folder.glob("*.nii.gz"))
    assert len(found) == 1, said
    return nibabel.load(found[0])


def series(out: Path, folder: str) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted((out / "dicom" / folder).iterdir())]


def objects(out: Path) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted((out / "dicom").rglob("*.dcm"))]


DICOM = Exports(formats=("dicom",))
KINDS = {"samples": True, "flag": oblique.FLAG, "overlay": True}  # of series, beside those of every result


def export(folder: Path, geometry: Geometry, exports: Exports = DICOM, **options: object) -> Path:
    folder.mkdir(exist_ok=True)
    oblique.write_result(folder / "scan.h5", geometry, **options)
    exports.write(folder, folder / "scan.h5", print)
    return folder
