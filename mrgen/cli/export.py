"""`mrgen export`, and the options on files that it shares with `mrgen recon`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrgen.errors import MrgenError
from mrgen.review.export import DICOM, FORMATS, Exports, parse_formats
from mrgen.review.figure import NOTICE
from mrgen.review.flag import check_threshold
from mrgen.review.folder import prepare_output_dir
from mrgen.review.identity import identity_of_options

DEFAULT_FORMATS = ",".join(FORMATS)
Formats = Annotated[str, typer.Option(metavar="LIST", help="What to write: hdf5, always, nifti, dicom, html.")]
ReferenceDicom = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The scanner's DICOM series of this scan: its geometry, patient and study."),
]
PatientId = Annotated[str | None, typer.Option(help="Put this patient id into DICOM; without it, they are anonymous.")]
StudyUid = Annotated[str | None, typer.Option(help="Put the DICOM series into this study of the patient.")]

Flag = Annotated[
    float | None,
    typer.Option(
        metavar="THRESHOLD",
        help="A DICOM segmentation of where the calibrated interval is wider than this share of the brightest tissue.",
    ),
]
Overlay = Annotated[bool, typer.Option("--overlay", help="A DICOM series of the std in colour over the mean.")]


def chosen_exports(
    formats: str,
    reference: Path | None,
    patient_id: str | None,
    study_uid: str | None,
    samples: bool,
    flag: float | None,
    overlay: bool,
) -> Exports:
    """What these options ask for. Raises MrgenError for some that contradict each other."""
    chosen = parse_formats(formats)
    identity = identity_of_options(patient_id, study_uid)
    if DICOM not in chosen and (samples or identity.real or flag is not None or overlay):
        raise MrgenError(
            f"--formats {formats}: --dicom-samples, --flag, --overlay, --patient-id and --study-uid need dicom there"
        )
    if flag is not None:
        check_threshold(flag)
    if reference is not None and identity.real:
        raise MrgenError("--reference-dicom brings a patient and a study: leave out --patient-id and --study-uid")
    return Exports(chosen, reference, identity, samples, flag, overlay)


def export(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="The .h5 file of a result of mrgen recon.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the files; else beside the result.")
    ] = None,
    formats: Formats = DEFAULT_FORMATS,
    reference_dicom: ReferenceDicom = None,
    patient_id: PatientId = None,
    study_uid: StudyUid = None,
    dicom_samples: Annotated[
        bool, typer.Option("--dicom-samples", help="A DICOM series of every sample, too.")
    ] = False,
    flag: Flag = None,
    overlay: Overlay = False,
) -> None:
    """Write NIfTI and DICOM files and the HTML report of a result that mrgen recon has left, as recon does."""
    exports = chosen_exports(formats, reference_dicom, patient_id, study_uid, dicom_samples, flag, overlay)
    folder = out or result.parent
    prepare_output_dir(folder)
    for path in exports.write(folder, result, typer.echo):
        typer.echo(f"wrote   {path}")
    typer.echo(NOTICE)
