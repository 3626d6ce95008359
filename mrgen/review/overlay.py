"""The std in colour over the mean, its label burned in: Secondary Capture Image Storage, for viewers that fuse nothing.

    colour = (1 - a) grey(mean) + a hot-iron(std),   a = 0.4

grey from 0 to the 99th percentile of the mean, the hot-iron palette of DICOM PS3.6 B from 0 to the 99.9th of the std,
both of all slices, so that slices compare. Each image is enlarged by an integer until the label is legible, without
interpolation, pixels that are not square to square ones; the label stands above and below the image, never on it, and
pixel spacing is that of what is shown. The class knows no position in the patient: PatientOrientation is all that it
tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage

from mrgen.review.dicom import NOTICE, Objects, Role, coded, decimals, referred
from mrgen.review.geometry import NOMINAL_NOTICE, towards
from mrgen.review.stored import Volume

Picture = NDArray[np.uint8]  # (row, column, 3)
ROLE = Role(
    1005,
    "1005_overlay",
    ("DERIVED", "SECONDARY", "OTHER", "OVERLAY"),
    "std in colour on mean",
    None,
    "The std of the samples in colour over their mean in grey. The label is burned in; it holds no patient data. A low "
    "std does not mean correct. ",
)
OPACITY = 0.4
_WIDTH = 512  # least width in pixels, for the label
_PERCENTILES = {"reconstruction": 99.0, "std": 99.9}  # that white and the palette's end stand for
_HOT_IRON = "1.2.840.10008.1.5.1"  # its UID
_MARGIN = 8
_WHITE, _YELLOW = (255, 255, 255), (255, 220, 0)


@dataclass(frozen=True)
class Canvas:
    """How the slices of a result are drawn."""

    objects: Objects

    @cached_property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of an enlarged image."""
        _, n_y, n_x = self.objects.stored.shape
        dy, dx = self.objects.placement.spacing
        finest = min(dy, dx)
        enlarged = -(-_WIDTH // round(n_x * dx / finest))
        return round(n_y * dy / finest * enlarged), round(n_x * dx / finest * enlarged)

    @property
    def spacing(self) -> tuple[float, float]:
        """Of the rows and columns of an enlarged image, mm."""
        (_, n_y, n_x), (dy, dx), (rows, columns) = self.objects.stored.shape, self.objects.placement.spacing, self.size
        return dy * n_y / rows, dx * n_x / columns

    @cached_property
    def tops(self) -> tuple[float, float]:
        """Mean and std that white and the palette's end stand for."""
        images = self.objects.stored.images
        mean, std = (float(np.percentile(images[name], share)) or 1.0 for name, share in _PERCENTILES.items())
        return mean, std

    @cached_property
    def above(self) -> Picture:
        """The label above an image: what it must not be used for."""
        lines = [NOTICE] + [NOMINAL_NOTICE] * self.objects.placement.nominal
        height = _MARGIN + 24 * len(lines)
        picture, draw = _black(height, self.size[1])
        for i, line in enumerate(lines):
            draw.text((_MARGIN, _MARGIN // 2 + 24 * i), line, _YELLOW, ImageFont.load_default(19))
        return np.asarray(picture)

    def below(self, i: int) -> Picture:
        """The label below slice i: what the colours mean."""
        columns, (white, top) = self.size[1], self.tops
        picture, draw = _black(98, columns)
        font, small = ImageFont.load_default(16), ImageFont.load_default(14)
        stored = self.objects.stored
        number = f"slice {i + 1} of {stored.shape[0]}"
        draw.text(
            (_MARGIN, 4), f"colour: std of {stored.samples} samples, at {OPACITY:.0%} over the mean", _WHITE, font
        )
        draw.text((columns - _MARGIN, 4), number, _WHITE, font, anchor="ra")
        bar = hot_iron(np.tile(np.linspace(0, 1, columns - 2 * _MARGIN), (12, 1)))
        picture.paste(Image.fromarray(bar), (_MARGIN, 28))
        for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
            place = _MARGIN + share * (columns - 2 * _MARGIN)
            draw.text((place, 42), f"{share * top:.2g}", _WHITE, small, anchor=anchor)
        scale = f"std in units of the raw data, up to {top / white:.1%} of white (mean {white:.2g})"
        draw.text((_MARGIN, 62), scale, _WHITE, small)
        draw.text((_MARGIN, 79), "A low std does not mean that the image is right.", _WHITE, small)
        return np.asarray(picture)

    def draw(self, i: int) -> Picture:
        """Slice i with its labels."""
        mean, std = (
            np.clip(self.objects.stored.images[name][i] / top, 0, 1)
            for name, top in zip(_PERCENTILES, self.tops, strict=True)
        )
        grey = np.repeat(255 * mean[..., None], 3, axis=2)
        mixed = np.rint((1 - OPACITY) * grey + OPACITY * hot_iron(std)).astype(np.uint8)
        y, x = (np.arange(many) * n // many for many, n in zip(self.size, mixed.shape, strict=False))
        return np.concatenate([self.above, mixed[np.ix_(y, x)], self.below(i)])


def _black(rows: int, columns: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (columns, rows))
    return picture, ImageDraw.Draw(picture)


def hot_iron(values: Volume | NDArray[np.float64]) -> Picture:
    """The colours (..., 3) of values from 0 to 1."""
    colours: Picture = apply_color_lut(np.rint(255 * values).astype(np.uint8), palette=_HOT_IRON)
    return colours


def overlay_series(objects: Objects, mean: list[Dataset], std: list[Dataset]) -> Iterator[Dataset]:
    """The series, an object a slice, made from the images of the series of mean and std."""
    canvas, placement = Canvas(objects), objects.placement
    orientation = [] if placement.nominal else [towards(placement.along_x), towards(placement.along_y)]
    for i in range(len(mean)):
        ds = objects.common(SecondaryCaptureImageStorage, ROLE, i)
        pixels = canvas.draw(i)
        ds.InstanceNumber = i + 1
        ds.ConversionType = "WSD"
        ds.BurnedInAnnotation = "NO"  # by definition, YES: text that identifies the patient and the date
        ds.DerivationCodeSequence = [coded(codes.DCM.PixelByPixelMean), coded(codes.DCM.StandardDeviation)]
        ds.SourceImageSequence = [referred(mean[i]), referred(std[i])]
        ds.PixelSpacing = decimals(canvas.spacing)
        ds.PatientOrientation = orientation
        del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator  # the class places nothing in the patient
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.Rows, ds.Columns = pixels.shape[:2]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        ds.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
        yield ds
