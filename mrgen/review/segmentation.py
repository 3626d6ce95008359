"""The regions of mrgen.review.flag as a binary DICOM Segmentation, one object a volume, with the slices that have any.

One segment, "Uncertain region", of the type Region in Space: it names a property of the reconstruction, and nothing of
the body.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from mrgen.review.dicom import Objects, Role, interval_meaning
from mrgen.review.flag import rule, uncertain_regions

LABEL = "Uncertain region"
_YELLOW = CIELabColor(90.0, 0.0, 80.0)
_MEANING = (
    "Regions with a wide calibrated interval: {rule}. They tell of the reconstruction, not of the patient: no finding, "
    "and what lies outside is not certain. {interval}"
)


def flag_role(objects: Objects, threshold: float) -> Role:
    """The series of the regions with this threshold, another one for each."""
    meaning = _MEANING.format(rule=rule(threshold), interval=interval_meaning(objects.stored))
    image_type = ("DERIVED", "PRIMARY", "OTHER", "SEG")
    return Role(1004, "1004_flagged", image_type, "uncertain regions", None, meaning, (threshold,))


def segmentation(
    objects: Objects, mask: NDArray[np.bool_], threshold: float, sources: list[Dataset], number: int
) -> Any:
    """The regions `mask` (slice, y, x) of a volume, `number` of its series, made from the images `sources`."""
    role = flag_role(objects, threshold)
    template = objects.common(SegmentationStorage, role, number)
    segment = SegmentDescription(
        segment_number=1,
        segment_label=LABEL,
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=codes.DCM.RegionInSpace,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            "mrgen --flag",
            codes.DCM.ArtificialIntelligence,
            str(template.SoftwareVersions),
            "mrgen",
            {"threshold": f"{threshold:g}"},
        ),
        tracking_id=LABEL,
        tracking_uid=objects.names.uid(role.folder, threshold, "segment"),
        display_color=_YELLOW,
    )
    segment.SegmentDescription = f"{rule(threshold)}. {objects.notice}"
    made: Any = Segmentation(
        sources,
        mask,
        "BINARY",
        [segment],
        content_label="UNCERTAIN",
        **objects.arguments(template, role, number),
    )
    objects.adopt(made, template, role)
    made.Modality = "SEG"
    return made


def write_segmentations(folder: Path, objects: Objects, threshold: float, sources: list[Dataset]) -> int:
    """Write an object for each volume with regions into a folder below `folder`, and none where there is no region.

    `sources` are the images of the mean, one a slice. Returns the number of slices with regions.
    """
    images = objects.stored.images
    mask = uncertain_regions(images["interval"], images["reconstruction"], threshold)
    volumes = objects.placement.volumes()
    target = folder / flag_role(objects, threshold).folder
    for number, chosen in enumerate(volumes, start=1):
        part = slice(chosen.start, chosen.stop)
        if mask[part].any():
            target.mkdir(exist_ok=True)
            made = segmentation(objects, mask[part], threshold, sources[part], number)
            file = "flagged.dcm" if len(volumes) == 1 else f"flagged_{number:05d}.dcm"
            made.save_as(target / file, enforce_file_format=True)
    return int(mask.any(axis=(1, 2)).sum())
