"""From a result to the files that viewers, a PACS and other tools read.

Each format is a folder, the HTML report a file, which appears as a whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from mrgen.errors import MrgenError
from mrgen.review.geometry import NOMINAL_NOTICE, Placement, place
from mrgen.review.identity import ANONYMOUS, Identity, Names
from mrgen.review.stored import Stored, read_stored
from mrgen.scans.files import naming
from mrgen.scans.geometry import Geometry

HDF5, NIFTI, DICOM, HTML = FORMATS = ("hdf5", "nifti", "dicom", "html")
REPORT = "report.html"
_GENERATOR = b'<meta name="generator" content="mrgen'
_OURS = {NIFTI: re.compile(r"\w+\.nii\.gz"), DICOM: re.compile(r"\d{4}_\w+")}


def parse_formats(text: str) -> tuple[str, ...]:
    """The formats in "hdf5,nifti,dicom,html", of which hdf5 is always one. Raises MrgenError for others."""
    named = [name for name in re.split(r"[,\s]+", text.lower()) if name]
    unknown = [name for name in named if name not in FORMATS]
    if unknown or not named:
        raise MrgenError(f"--formats {text!r}: expected some of {', '.join(FORMATS)}, separated by commas")
    return tuple(name for name in FORMATS if name in (HDF5, *named))


@dataclass(frozen=True)
class Exports:
    """What is made of a result beside its HDF5 file."""

    formats: tuple[str, ...] = FORMATS
    reference: Path | None = None  # a folder with the scanner's DICOM series of the same scan
    identity: Identity = ANONYMOUS
    samples: bool = False  # every posterior sample as a DICOM series
    flag: float | None = None  # threshold of mrgen.review.flag, for a DICOM Segmentation
    overlay: bool = False  # the std in colour over the mean as a DICOM series

    @property
    def plain(self) -> bool:
        """Whether nothing but formats was asked for."""
        return replace(self, formats=FORMATS) == Exports()

    def check(self, out: Path, geometry: Geometry, count: int, total: int, matrix: tuple[int, int]) -> Placement:
        """The placement of `count` of `total` slices of `matrix` (y, x), as far as it is known before they are there.

        Raises MrgenError for what would be refused in the end: see `write`.
        """
        for name in FORMATS[1:]:
            _own(out, name)
        if self.reference is not None:
            from mrgen.review.reference import open_reference

            # that of the first slices will do for a check
            whole = open_reference(self.reference, total, matrix).placement()
            placement = replace(whole, origins=whole.origins[:count])
        else:
            placement = place(geometry, count, matrix)
        self._check(placement)
        return placement

    def _check(self, placement: Placement) -> None:
        if placement.nominal and self.identity.real:
            raise MrgenError(
                f"{NOMINAL_NOTICE}: the raw data do not tell where the slices lie, and such images must not carry a "
                "real patient or study id; name the scanner's DICOM series of this scan with --reference-dicom, or "
                "leave the ids out"
            )
        if NIFTI in self.formats:
            from mrgen.review.nifti import check_nifti

            check_nifti(placement)

    def write(self, out: Path, result: Path, say: Callable[[str], None]) -> list[Path]:
        """Write the formats made of the file `result` into `out`, and return their folders and files.

        Raises MrgenError for a result that cannot be used, for a nominal geometry with a real identity, slices that a
        format cannot hold, folders with files of others, and where the disk refuses.
        """
        formats = [name for name in self.formats if name != HDF5]
        if not formats:
            return []
        stored = read_stored(result)
        with naming(result):
            if self.samples and not stored.has_samples:
                raise MrgenError("it holds no samples: reconstruct the scan with --save-samples")
            if self.flag is not None and "interval" not in stored.images:
                raise MrgenError(
                    "it holds no calibrated interval, which --flag looks at: reconstruct the scan with --calibration"
                )
            if self.overlay and not (stored.samples and "std" in stored.images):
                raise MrgenError("it holds no std, which --overlay shows: choose a recipe that draws samples")
            placement, identity = self._place(stored)
            self._check(placement)
        if placement.nominal:
            say(f"note    {NOMINAL_NOTICE}: the raw data do not tell where the slices lie")
        names = Names.of((stored.digest(), placement.key()), identity)
        for name in formats:
            _own(out, name)
        try:
            for name in formats:
                partial = out / f".{place_of(out, name).name}.partial"
                _remove(partial)
                try:
                    self._make(partial, name, stored, placement, names, say)
                    _remove(place_of(out, name))
                    partial.rename(place_of(out, name))
                finally:
                    _remove(partial)
        except OSError as error:
            raise MrgenError(f"could not write to {out} ({error}): free space, then use mrgen export") from None
        return [place_of(out, name) for name in formats]

    def _place(self, stored: Stored) -> tuple[Placement, Identity]:
        count, *matrix = stored.shape
        if self.reference is None:
            return place(stored.geometry, count, (matrix[0], matrix[1])), self.identity
        from mrgen.review.reference import open_reference, place_by_reference

        total, first = (int(stored.attributes[name]) for name in ("scan_slices", "first_slice"))
        reference = open_reference(self.reference, total, (matrix[0], matrix[1]))
        placement = place_by_reference(reference, stored.images["reconstruction"], first)
        return placement, reference.identity

    def _make(
        self, place: Path, name: str, stored: Stored, placement: Placement, names: Names, say: Callable[[str], None]
    ) -> None:
        if name == HTML:
            from mrgen.review.html import write_html

            anonymous = Names.of((stored.digest(), placement.key()), ANONYMOUS)
            write_html(place, stored, placement, anonymous.tags()["PatientID"])
            return
        place.mkdir(parents=True)
        self._fill(place, name, stored, placement, names, say)

    def _fill(
        self, folder: Path, name: str, stored: Stored, placement: Placement, names: Names, say: Callable[[str], None]
    ) -> None:
        if name == NIFTI:
            from mrgen.review.nifti import write_nifti

            write_nifti(folder, stored, placement)
            return
        from mrgen.review.dicom import Objects, save_series, write_dicom
        from mrgen.review.parametric_map import write_parametric_maps

        objects = Objects(stored, placement, names)
        series = write_dicom(folder, objects, self.samples)
        mean = series["reconstruction"]
        write_parametric_maps(folder, objects, mean)
        if self.flag is not None:
            from mrgen.review.segmentation import write_segmentations

            count = write_segmentations(folder, objects, self.flag, mean)
            found = f"regions in {count} of {len(mean)} slices" if count else "no region, so no segmentation is written"
            say(f"flag    interval above {self.flag:g} of the brightest tissue: {found}")
        if self.overlay:
            from mrgen.review.overlay import ROLE, overlay_series

            save_series(folder / ROLE.folder, overlay_series(objects, mean, series["std"]))


def place_of(out: Path, name: str) -> Path:
    """The folder, or the file, of a format in `out`."""
    return out / (REPORT if name == HTML else name)


def _own(out: Path, name: str) -> None:
    """Raises MrgenError unless the place of a format is free or holds nothing but what mrgen writes there."""
    place = place_of(out, name)
    if name == HTML:
        if place.exists() and not _is_report(place):
            raise MrgenError(f"{place} is not a report of mrgen's: move it, or choose another output folder")
    elif place.exists() and (
        not place.is_dir() or any(not _OURS[name].fullmatch(entry.name) for entry in place.iterdir())
    ):
        raise MrgenError(f"{place} holds other files than mrgen's own: move them, or choose another output folder")


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _GENERATOR in file.read(4096)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clear_exports(out: Path) -> None:
    """Remove what was made of an earlier result, which the next one will not belong to. Raises MrgenError."""
    for name in FORMATS[1:]:
        _own(out, name)
        _remove(place_of(out, name))
