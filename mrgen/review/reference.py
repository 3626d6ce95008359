"""The geometry of a result by a DICOM series of the same scan, whose images say how the two arrays lie to each other.

Raw data are (readout, phase) while a scanner turns its images to how they are looked at, so the result is compared with
the series in every way to transpose and flip rows and columns and to reverse the slices. The way with the highest
correlation rho is taken, each with the best of the nine shifts by at most one pixel (mirroring k-space and mirroring an
image differ by one), if

    1 - rho_1 <= (1 - rho_2) / 2        rho_1, rho_2: the highest and the second highest

and refused otherwise: heads are nearly symmetric, and a wrong left and right is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mrgen.errors import MrgenError
from mrgen.review.geometry import Placement
from mrgen.review.identity import Identity, identity_of_series
from mrgen.review.stored import Volume
from mrgen.scans.volumes import read_series, series_pixels

_LEAST = 0.5  # correlation of two images of one scan
_ANGLE = 1e-4


@dataclass(frozen=True)
class Reference:
    """A DICOM series in the order of its instance numbers."""

    images: list[Any]  # pydicom Datasets, one slice each

    @property
    def identity(self) -> Identity:
        return identity_of_series(self.images[0])

    def placement(self) -> Placement:
        """Where its own pixels lie."""
        first = self.images[0]
        along_x, along_y = np.asarray(first.ImageOrientationPatient, np.float64).reshape(2, 3)
        dy, dx = (float(v) for v in first.PixelSpacing)
        origins = np.array([image.ImagePositionPatient for image in self.images], np.float64)
        thickness = float(first.get("SliceThickness") or 1.0)
        return Placement(origins, along_x, along_y, (dy, dx), thickness, "DICOM series")


def open_reference(folder: Path, slices: int, matrix: tuple[int, int]) -> Reference:
    """The series in `folder`, for a scan of so many `slices`, reconstructed with `matrix` (y, x). Raises MrgenError."""
    if not folder.is_dir():
        raise MrgenError(f"{folder.name}: expected a folder with the scanner's DICOM images of this scan")
    images = sorted(read_series(folder), key=lambda image: int(image.get("InstanceNumber") or 0))
    found = int(images[0].Rows), int(images[0].Columns)
    if len(images) != slices or sorted(found) != sorted(matrix):
        raise MrgenError(
            f"{folder.name}: {len(images)} images of {found[0]} x {found[1]}, expected {slices} of {matrix[0]} x "
            f"{matrix[1]}, those of this scan: name the series that the scanner made from it, not interpolated"
        )
    along_x, along_y = np.asarray(images[0].ImageOrientationPatient, np.float64).reshape(2, 3)
    if np.abs(np.array([along_x @ along_x - 1, along_y @ along_y - 1, along_x @ along_y])).max() > _ANGLE:
        raise MrgenError(f"{folder.name}: its ImageOrientationPatient is not orthonormal: export the series again")
    return Reference(images)


def _ways(placement: Placement, pixels: Volume) -> Iterator[tuple[Placement, Volume]]:
    """Every way to reverse the slices, and to transpose and flip the images; pixel and place go together."""
    for reverse in (False, True)[: len(pixels)]:
        origins, images = (placement.origins[::-1], pixels[::-1]) if reverse else (placement.origins, pixels)
        for transpose, flip_y, flip_x in product((False, True), repeat=3):
            turned = images.transpose(0, 2, 1) if transpose else images
            axes = [(placement.along_y, placement.spacing[0]), (placement.along_x, placement.spacing[1])]
            moved, steps = origins, []
            for (along, size), flip, n in zip(
                axes[::-1] if transpose else axes, (flip_y, flip_x), turned.shape[1:], strict=True
            ):
                moved = moved + flip * (n - 1) * size * along
                steps.append((-along if flip else along, size))
            (e_y, dy), (e_x, dx) = steps
            yield (
                Placement(moved, e_x, e_y, (dy, dx), placement.thickness, placement.source),
                turned[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1],
            )


def _correlation(a: Volume, b: Volume) -> float:
    """Pearson's, -1 where an image is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum(dtype=np.float64) * (b * b).sum(dtype=np.float64)))
    return float((a * b).sum(dtype=np.float64)) / size if size > 0 else -1.0


def place_by_reference(reference: Reference, image: Volume, first: int) -> Placement:
    """The placement of `image` (slice, y, x), whose slices are those from number `first` of the scan.

    Raises MrgenError where the images do not tell how the arrays lie to each other.
    """
    count, n_y, n_x = image.shape
    chosen, inner = slice(first, first + count), image[:, 1:-1, 1:-1]
    found = []
    for placement, pixels in _ways(reference.placement(), series_pixels(reference.images)):
        if pixels.shape[1:] != (n_y, n_x):
            continue
        shifted = {
            (y, x): _correlation(inner, pixels[chosen, 1 + y : n_y - 1 + y, 1 + x : n_x - 1 + x])
            for y, x in product((0, -1, 1), repeat=2)
        }
        y, x = max(shifted, key=lambda shift: shifted[shift])
        moved = y * placement.spacing[0] * placement.along_y + x * placement.spacing[1] * placement.along_x
        found.append((shifted[y, x], replace(placement, origins=placement.origins[chosen] + moved)))
    (best, placement), (second, _) = sorted(found, key=lambda way: -way[0])[:2]
    if best < _LEAST or 1 - best > (1 - second) / 2:
        raise MrgenError(
            f"the images of the DICOM series do not tell how this scan lies: they agree with it by {best:.3f} at best, "
            f"{second:.3f} another way round (1: the same image); expected the series of this very scan"
        )
    return placement
