"""Reader for ISMRMRD files (Inati et al. 2017, doi 10.1002/mrm.26089): raw readouts of any vendor in HDF5.

A group, most often `dataset`, holds `xml`, the header, and `data`, one compound of (head, traj, data) for each
readout. Only the heads are read on opening; h5py can leave the samples out, which the ismrmrd package cannot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mrgen.errors import MrgenError
from mrgen.scans.assemble import assemble
from mrgen.scans.files import check_file, hdf5, naming, stored_text
from mrgen.scans.header import Header, anonymous_header, parse_header, require_cartesian
from mrgen.scans.readouts import COUNTERS, READOUT, Table
from mrgen.scans.scan import Scan

# ISMRMRD counts flags from 1. Surface coil correction (29) is not among those left out: converters set it on the
# ordinary lines of Siemens turbo spin echo scans.
_NOISE, _CALIBRATION, _CALIBRATION_AND_IMAGING, _REVERSE = 19, 20, 21, 22
_LEFT_OUT = 23, 24, 26, 27, 28, 30, 31  # navigator, phase correction, feedback (2), dummy, phase stabilization (2)
_INDICES = "kspace_encode_step_1", "kspace_encode_step_2", *COUNTERS
_COUNTS = "encoding_space_ref", "active_channels", "number_of_samples", "center_sample", "discard_pre", "discard_post"
_DIRECTIONS = "read_dir", "phase_dir", "slice_dir"
_BATCH = 64  # readouts read at once


@dataclass(frozen=True)
class _Samples:
    """Reads the samples, (coil, sample) complex64, of readouts; the file is open only meanwhile."""

    path: Path
    group: str

    def __call__(self, table: Table) -> Iterator[NDArray[np.complex64]]:
        runs = np.split(np.arange(len(table)), np.flatnonzero(np.diff(table["row"]) != 1) + 1)
        with hdf5(self.path) as file:
            samples = file[self.group]["data"].fields("data")
            for run in runs:
                for batch in np.split(run, range(_BATCH, len(run), _BATCH)):
                    first = int(table["row"][batch[0]])
                    for one, values in zip(table[batch], samples[first : first + len(batch)], strict=True):
                        if len(values) != 2 * one["coils"] * one["samples"]:
                            raise MrgenError(
                                f"readout {one['row']} holds {len(values)} numbers, expected 2 for each of its "
                                f"{one['coils']} x {one['samples']} samples: copy the file again"
                            )
                        yield values.view(np.complex64).reshape(one["coils"], one["samples"])


def _group(file: h5py.File) -> str:
    """The name of the group with `xml` and `data`, the first in alphabetical order."""
    for name in sorted(file):
        group = file.get(name)
        if isinstance(group, h5py.Group) and all(isinstance(group.get(key), h5py.Dataset) for key in ("xml", "data")):
            return str(name)
    raise MrgenError("no group with the datasets 'xml' and 'data', expected an ISMRMRD file: convert it")


def _field(dtype: np.dtype[Any], path: str) -> np.dtype[Any] | None:
    """The type of the field a.b.c of a compound, None where there is none."""
    for name in path.split("."):
        if dtype.fields is None or name not in dtype.fields:
            return None
        dtype = dtype.fields[name][0]
    return dtype


def _heads(dataset: h5py.Dataset, size: int) -> NDArray[np.void]:
    """The heads of all readouts; `size` of the file (bytes) bounds their number before they are read."""
    usable = dataset.ndim == 1
    for names, kind, shape in (
        (["data"], "O", ()),
        (["head.flags"], "u8", ()),
        (["head.sample_time_us"], "f4", ()),
        ([f"head.{name}" for name in _COUNTS], "u2", ()),
        ([f"head.idx.{name}" for name in _INDICES], "u2", ()),
        ([f"head.{name}" for name in ("position", *_DIRECTIONS)], "f4", (3,)),
    ):
        found = [_field(dataset.dtype, name) for name in names]
        usable = usable and all(f is not None and f.shape == shape and f.base.newbyteorder("=") == kind for f in found)
    if not usable or h5py.check_vlen_dtype(dataset.dtype["data"]) != np.float32:
        raise MrgenError("'data' is no list of readouts with head, traj and data as ISMRMRD has it: convert the file")
    most = size * (1000 if dataset.id.get_create_plist().get_nfilters() else 1) // dataset.dtype.itemsize
    if not 0 < len(dataset) <= most:
        raise MrgenError(f"'data' declares {len(dataset)} readouts, expected 1 to {most}: copy the file again")
    heads: NDArray[np.void] = dataset.fields("head")[:]
    return heads


def _flagged(heads: NDArray[np.void], *flags: int) -> NDArray[np.bool_]:
    wanted = np.uint64(sum(1 << (flag - 1) for flag in flags))
    flagged: NDArray[np.bool_] = (heads["flags"].astype(np.uint64) & wanted) != 0
    return flagged


def _table(heads: NDArray[np.void], header: Header, encoding: int) -> Table:
    """The readouts of `encoding`, noise among them, that are not left out."""
    idx = heads["idx"]
    n_x, n_z = header.encoded[1], header.partitions[0]
    centre = header.limits[0] if header.limits else n_x // 2
    depth = n_z // 2 if header.partition_centre is None else header.partition_centre
    table = np.zeros(len(heads), READOUT)
    table["row"] = np.arange(len(heads))
    table["noise"] = _flagged(heads, _NOISE)
    both = _flagged(heads, _CALIBRATION_AND_IMAGING)
    reference = _flagged(heads, _CALIBRATION) & ~both
    table["calibration"] = (reference | both) & ~table["noise"]
    # embedded calibration lines are measured like the others, and fill the gaps between them
    table["imaging"] = ~table["noise"] & (~reference | (header.calibration == "embedded"))
    table["line"] = idx["kspace_encode_step_1"].astype(np.int64) - centre
    table["partition"] = idx["kspace_encode_step_2"].astype(np.int64) - depth
    table["image"] = np.stack([idx[name] for name in COUNTERS], axis=1)
    table["coils"] = heads["active_channels"]
    table["samples"] = heads["number_of_samples"]
    table["echo"] = heads["center_sample"]
    table["before"] = heads["discard_pre"]
    table["after"] = heads["discard_post"]
    table["reverse"] = _flagged(heads, _REVERSE)
    table["dwell"] = heads["sample_time_us"]
    table["position"] = heads["position"]
    table["directions"] = np.stack([heads[name] for name in _DIRECTIONS], axis=1)
    chosen: Table = table[~_flagged(heads, *_LEFT_OUT) & (table["noise"] | (heads["encoding_space_ref"] == encoding))]
    return chosen


def open_ismrmrd(path: Path | str) -> Scan:
    """Open an ISMRMRD file; only its heads and its noise scan are read.

    Noise scans, calibration lines (embedded or apart), averages, partial Fourier, asymmetric echoes and reversed
    readouts are understood; `Scan.remarks` tells which were found. Raises MrgenError, as one line that names the
    file, for anything that is not such a file, and for scans that are not Cartesian.
    """
    path = Path(path)
    check_file(path, "an ISMRMRD file (HDF5)")
    with hdf5(path) as file:
        group = _group(file)
        xml = stored_text(file[group]["xml"], "the header 'xml'")
        heads = _heads(file[group]["data"], path.stat().st_size)
    with naming(path):
        imaging = heads[~_flagged(heads, _NOISE, _CALIBRATION, *_LEFT_OUT)]
        encodings = np.unique(imaging["encoding_space_ref"]).tolist() or [0]
        header = parse_header(xml, encodings[0])
        require_cartesian(header.trajectory)
        remarks = []
        left_out = int(_flagged(heads, *_LEFT_OUT).sum())
        if left_out:
            remarks.append(f"{left_out} navigator, phase-correction, feedback and dummy readouts are left out.")
        if len(encodings) > 1:
            remarks.append(f"Of {len(encodings)} encodings only the first with images is read.")
        return assemble(
            path,
            _table(heads, header, encodings[0]),
            _Samples(path, group),
            header,
            format_="ISMRMRD",
            xml=anonymous_header(xml),
            remarks=remarks,
        )
