"""MR Image Storage, one file a slice, which every PACS shows: mean, std, interval and single samples of a result.

    stored value = round(s x),   s = 16000 / p99.9(mean),   0 to 32767

with one s for all series of a result, so that a std of 800 beside a mean of 16000 is 5 %; RealWorldValueMapping holds
1 / s. Everything that is the same in all objects of a result is in `Objects`, which those of other classes use too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from mrgen.review.geometry import NOMINAL_NOTICE, Placement
from mrgen.review.identity import Names
from mrgen.review.stored import Stored, Volume
from mrgen.scans.files import plain
from mrgen.scans.header import Sequence, sequence_parameters

NOTICE = "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE"
# dcm2niix takes any Manufacturer, those of contributing equipment too, for the scanner's, tells it by two letters, and
# expects what such scanners write: none may begin with SI, GE, HI, ME, PH, TO, CA, CP, UI, BR, MR or HY.
MANUFACTURER = "Open-source mrgen project"
_TOP, _PERCENTILE, _LARGEST = 16000, 99.9, 32767
_UNITS = Code("1", "UCUM", "no units")


@dataclass(frozen=True)
class Role:
    """What one series shows."""

    number: int  # SeriesNumber
    folder: str
    image_type: tuple[str, str, str, str]
    name: str  # in SeriesDescription
    derivation: Code | None  # of the pixels from others
    meaning: str = ""  # sentences at the beginning of DerivationDescription
    settings: tuple[object, ...] = ()  # that the pixels depend on beside the result


def interval_name(stored: Stored) -> str:
    """The beginning of the name of a series with the interval, short as a SeriesDescription has to be."""
    return f"marginal {stored.attributes['interval_coverage']:.0%}"


def interval_meaning(stored: Stored) -> str:
    """What a calibrated interval is, and is not."""
    coverage, factor = (stored.attributes[f"interval_{name}"] for name in ("coverage", "factor"))
    return (
        f"Half-width of the calibrated {coverage:.0%} interval about the mean, {factor:.2f} x std. It is marginal: it "
        f"covers {coverage:.0%} on average over scans and the pixels of the body, of no pixel in particular; and "
        "in-distribution: of scans like those that it was calibrated with. A narrow interval does not mean correct. "
    )


def roles(stored: Stored) -> dict[str, Role]:
    """The MR series of a result by the image that they show; std and interval only where there are samples."""
    if stored.samples is None:
        image_type = ("DERIVED", "PRIMARY", "OTHER", "RECON")
        return {"reconstruction": Role(1001, "1001_reconstruction", image_type, "reconstruction", None)}
    n = stored.samples
    mean = Role(1001, "1001_mean", ("DERIVED", "PRIMARY", "OTHER", "MEAN"), f"mean of {n}", codes.DCM.PixelByPixelMean)
    std = Role(
        1002, "1002_std", ("DERIVED", "SECONDARY", "OTHER", "STD_DEV"), f"std of {n}", codes.DCM.StandardDeviation
    )
    known = {"reconstruction": mean, "std": std}
    if "interval" in stored.images:
        image_type = ("DERIVED", "SECONDARY", "OTHER", "INTERVAL")
        name = f"{interval_name(stored)} interval"
        known["interval"] = Role(1006, "1006_interval", image_type, name, None, interval_meaning(stored))
    return {name: role for name, role in known.items() if name in stored.images}


def sample_role(number: int) -> Role:
    """The series of posterior sample `number`, counted from 0."""
    image_type = ("DERIVED", "SECONDARY", "OTHER", "SAMPLE")
    return Role(1101 + number, f"{1101 + number}_sample", image_type, f"sample {number + 1}", None)


@dataclass(frozen=True)
class Objects:
    """What the DICOM objects of one result share."""

    stored: Stored
    placement: Placement
    names: Names

    @cached_property
    def scale(self) -> float:
        """s, stored values per unit of the input."""
        top = float(np.percentile(self.stored.images["reconstruction"], _PERCENTILE))
        return _TOP / top if top > 0 else 1.0

    @cached_property
    def sequence(self) -> Sequence:
        return sequence_parameters(self.stored.header)

    @property
    def notice(self) -> str:
        return f"{NOTICE}. {NOMINAL_NOTICE}" if self.placement.nominal else NOTICE

    @property
    def derivation(self) -> str:
        a = self.stored.attributes
        prior = f", prior {a['prior_sha256'][:12]}" if "prior_sha256" in a else ""
        drawn = f", {self.stored.samples} posterior samples, seed {a['seed']}" if self.stored.samples else ""
        return f"mrgen {a['mrgen_version']}, recipe {a['recipe'][:64]}, R = {a['R']:.2f}{drawn}{prior}. {self.notice}"

    def describe(self, what: str) -> str:
        """A SeriesDescription, of at most 64 characters."""
        nominal = ", nominal geometry" if self.placement.nominal else ""
        return f"mrgen {what}, R={self.stored.attributes['R']:.1f} (research{nominal})"

    def equipment(self) -> Iterator[Dataset]:
        """Items of ContributingEquipmentSequence: the scanner, as far as it is known, and mrgen."""
        version = self.stored.attributes["mrgen_version"]
        for purpose, maker, model in (
            (codes.DCM.AcquisitionEquipment, f"Scanner: {self.sequence.vendor or 'unknown'}", self.sequence.model),
            (codes.DCM.ProcessingEquipment, MANUFACTURER, "mrgen"),
        ):
            item = Dataset()
            item.PurposeOfReferenceCodeSequence = [coded(purpose)]
            item.Manufacturer = _one_line(maker)
            if model:
                item.ManufacturerModelName = _one_line(model)
            if maker == MANUFACTURER:
                item.SoftwareVersions = version
                item.ContributionDescription = self.derivation
            yield item

    def common(self, sop_class: str, role: Role, *instance: object) -> FileDataset:
        """A file with what is the same in every object, for the `instance` of the series with this role."""
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = UID(sop_class)
        meta.MediaStorageSOPInstanceUID = UID(self.names.uid(role.folder, *role.settings, *instance))
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
        for keyword, value in self.names.tags().items():
            setattr(ds, keyword, value)
        ds.Modality = "MR"
        ds.SeriesInstanceUID = self.names.uid(role.folder, *role.settings)
        ds.SeriesNumber = role.number
        ds.SeriesDescription = self.describe(role.name)
        ds.Manufacturer, ds.ManufacturerModelName = MANUFACTURER, "mrgen"
        ds.SoftwareVersions = self.stored.attributes["mrgen_version"]
        ds.ImageType = list(role.image_type)
        ds.ImageComments = self.notice
        ds.DerivationDescription = role.meaning + self.derivation
        ds.ContributingEquipmentSequence = list(self.equipment())
        ds.ContentDate = ds.InstanceCreationDate = f"{self.stored.created:%Y%m%d}"
        ds.ContentTime = ds.InstanceCreationTime = f"{self.stored.created:%H%M%S}"
        ds.TimezoneOffsetFromUTC = "+0000"
        ds.BurnedInAnnotation = "NO"
        if ds.StudyInstanceUID == self.names.uid("study"):  # a study of its own, made when the result was
            ds.StudyDate, ds.StudyTime, ds.StudyID = ds.ContentDate, ds.ContentTime, "MRGEN"
        if not ds.get("BodyPartExamined"):
            ds.BodyPartExamined = "WHOLEBODY"  # raw data do not tell; without one, Laterality would be required
        if not ds.get("PatientPosition"):
            ds.PatientPosition = "" if self.placement.nominal else self.sequence.patient_position or ""
        return ds

    def arguments(self, template: Dataset, role: Role, number: int) -> dict[str, Any]:
        """What every class of highdicom asks for, of object `number` of a series, begun as `template` by `common`."""
        return {
            "series_instance_uid": template.SeriesInstanceUID,
            "series_number": role.number,
            "sop_instance_uid": template.SOPInstanceUID,
            "instance_number": number,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": "mrgen",
            "software_versions": template.SoftwareVersions,
            "device_serial_number": "none",
            "content_description": role.name,
            "content_creator_name": "mrgen^",
        }

    def adopt(self, made: Any, template: Dataset, role: Role) -> None:
        """Put what `common` gave as `template` into an object that highdicom has made.

        Of its own it takes the source images for the acquisition's equipment, and new UIDs and dates at every call.
        """
        for element in template:
            if element.keyword not in ("SOPClassUID", "SOPInstanceUID", "ImageType"):
                made[element.tag] = element
        for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
            item.DimensionOrganizationUID = self.names.uid(role.folder, *role.settings, "dimensions")


def _one_line(text: str) -> str:
    """Foreign text as one value of at most 64 characters; a backslash would begin another."""
    return plain(text.replace("\\", "/"), 60)


def coded(code: Code) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def decimals(values: Any) -> list[str]:
    """Decimal strings, of at most 16 characters each."""
    return [format_number_as_ds(float(v) + 0.0) for v in values]  # + 0.0: no -0


def referred(ds: Dataset) -> Dataset:
    """An item that refers to an image as the source of another."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [coded(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


def _real_world(scale: float) -> Dataset:
    """The mapping of stored values to the units of the input."""
    item = Dataset()
    item.LUTLabel, item.LUTExplanation = "INPUT_UNITS", "Intensity in the units of the raw data"
    item.MeasurementUnitsCodeSequence = [coded(_UNITS)]
    item.add_new("RealWorldValueFirstValueMapped", "US", 0)
    item.add_new("RealWorldValueLastValueMapped", "US", _LARGEST)
    item.RealWorldValueIntercept, item.RealWorldValueSlope = 0.0, 1 / scale
    return item


def mr_series(objects: Objects, volume: Volume, role: Role, sources: list[Dataset] | None = None) -> Iterator[Dataset]:
    """The series of `volume` (slice, y, x), an object a slice; `sources` are the images that it was made from."""
    scale, placement, sequence = objects.scale, objects.placement, objects.sequence
    stored = np.clip(np.round(volume * scale), 0, _LARGEST).astype("<u2")
    width = max(2, round(float(np.percentile(volume, _PERCENTILE)) * scale))
    volumes = placement.volumes()
    for i, pixels in enumerate(stored):
        ds = objects.common(MRImageStorage, role, i)
        ds.InstanceNumber = i + 1
        ds.AcquisitionNumber = next(number for number, v in enumerate(volumes, start=1) if i in v)
        if role.derivation is not None:
            ds.DerivationCodeSequence = [coded(role.derivation)]
        if sources is not None:
            ds.SourceImageSequence = [referred(sources[i])]
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "RM", "NONE", ""
        ds.MRAcquisitionType = "3D" if sequence.volume else "2D"
        ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = sequence.tr, sequence.te, ""
        if sequence.field_strength:
            ds.MagneticFieldStrength = format_number_as_ds(sequence.field_strength)
        ds.PixelSpacing = decimals(placement.spacing)
        ds.ImageOrientationPatient = decimals([*placement.along_x, *placement.along_y])
        ds.ImagePositionPatient = decimals(placement.origins[i])
        ds.SliceThickness = decimals([placement.thickness])[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.Rows, ds.Columns = pixels.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.WindowCenter, ds.WindowWidth = str(math.ceil(width / 2)), str(width)
        ds.RealWorldValueMappingSequence = [_real_world(scale)]
        ds.PixelData = pixels.tobytes()
        yield ds


def write_dicom(folder: Path, objects: Objects, samples: bool) -> dict[str, list[Dataset]]:
    """Write the MR series of a result into folders of their own below `folder`, with those of `samples` on request.

    Returns the series by the image that they show, as other objects are made from them.
    """
    written: dict[str, list[Dataset]] = {}
    for name, role in roles(objects.stored).items():
        written[name] = list(mr_series(objects, objects.stored.images[name], role, written.get("reconstruction")))
        save_series(folder / role.folder, written[name])
    for number in range(objects.stored.samples or 0) if samples else ():
        role = sample_role(number)
        save_series(folder / role.folder, mr_series(objects, objects.stored.sample(number), role))
    return written


def save_series(folder: Path, series: Iterable[Dataset]) -> None:
    """Write objects, one after the other, as 00001.dcm, 00002.dcm, ... by their number."""
    folder.mkdir()
    for ds in series:
        ds.save_as(folder / f"{int(ds.InstanceNumber):05d}.dcm", enforce_file_format=True)
