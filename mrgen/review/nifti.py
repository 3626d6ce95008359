"""NIfTI-1 files of a result: float32, in the units of the input, RAS affine.

Axes are (column, row, slice), and repetitions after them. Code 1 (scanner) marks geometry that was measured, code 2
(aligned) a nominal one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from mrgen.errors import MrgenError
from mrgen.review.figure import NOTICE
from mrgen.review.geometry import Placement
from mrgen.review.stored import Stored, Volume

NAMES = {"reconstruction": "mean", "std": "std", "zero_filled": "zero_filled", "interval": "interval"}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SHORT_NOMINAL = "NOMINAL GEOMETRY, L/R UNVERIFIED. "  # with the notice, within the 80 characters of `descrip`


def check_nifti(placement: Placement) -> None:
    """Raises MrgenError for slices that no single affine places."""
    placement.step()
    if len({len(volume) for volume in placement.volumes()}) > 1:
        raise MrgenError(
            "the slices are not whole repetitions, expected as many of each for NIfTI: reconstruct all slices, or "
            "choose --formats hdf5,dicom"
        )


def nifti_image(volume: Volume, placement: Placement) -> Any:
    """A nibabel.Nifti1Image of (slice, y, x). Raises MrgenError as `check_nifti` does."""
    check_nifti(placement)
    repetitions = len(placement.volumes())
    array = volume.reshape(repetitions, -1, *volume.shape[1:]).transpose(3, 2, 1, 0)
    affine = _LPS_TO_RAS @ placement.affine()
    kind: Any = nibabel.Nifti1Image
    image = kind(array[..., 0] if repetitions == 1 else array, affine)
    code = 2 if placement.nominal else 1
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    if not np.allclose(image.get_qform(), affine, atol=1e-3):  # quaternions cannot hold slices that step aslant
        image.set_qform(None, 0)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = (_SHORT_NOMINAL if placement.nominal else "mrgen. ") + NOTICE
    return image


def write_nifti(folder: Path, stored: Stored, placement: Placement) -> None:
    """Write <name>.nii.gz of every image of a result into `folder`. Raises MrgenError as `check_nifti` does."""
    for name, volume in stored.images.items():
        label = NAMES[name] if name != "reconstruction" or stored.samples is not None else name
        nibabel.save(nifti_image(volume, placement), folder / f"{label}.nii.gz")
