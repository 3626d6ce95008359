"""Whose images a DICOM object says it holds, and the UIDs that follow from its content.

By default nobody's: a patient id that is derived from the content, and nothing else. A DICOM series of the same scan,
or options, may give a real one. A UID is 2.25.<a UUID, as a number> (DICOM PS3.5 B.2), the UUID made by name (RFC 9562,
version 5) from a hash of the content and the role of the object: the same result, exported again, has the same UIDs, so
that sending it twice stores it once.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import dataclass
from typing import Any

from mrgen.errors import MrgenError

# What objects of one patient, study, frame of reference and series share, and a DICOM series of the same scan gives.
_SHARED = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
    *("StudyDescription", "FrameOfReferenceUID", "PositionReferenceIndicator"),
    *("PatientPosition", "BodyPartExamined", "Laterality"),
)
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "PatientPosition"),
)
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")


@dataclass(frozen=True)
class Identity:
    """Attributes of patient, study and frame of reference by DICOM keyword; none for an anonymous result."""

    tags: dict[str, str]

    @property
    def real(self) -> bool:
        return bool(self.tags)


ANONYMOUS = Identity({})


def identity_of_options(patient_id: str | None, study_uid: str | None) -> Identity:
    """The identity that a user states. Raises MrgenError for an id or UID that DICOM does not allow."""
    if study_uid is not None and patient_id is None:
        raise MrgenError("--study-uid: a study belongs to a patient: say with --patient-id to which")
    if study_uid is not None and not (len(study_uid) <= 64 and _UID.fullmatch(study_uid)):
        raise MrgenError(f"--study-uid {study_uid!r}: expected a DICOM UID, such as 1.2.840.1: copy it from the study")
    if patient_id is None:
        return ANONYMOUS
    if not 0 < len(patient_id) <= 64 or "\\" in patient_id or not patient_id.isprintable() or not patient_id.strip():
        raise MrgenError("--patient-id: expected 1 to 64 printable characters without a backslash")
    return Identity({"PatientID": patient_id} | ({} if study_uid is None else {"StudyInstanceUID": study_uid}))


def identity_of_series(image: Any) -> Identity:
    """The identity in a DICOM image (a pydicom Dataset)."""
    return Identity({name: str(image[name].value) for name in _SHARED if image.get(name) not in (None, "")})


@dataclass(frozen=True)
class Names:
    """The UIDs and the identifying attributes of all objects of one result."""

    content: str  # hash of everything that the objects are made from
    identity: Identity

    @classmethod
    def of(cls, content: tuple[object, ...], identity: Identity) -> Names:
        """`content` is all that the objects are made from, but for `identity`, with a repr that tells it."""
        known = repr((content, sorted(identity.tags.items())))
        return cls(hashlib.sha256(known.encode()).hexdigest(), identity)

    def uid(self, *role: object) -> str:
        """The UID of the object, series or study with this role."""
        name = "/".join(map(str, (self.content, *role)))
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}"

    def tags(self) -> dict[str, str]:
        """Attributes by keyword of patient, study and frame of reference, the required ones complete."""
        own = {
            "StudyInstanceUID": self.uid("study"),
            "FrameOfReferenceUID": self.uid("frame of reference"),
        }
        if not self.identity.real:
            own["PatientID"] = f"MRGEN-{self.content[:12]}"
            own["PatientName"] = "Anonymous^"
            own["PatientIdentityRemoved"] = "YES"
            own["DeidentificationMethod"] = "mrgen writes nothing that identifies the patient"
        return dict.fromkeys(_MAY_BE_EMPTY, "") | own | self.identity.tags
