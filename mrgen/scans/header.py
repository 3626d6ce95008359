"""The XML header of ISMRMRD and fastMRI files: the geometry mrgen needs, and a copy without personal data.

Axes are (readout, phase), which the header calls x and y. Namespaces are ignored.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from mrgen.errors import MrgenError

# An allow-list: what is not named here (subject, study, names, dates, serial numbers, free text) is dropped.
_KEPT: dict[str, frozenset[str]] = {
    "measurementInformation": frozenset({"patientPosition"}),
    "acquisitionSystemInformation": frozenset(
        {"systemVendor", "systemModel", "systemFieldStrength_T", "receiverChannels"}
    ),
    "experimentalConditions": frozenset({"H1resonanceFrequency_Hz"}),
    "encoding": frozenset(
        {"encodedSpace", "reconSpace", "encodingLimits", "trajectory", "parallelImaging", "echoTrainLength"}
    ),
    "sequenceParameters": frozenset({"TR", "TE", "TI", "flipAngle_deg", "sequence_type", "echo_spacing"}),
}


@dataclass(frozen=True)
class Header:
    """Matrix sizes and fields of view of the acquisition and of the image made from it."""

    encoded: tuple[int, int]
    recon: tuple[int, int]
    encoded_fov: tuple[float, float] | None  # mm
    recon_fov: tuple[float, float] | None  # mm
    limits: tuple[int, int] | None  # centre and last index of the acquired phase encodes

    def cropped(self, axis: int, samples: int) -> int:
        """How many of `samples` pixels along `axis` the reconstructed image keeps.

        All of them where k-space does not have the encoded matrix, or where the crop would cut into the
        reconstruction's field of view (5 % allowed for rounding): there the smaller matrix means coarser pixels.
        """
        kept = self.recon[axis]
        if self.encoded[axis] != samples or kept >= samples:
            return samples
        if self.encoded_fov and self.recon_fov:
            left = kept * self.encoded_fov[axis] / samples
            if left < 0.95 * self.recon_fov[axis]:
                return samples
        return kept

    def padding(self, lines: int) -> tuple[int, int]:
        """Phase lines at the (left, right) edge that were not acquired but zero-filled by the scanner."""
        if self.limits is None or self.encoded[1] != lines:
            return 0, 0
        centre, last = self.limits
        left = max(0, lines // 2 - centre)
        return left, max(0, lines - (left + last + 1))


def _pair(root: ET.Element, space: str, quantity: str) -> tuple[float, float] | None:
    texts = [root.findtext(f"{{*}}encoding/{{*}}{space}/{{*}}{quantity}/{{*}}{axis}") for axis in "xy"]
    return (float(texts[0]), float(texts[1])) if texts[0] and texts[1] else None


def _matrix(root: ET.Element, space: str) -> tuple[int, int]:
    pair = _pair(root, space, "matrixSize")
    if pair is None or min(pair) < 1:
        raise MrgenError(f"ismrmrd_header has no usable encoding/{space}/matrixSize with x and y: add it")
    return int(pair[0]), int(pair[1])


def _root(xml: str) -> ET.Element:
    try:
        return ET.fromstring(xml)
    except ET.ParseError as error:
        raise MrgenError(f"ismrmrd_header is not valid XML ({error}): repair it or remove the dataset") from None


def parse_header(xml: str) -> Header:
    """The first encoding of the header. Raises MrgenError for broken XML, missing matrix sizes or non-numbers."""
    root = _root(xml)
    try:
        step = "{*}encoding/{*}encodingLimits/{*}kspace_encoding_step_1/{*}"
        centre, last = root.findtext(step + "center"), root.findtext(step + "maximum")
        return Header(
            encoded=_matrix(root, "encodedSpace"),
            recon=_matrix(root, "reconSpace"),
            encoded_fov=_pair(root, "encodedSpace", "fieldOfView_mm"),
            recon_fov=_pair(root, "reconSpace", "fieldOfView_mm"),
            limits=(int(centre), int(last)) if centre and last else None,
        )
    except ValueError as error:
        raise MrgenError(f"ismrmrd_header holds something else than a number ({error}): repair it") from None


def anonymous_header(xml: str) -> str:
    """The header with only the elements that describe the acquisition; raises MrgenError for broken XML."""
    root = _root(xml)
    for section in list(root):
        kept = _KEPT.get(section.tag.rpartition("}")[2])
        if kept is None:
            root.remove(section)
            continue
        for element in list(section):
            if element.tag.rpartition("}")[2] not in kept:
                section.remove(element)
    namespace = root.tag.partition("}")[0].lstrip("{") if root.tag.startswith("{") else None
    return ET.tostring(root, encoding="unicode", default_namespace=namespace)
