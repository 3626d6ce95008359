"""The std as a DICOM Parametric Map: float32, in the units of the input, all slices of a volume in one object.

highdicom makes the object; what was found with it and with readers of such maps is put right here: its frames descend
along e_x x e_y, and dcmqi believes their order rather than their positions; dcmqi wants a FrameAnatomySequence; the
source images are taken for the acquisition's equipment; UIDs and dates differ at every call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ParametricMapStorage

from mrgen.review.dicom import MANUFACTURER, Objects, Role, coded
from mrgen.review.stored import Volume

ROLE = Role(
    1003, "1003_std_pm", ("DERIVED", "PRIMARY", "VOLUME", "STD_DEVIATION"), "std map", codes.DCM.StandardDeviation
)
_PERCENTILE = 99.9  # of the std, that the window reaches up to
_UIDS = "SOPClassUID", "SOPInstanceUID", "ImageType"  # that highdicom has set already


def parametric_map(objects: Objects, volume: Volume, sources: list[Dataset], number: int) -> Any:
    """The map of one volume (slice, y, x), `number` of its series, made from the images `sources`, one a slice."""
    template = objects.common(ParametricMapStorage, ROLE, number)
    top = float(np.percentile(volume, _PERCENTILE)) or 1.0
    largest = max(float(volume.max()), top)
    made: Any = ParametricMap(
        sources,
        np.ascontiguousarray(volume, np.float32),
        series_instance_uid=template.SeriesInstanceUID,
        series_number=ROLE.number,
        sop_instance_uid=template.SOPInstanceUID,
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="mrgen",
        software_versions=template.SoftwareVersions,
        device_serial_number="none",
        contains_recognizable_visual_features=True,  # of a head; nobody has looked
        image_flavor=ROLE.image_type[2],
        derived_pixel_contrast=ROLE.image_type[3],
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="INPUT_UNITS",
                lut_explanation="Intensity in the units of the raw data",
                unit=codes.UCUM.NoUnits,
                value_range=(0.0, largest),
                slope=1.0,
                intercept=0.0,
            )
        ],
        voi_lut_transformations=[
            highdicom.VOILUTTransformation(window_center=top / 2, window_width=top, voi_lut_function="LINEAR_EXACT")
        ],
        content_label="STD",
        content_description=ROLE.name,
        content_creator_name="mrgen^",
        derivation=ROLE.derivation,
    )
    for element in template:
        if element.keyword not in _UIDS:
            made[element.tag] = element
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = objects.names.uid(ROLE.folder, "dimensions")
    for item in made.DimensionIndexSequence:
        item.DimensionOrganizationUID = made.DimensionOrganizationSequence[0].DimensionOrganizationUID
    made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [_anatomy()]
    _ascend(made, objects)
    return made


def _anatomy() -> Dataset:
    item, region = Dataset(), coded(codes.SCT.EntireBody)  # raw data do not tell
    item.AnatomicRegionSequence = [region]
    item.FrameLaterality = "U"
    return item


def _ascend(made: Any, objects: Objects) -> None:
    """Order the frames by their place along e_x x e_y."""
    normal = np.cross(objects.placement.along_x, objects.placement.along_y)
    frames = list(made.PerFrameFunctionalGroupsSequence)
    heights = [normal @ np.array(f.PlanePositionSequence[0].ImagePositionPatient, np.float64) for f in frames]
    order = np.argsort(heights, kind="stable")
    pixels = np.frombuffer(made.FloatPixelData, "<f4").reshape(len(frames), -1)
    made.FloatPixelData = pixels[order].tobytes()
    made.PerFrameFunctionalGroupsSequence = [frames[i] for i in order]
    for place, frame in enumerate(made.PerFrameFunctionalGroupsSequence, start=1):
        frame.FrameContentSequence[0].DimensionIndexValues = place


def write_parametric_map(folder: Path, objects: Objects, sources: list[Dataset]) -> None:
    """Write the std's map, an object for each volume, into a folder of its own below `folder`.

    `sources` are the images of the mean, one a slice.
    """
    target = folder / ROLE.folder
    target.mkdir()
    volumes = objects.placement.volumes()
    for number, chosen in enumerate(volumes, start=1):
        part = slice(chosen.start, chosen.stop)
        made = parametric_map(objects, objects.stored.images["std"][part], sources[part], number)
        made.save_as(target / ("std.dcm" if len(volumes) == 1 else f"std_{number:05d}.dcm"), enforce_file_format=True)
