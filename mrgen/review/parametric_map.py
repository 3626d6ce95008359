"""std and interval as DICOM Parametric Maps: float32, in the units of the input, all slices of a volume in one object.

highdicom makes the object; what was found with it and with readers of such maps is put right here and in
`Objects.adopt`: its frames descend along e_x x e_y, and dcmqi believes their order rather than their positions; dcmqi
wants a FrameAnatomySequence.
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

from mrgen.review.dicom import Objects, Role, coded, interval_meaning, interval_name
from mrgen.review.stored import Stored

_PERCENTILE = 99.9  # of the map, that the window reaches up to


def map_roles(stored: Stored) -> dict[str, Role]:
    """The maps of a result by the image that they hold."""
    kind = "DERIVED", "PRIMARY", "VOLUME"
    known = {"std": Role(1003, "1003_std_pm", (*kind, "STD_DEVIATION"), "std map", codes.DCM.StandardDeviation)}
    if "interval" in stored.images:
        name = f"{interval_name(stored)} int. map"
        known["interval"] = Role(
            1007, "1007_interval_pm", (*kind, "MULTIPLICATION"), name, None, interval_meaning(stored)
        )
    return {name: role for name, role in known.items() if name in stored.images}


def parametric_map(objects: Objects, name: str, slices: slice, sources: list[Dataset], number: int) -> Any:
    """The map of `slices` of the image `name`, `number` of its series; `sources` are the images of the mean."""
    role, volume = map_roles(objects.stored)[name], objects.stored.images[name][slices]
    template = objects.common(ParametricMapStorage, role, number)
    top = float(np.percentile(volume, _PERCENTILE)) or 1.0
    largest = max(float(volume.max()), top)
    made: Any = ParametricMap(
        sources[slices],
        np.ascontiguousarray(volume, np.float32),
        contains_recognizable_visual_features=True,  # of a head; nobody has looked
        image_flavor=role.image_type[2],
        derived_pixel_contrast=role.image_type[3],
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
        content_label=name.upper(),
        derivation=role.derivation,
        **objects.arguments(template, role, number),
    )
    objects.adopt(made, template, role)
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


def write_parametric_maps(folder: Path, objects: Objects, sources: list[Dataset]) -> None:
    """Write the maps of a result, an object for each volume, into folders of their own below `folder`.

    `sources` are the images of the mean, one a slice.
    """
    for name, role in map_roles(objects.stored).items():
        target = folder / role.folder
        target.mkdir()
        volumes = objects.placement.volumes()
        for number, chosen in enumerate(volumes, start=1):
            made = parametric_map(objects, name, slice(chosen.start, chosen.stop), sources, number)
            file = f"{name}.dcm" if len(volumes) == 1 else f"{name}_{number:05d}.dcm"
            made.save_as(target / file, enforce_file_format=True)
