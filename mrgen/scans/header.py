"""The XML header of ISMRMRD and fastMRI files: the geometry mrgen needs, and a copy without personal data.

Axes are (readout, phase), which the header calls x and y; z is across the slices. Namespaces are ignored. Headers
are foreign: a document type or entities (they can expand without end) and numbers beyond all reason are refused.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from mrgen.errors import MrgenError

NAMESPACE = "http://www.ismrm.org/ISMRMRD"
FARTHEST = 1e5  # mm
_LONGEST_TIME = 1e6  # ms
_POSITIONS = {first + last for first in ("HF", "FF") for last in ("S", "P", "DL", "DR")}
_LONGEST, _LARGEST, _DEEPEST = 2**22, 65535, 6  # characters; samples, xs:unsignedShort; nested elements
_SPACES = "encodedSpace", "reconSpace"

# An allow-list: what is not named here (subject, study, names, dates, serial numbers, free text) is dropped.
_KEPT: dict[str, frozenset[str]] = {
    "measurementInformation": frozenset({"patientPosition"}),
    "acquisitionSystemInformation": frozenset(
        {
            "systemVendor",
            "systemModel",
            "systemFieldStrength_T",
            "relativeReceiverNoiseBandwidth",
            "receiverChannels",
        }
    ),
    "experimentalConditions": frozenset({"H1resonanceFrequency_Hz"}),
    "encoding": frozenset(
        {"encodedSpace", "reconSpace", "encodingLimits", "trajectory", "parallelImaging", "echoTrainLength"}
    ),
    "sequenceParameters": frozenset({"TR", "TE", "TI", "flipAngle_deg", "sequence_type", "echo_spacing"}),
}


@dataclass(frozen=True)
class Header:
    """One encoding: matrix sizes and fields of view of the acquisition and of the image made from it."""

    encoded: tuple[int, int]
    recon: tuple[int, int]
    encoded_fov: tuple[float, float] | None  # mm
    recon_fov: tuple[float, float] | None  # mm
    limits: tuple[int, int] | None  # centre and last index of the acquired phase encodes
    partitions: tuple[int, int] = (1, 1)  # encoded and reconstructed, more than 1 for a volume encoded in 3-D
    slab: tuple[float, float] | None = None  # mm across, encoded and reconstructed: a 2-D slice's thickness
    partition_centre: int | None = None
    trajectory: str | None = None  # in lower case
    calibration: str | None = None  # calibrationMode, in lower case: where the calibration lines of R > 1 are
    acceleration: tuple[float, float] = (1.0, 1.0)  # along phase encodes and partitions
    field_strength: float | None = None  # T
    noise_bandwidth: float = 1.0  # mean power of a noise scan over that of its flat pass band

    def cropped(self, axis: int, samples: int) -> int:
        """How many of `samples` pixels along `axis` (2 for partitions) the reconstructed image keeps.

        All of them where k-space does not have the encoded matrix, or where the crop would cut into the
        reconstruction's field of view (5 % allowed for rounding): there the smaller matrix means coarser pixels.
        """
        encoded, kept = (*self.encoded, self.partitions[0])[axis], (*self.recon, self.partitions[1])[axis]
        if encoded != samples or kept >= samples:
            return samples
        across = self.slab or (0.0, 0.0)
        fov = (*(self.encoded_fov or (0.0, 0.0)), across[0])[axis]
        wanted = (*(self.recon_fov or (0.0, 0.0)), across[1])[axis]
        return samples if fov and kept * fov / samples < 0.95 * wanted else kept

    def padding(self, lines: int) -> tuple[int, int]:
        """Phase lines at the (left, right) edge that were not acquired but zero-filled by the scanner."""
        if self.limits is None or self.encoded[1] != lines:
            return 0, 0
        centre, last = self.limits
        left = max(0, lines // 2 - centre)
        return left, max(0, lines - (left + last + 1))


def _root(xml: str) -> ET.Element:
    if len(xml) > _LONGEST:
        raise MrgenError(f"ismrmrd_header has {len(xml)} characters, expected at most {_LONGEST}: repair it")
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise MrgenError("ismrmrd_header declares a document type or entities, which ISMRMRD never needs: remove them")
    try:
        return ET.fromstring(xml)
    except (ET.ParseError, ValueError) as error:  # ValueError: characters that cannot be encoded
        raise MrgenError(f"ismrmrd_header is not valid XML ({error}): repair it or remove the dataset") from None


def _text(element: ET.Element, path: str) -> str | None:
    """Text of the descendant at a/b/c, whatever its namespace; None where it is missing or blank."""
    return (element.findtext("/".join("{*}" + name for name in path.split("/"))) or "").strip() or None


def _number(element: ET.Element, path: str, most: float = math.inf) -> float | None:
    """The number at `path`, None where there is none; MrgenError unless it is one between 0 and `most`."""
    text = _text(element, path)
    try:
        value = None if text is None else float(text)
    except ValueError:
        raise MrgenError(f"ismrmrd_header holds something else than a number at {path}: repair it") from None
    if value is not None and not (0 <= value <= most and math.isfinite(value)):
        raise MrgenError(f"ismrmrd_header has {path} = {value:g}, expected 0 to {most:g}: repair it")
    return value


def _index(element: ET.Element, path: str) -> int | None:
    number = _number(element, path, _LARGEST)
    return None if number is None else int(number)


def _pair(a: float | None, b: float | None) -> tuple[float, float] | None:
    return (a, b) if a and b else None


def _matrix(encoding: ET.Element, space: str) -> tuple[int, int, int]:
    x, y, z = (_index(encoding, f"{space}/matrixSize/{axis}") for axis in "xyz")
    if not x or not y:
        raise MrgenError(f"ismrmrd_header has no usable encoding/{space}/matrixSize with x and y: add it")
    return x, y, z or 1


def parse_header(xml: str, encoding: int = 0) -> Header:
    """One encoding of the header, the first unless told otherwise. Raises MrgenError for what cannot be one."""
    root = _root(xml)
    found = root.findall("{*}encoding")
    if encoding >= max(1, len(found)):
        raise MrgenError(f"ismrmrd_header has {len(found)} encodings, the data use number {encoding}: repair it")
    this = found[encoding] if found else root
    encoded, recon = (_matrix(this, space) for space in _SPACES)

    fov_y, fov_x, fov_z = (
        [_number(this, f"{space}/fieldOfView_mm/{axis}", FARTHEST) for space in _SPACES] for axis in "xyz"
    )

    step = "encodingLimits/kspace_encoding_step_1/"
    centre, last = _index(this, step + "center"), _index(this, step + "maximum")
    factor = "parallelImaging/accelerationFactor/kspace_encoding_step_"
    system = "acquisitionSystemInformation/"
    return Header(
        encoded=encoded[:2],
        recon=recon[:2],
        encoded_fov=_pair(fov_y[0], fov_x[0]),
        recon_fov=_pair(fov_y[1], fov_x[1]),
        limits=None if centre is None or last is None else (centre, last),
        partitions=(encoded[2], recon[2]),
        slab=_pair(*fov_z),
        partition_centre=_index(this, "encodingLimits/kspace_encoding_step_2/center"),
        trajectory=(_text(this, "trajectory") or "").lower() or None,
        calibration=(_text(this, "parallelImaging/calibrationMode") or "").lower() or None,
        acceleration=(_number(this, factor + "1") or 1.0, _number(this, factor + "2") or 1.0),
        field_strength=_number(root, system + "systemFieldStrength_T"),
        noise_bandwidth=_number(root, system + "relativeReceiverNoiseBandwidth", 1) or 1.0,
    )


@dataclass(frozen=True)
class Sequence:
    """What an image should say of how it was acquired; text of one value, empty where it is unknown."""

    vendor: str | None = None
    model: str | None = None
    patient_position: str | None = None
    field_strength: float | None = None  # T
    tr: str = ""  # ms
    te: str = ""
    volume: bool = False  # encoded in 3-D


def sequence_parameters(xml: str | None) -> Sequence:
    """The sequence that a header describes; TR and TE only where there is one of each. Raises MrgenError."""
    if xml is None:
        return Sequence()
    root = _root(xml)
    system = "acquisitionSystemInformation/"
    times = {name: root.findall(f"{{*}}sequenceParameters/{{*}}{name}") for name in ("TR", "TE")}
    numbers = {
        name: _number(root, f"sequenceParameters/{name}", _LONGEST_TIME) if len(found) == 1 else None
        for name, found in times.items()
    }
    tr, te = ("" if number is None else f"{number:.10g}" for number in numbers.values())
    position = _text(root, "measurementInformation/patientPosition")
    depth = _index(root, "encoding/encodedSpace/matrixSize/z")
    return Sequence(
        vendor=_text(root, system + "systemVendor"),
        model=_text(root, system + "systemModel"),
        patient_position=position if position in _POSITIONS else None,
        field_strength=_number(root, system + "systemFieldStrength_T"),
        tr=tr,
        te=te,
        volume=(depth or 1) > 1,
    )


def require_cartesian(trajectory: str | None) -> None:
    """Raises MrgenError for a trajectory that is neither unknown nor "cartesian"."""
    if trajectory not in (None, "cartesian"):
        why = " (echo-planar readouts have to be regridded and phase-corrected first)" if trajectory == "epi" else ""
        raise MrgenError(
            f"the trajectory is {trajectory[:20]!r}{why}, expected 'cartesian': mrgen cannot reconstruct it"
        )


def _copy(element: ET.Element, depth: int = 2) -> ET.Element:
    """Names, texts and order of `element` and what it holds, without namespaces, attributes and mixed text."""
    copy = ET.Element(element.tag.rpartition("}")[2])
    copy.extend(_copy(child, depth + 1) for child in element if depth < _DEEPEST)
    copy.text = None if len(element) else element.text
    return copy


def anonymous_header(xml: str) -> str:
    """The header with only the elements that describe the acquisition; raises MrgenError for broken XML."""
    kept = ET.Element("ismrmrdHeader", xmlns=NAMESPACE)
    for section in _root(xml):
        name = section.tag.rpartition("}")[2]
        chosen = [_copy(child) for child in section if child.tag.rpartition("}")[2] in _KEPT.get(name, ())]
        if chosen:
            ET.SubElement(kept, name).extend(chosen)
    return ET.tostring(kept, encoding="unicode")
