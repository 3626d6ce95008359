"""Readers of image volumes to simulate scans from: NIfTI, a DICOM series, NumPy arrays.

What a file says of the patient is not read, but for directions and sizes. Slices are turned to how they are looked at:
an axial one has the front of the head on top and the patient's left on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrgen.errors import MrgenError
from mrgen.scans.acquire import Volume, magnitude_volume

# The axes (slice, y, x) of each plane: which of the patient's (left, posterior, superior), and in which sense.
PLANES = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}
_TOLERANCE = 0.02  # of the spacing between slices
Pixels = NDArray[np.float32]


def turn(array: Pixels, steps: NDArray[np.float64], plane: str) -> tuple[Pixels, tuple[float, float, float]]:
    """The array as slices (slice, y, x) of `plane`, and its voxel size along these axes, mm.

    Column a of `steps` (3, 3) is the step in mm, in the patient's axes (left, posterior, superior), along axis a of the
    array. Axes are permuted and flipped to the nearest, not resampled: an oblique volume stays oblique.
    """
    size = np.linalg.norm(steps, axis=0)
    cosine = steps / size
    nearest = max(permutations(range(3)), key=lambda order: sum(abs(cosine[w, order[w]]) for w in range(3)))
    axes = [nearest[world] for world, _ in PLANES[plane]]
    backwards = tuple(i for i, (world, sense) in enumerate(PLANES[plane]) if sense * cosine[world, nearest[world]] < 0)
    slices, y, x = (float(size[a]) for a in axes)
    return np.flip(array.transpose(axes), backwards), (slices, y, x)


def _read_nifti(path: Path, axis: str | None) -> Volume:
    import nibabel  # slow to load, for a command that may not need it

    try:
        image: Any = nibabel.load(path)
        array = np.asarray(image.dataobj)
    except Exception as error:  # damaged files raise a dozen types
        raise MrgenError(f"not a readable NIfTI file ({type(error).__name__}): check it") from None
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise MrgenError(f"{array.dtype}, {array.shape}, expected one volume of real numbers: extract it")
    steps = np.diag([-1, -1, 1]) @ np.asarray(image.affine, np.float64)[:3, :3]  # NIfTI's axes: right, anterior
    if not np.isfinite(steps).all() or abs(np.linalg.det(steps)) < 1e-6:
        raise MrgenError("its affine gives the voxels no volume, expected a valid sform or qform: set one")
    return magnitude_volume(*turn(array.astype(np.float32), steps, axis or "axial"))


def _read_npz(path: Path, axis: str | None) -> Volume:
    """`slices`, which have nothing to do with each other, `vol`, or the only array; pixels of 1 mm."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            names = [n for n in ("slices", "vol") if n in archive] or list(archive)
            if len(names) != 1:
                raise MrgenError(f"arrays {', '.join(names) or 'none'}, expected slices, vol, or a single one")
            array = archive[names[0]]
    except MrgenError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen types for damaged files
        raise MrgenError(f"not a readable .npz archive ({type(error).__name__}): save it with numpy.savez") from None
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise MrgenError(f"{names[0]} is {array.dtype}, {array.shape}, expected real numbers (slice, y, x)")
    volume = magnitude_volume(np.moveaxis(array, int(axis or 0), 0).astype(np.float32), (1.0, 1.0, 1.0))
    return replace(volume, heights=(0.0,) * len(volume.images)) if names[0] == "slices" else volume


def read_series(folder: Path) -> list[Any]:
    """The DICOM files of a folder as pydicom has them, one image each, of one series. Raises MrgenError."""
    import pydicom

    files = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            files.append(pydicom.dcmread(path))
        except pydicom.errors.InvalidDicomError:
            continue  # a text file among them
    needed = ("SeriesInstanceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "PixelData")
    files = [f for f in files if "DirectoryRecordSequence" not in f]  # DICOMDIR, an index
    if not files:
        raise MrgenError("no DICOM file in this folder, expected one series: name the folder that holds the images")
    for name in needed:
        missing = sum(name not in f for f in files)
        if missing:
            raise MrgenError(f"{missing} of {len(files)} DICOM files have no {name}, expected single-frame MR images")
    for name in ("SeriesInstanceUID", "Rows", "Columns", "ImageOrientationPatient", "PixelSpacing"):
        found = len({str(f[name].value) for f in files})
        if found > 1:
            raise MrgenError(f"{found} different values of {name}, expected one series: give each a folder")
    return files


def series_pixels(files: list[Any]) -> Pixels:
    """The images of DICOM files, rescaled, (slice, y, x). Raises MrgenError where they cannot be decoded."""
    try:
        images = [f.pixel_array * float(f.get("RescaleSlope", 1)) + float(f.get("RescaleIntercept", 0)) for f in files]
    except Exception as error:  # pydicom and its decoders raise many types
        raise MrgenError(f"its pixels cannot be decoded ({type(error).__name__}): decompress the files") from None
    return np.stack(images).astype(np.float32)


def _read_dicom(folder: Path, axis: str | None) -> Volume:
    files = read_series(folder)
    along_x, along_y = np.asarray(files[0].ImageOrientationPatient, np.float64).reshape(2, 3)
    normal = np.cross(along_x, along_y)
    height = np.array([np.asarray(f.ImagePositionPatient, np.float64) @ normal for f in files])
    order = np.argsort(height)
    gaps = np.diff(height[order])
    spacing = float(np.median(gaps)) if len(files) > 1 else float(files[0].get("SliceThickness") or 1.0)
    if len(files) > 1 and (spacing <= 0 or np.abs(gaps - spacing).max() > _TOLERANCE * spacing):
        raise MrgenError(
            f"slices {gaps.min():.2f} to {gaps.max():.2f} mm apart, expected equal steps: one series without gaps, "
            "and neither echoes nor repetitions in it"
        )
    array = series_pixels([files[i] for i in order])
    y, x = (float(v) for v in files[0].PixelSpacing)
    if axis is None:
        return magnitude_volume(array, (spacing, y, x))
    return magnitude_volume(*turn(array, np.stack([normal * spacing, along_y * y, along_x * x], axis=1), axis))


def open_volume(path: Path, axis: str | None = None) -> tuple[str, Volume]:
    """The kind of `path` (nifti, dicom or npz) and its volume.

    `axis` is axial, coronal or sagittal for files that know their directions, by default axial for NIfTI and a DICOM
    series' own plane, or the number of an array's slice axis, 0 by default. Raises MrgenError.
    """
    readers: dict[str, Callable[[Path, str | None], Volume]]
    readers = {"nifti": _read_nifti, "dicom": _read_dicom, "npz": _read_npz}
    expected = "expected phantom, a .nii, .nii.gz or .npz file, or a folder with a DICOM series"
    if not path.exists():
        raise MrgenError(f"{path}: there is no such file or folder, {expected}")
    endings = {".nii": "nifti", ".nii.gz": "nifti", ".npz": "npz"}
    kinds = ["dicom"] if path.is_dir() else [kind for ending, kind in endings.items() if path.name.endswith(ending)]
    if not kinds:
        raise MrgenError(f"{path.name}: {expected}")
    known = ("0", "1", "2") if kinds[0] == "npz" else tuple(PLANES)
    if axis is not None and axis not in known:
        raise MrgenError(f"--axis {axis}: expected {', '.join(known[:-1])} or {known[-1]} for {kinds[0]}")
    try:
        return kinds[0], readers[kinds[0]](path, axis)
    except MrgenError as error:
        raise MrgenError(f"{path.name}: {error}") from None
