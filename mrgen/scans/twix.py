"""Reader for Siemens raw data (twix, .dat; software VB and VD/VE), whose layout twixtools knows.

A file holds measurements, the last of which is the scan; those before it are adjustments, one of which may be the
noise scan. A measurement is a protocol (text) and then readouts: a header (MDH) with flags and counters, and the
samples of each coil. The file is walked here rather than by twixtools, which reads damaged files without end. Of the
protocol only numbers are kept (mrgen.scans.siemens).

Directions follow siemens_to_ismrmrd: the rotation by the quaternion of a readout has the columns phase, readout, slice.
twixtools.geometry turns the first two around, for the sign of the gradients rather than of the image.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mrgen.errors import MrgenError
from mrgen.scans.assemble import assemble
from mrgen.scans.files import check_file, naming, reason
from mrgen.scans.header import Header
from mrgen.scans.readouts import READOUT, Table
from mrgen.scans.scan import Scan
from mrgen.scans.siemens import protocol_header, value

_LEFT_OUT = (
    *("RTFEEDBACK", "HPFEEDBACK", "REFPHASESTABSCAN", "PHASESTABSCAN", "PHASCOR", "noname60", "RETRO_DUMMYSCAN"),
    *("B1_CONTROLLOOP", "MDH_VOP", "SLICE_ACCEL_REFSCAN", "SLICE_ACCEL_PHASCOR"),
)
_COUNTERS = "Rep", "Set", "Phs", "Eco", "Sli"  # in the order of readouts.COUNTERS


@dataclass(frozen=True)
class _Layout:
    """Sizes (bytes) and types of what a readout consists of, in one of the two generations of the format."""

    header: np.dtype[np.void]
    first: int  # before the first coil
    coil: int  # before the samples of each coil

    def length(self, coils: int, samples: int) -> int:
        return self.first + coils * (self.coil + 8 * samples)


def _twixtools() -> tuple[Any, Any]:
    """The modules of twixtools that define the headers. Raises MrgenError where it is not installed."""
    try:
        from twixtools import hdr_def, mdh_def
    except ImportError:
        raise MrgenError("reading Siemens twix files needs the package twixtools: pip install 'mrgen[twix]'") from None
    return hdr_def, mdh_def


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, open inside the block only. Raises MrgenError, naming the file, where it cannot be read."""
    try:
        with naming(path), path.open("rb") as file:
            yield file
    except OSError as error:
        raise MrgenError(f"{path.name}: cannot be read ({reason(error)}): check the file") from None


@dataclass(frozen=True)
class _Samples:
    """Reads the samples, (coil, sample) complex64, of readouts at byte `row`; the file is open only meanwhile."""

    path: Path
    layout: _Layout

    def __call__(self, table: Table) -> Iterator[NDArray[np.complex64]]:
        with _opened(self.path) as file:
            for one in table:
                coils, samples = int(one["coils"]), int(one["samples"])
                file.seek(int(one["row"]))
                found = file.read(self.layout.length(coils, samples))
                if len(found) < self.layout.length(coils, samples):
                    raise MrgenError("the file ends within a readout: copy it again")
                parts = np.dtype([("skip", f"V{self.layout.coil}"), ("samples", "<c8", (samples,))])
                yield np.frombuffer(found, parts, coils, self.layout.first)["samples"]


def _measurements(data: mmap.mmap) -> tuple[bool, list[tuple[int, int]]]:
    """Whether the file is of the VD/VE generation, and the bytes (begin, end) of each measurement."""
    hdr_def, _ = _twixtools()
    size = len(data)
    if size < 32:
        raise MrgenError("the file is shorter than any header, expected Siemens raw data: copy it again")
    first, second = np.frombuffer(data[:8], "<u4").tolist()
    if first >= 10000 or second > 64:
        return False, [(0, size)]
    raid = hdr_def.MultiRaidFileHeader
    if size < raid.itemsize or second == 0:
        raise MrgenError("the table of measurements is cut off, expected Siemens raw data: copy the file again")
    entries = np.frombuffer(data[: raid.itemsize], raid)[0]["entry"][:second]
    spans = [(begin, begin + length if length else size) for begin, length in entries[["off_", "len_"]].tolist()]
    if any(not raid.itemsize <= begin < end <= size for begin, end in spans):
        raise MrgenError("a measurement lies beyond the end of the file: copy it again")
    return True, spans


def _protocol(data: mmap.mmap, begin: int, end: int) -> bytes:
    length = int.from_bytes(data[begin : begin + 4], "little")
    if not 16 <= length <= end - begin:
        raise MrgenError(
            f"a protocol of {length} bytes in a measurement of {end - begin}, expected Siemens raw data: copy it again"
        )
    return data[begin : begin + length]


def _walk(data: mmap.mmap, begin: int, end: int, layout: _Layout) -> tuple[list[int], NDArray[np.void], bool]:
    """The position (byte) and the header of each readout from `begin`, and whether the mark of the last one was found.

    Raises MrgenError for a damaged readout.
    """
    _, mdh_def = _twixtools()
    names = "FlagsAndDMALength", "EvalInfoMask", "SamplesInScan", "UsedChannels"
    fields = layout.header.fields
    assert fields is not None
    where = [(fields[name][1], fields[name][1] + fields[name][0].itemsize) for name in names]
    acqend, syncdata = 1 << mdh_def.mask_dict["ACQEND"], 1 << mdh_def.mask_dict["SYNCDATA"]
    size, positions, heads, at, ended = layout.header.itemsize, [], [], begin, False
    while at + size <= end:
        head = data[at : at + size]
        length, flags, samples, coils = (int.from_bytes(head[a:b], "little") for a, b in where)
        if flags & acqend:
            ended = True
            break
        if flags & syncdata:
            step = length % 2**25
        else:
            step = layout.length(coils, samples) if coils and samples else 0
            positions.append(at)
            heads.append(head)
        if step < size or at + step > end:
            raise MrgenError(f"readout {len(positions)} (byte {at}) is damaged or cut off: copy the file again")
        at += step
    return positions, np.frombuffer(b"".join(heads), layout.header), ended


def _flagged(heads: NDArray[np.void], *flags: str) -> NDArray[np.bool_]:
    _, mdh_def = _twixtools()
    wanted = np.uint64(sum(1 << mdh_def.mask_dict[flag] for flag in flags))
    flagged: NDArray[np.bool_] = (heads["EvalInfoMask"].astype(np.uint64) & wanted) != 0
    return flagged


def _rotations(quaternions: NDArray[np.floating]) -> NDArray[np.floating]:
    """Directions (readout, phase, slice) in the rows of (n, 3, 3), of unit quaternions (n, 4) with the scalar first."""
    w, x, y, z = quaternions.astype(np.float64).clip(-2, 2).T  # beyond 1 they are damaged
    phase = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)], axis=1)
    readout = np.stack([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)], axis=1)
    across = np.stack([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)], axis=1)
    return np.stack([readout, phase, across], axis=1)


def _noise_dwell(samples: NDArray[np.integer], protocol: bytes, modern: bool) -> NDArray[np.floating]:
    """Dwell time (us) of noise readouts, which no header tells; the rules are those of siemens_to_ismrmrd."""
    pattern = rb'^tProtocolName[ \t]{0,9}=[ \t]{0,9}"{1,2}(AdjCoilSens|AdjQuietCoilSens)"'
    adjustment = re.search(pattern, protocol, re.MULTILINE)
    if adjustment:
        return np.full(len(samples), 5.0 if adjustment[1] == b"AdjCoilSens" else 4.0)
    n = samples.astype(np.int64)
    return 76800 // n / 10 if modern else 1e6 / n / 130


def _table(positions: list[int], heads: NDArray[np.void], protocol: bytes, modern: bool, embedded: bool) -> Table:
    """All readouts but those left out."""
    counter = heads["Counter"]
    table = np.zeros(len(heads), READOUT)
    table["row"] = positions
    table["noise"] = _flagged(heads, "NOISEADJSCAN")
    both = _flagged(heads, "PATREFANDIMASCAN")
    reference = _flagged(heads, "PATREFSCAN") & ~both
    table["calibration"] = (reference | both) & ~table["noise"]
    table["imaging"] = ~table["noise"] & (~reference | embedded)
    table["line"] = counter["Lin"].astype(np.int32) - heads["CenterLin"]
    table["partition"] = counter["Par"].astype(np.int32) - heads["CenterPar"]
    table["image"] = np.stack([counter[name] for name in _COUNTERS], axis=1)
    table["coils"] = heads["UsedChannels"]
    table["samples"] = heads["SamplesInScan"]
    table["echo"] = heads["CenterCol"]
    table["before"] = heads["CutOff"]["Pre"]
    table["after"] = heads["CutOff"]["Post"]
    table["reverse"] = _flagged(heads, "REFLECT")
    dwell = value(protocol, "sRXSPEC.alDwellTime[0]", 0, 1e9) / 1000
    table["dwell"] = np.where(table["noise"], _noise_dwell(heads["SamplesInScan"], protocol, modern), dwell)
    table["position"] = np.stack([heads["SliceData"]["SlicePos"][name] for name in ("Sag", "Cor", "Tra")], axis=1)
    table["directions"] = _rotations(heads["SliceData"]["Quaternion"])
    return table[~_flagged(heads, *_LEFT_OUT)]


def _fitted(header: Header, table: Table) -> Header:
    """The header with a matrix that holds all lines: parallel imaging and echo trains round their number up."""
    lines, n_x = table["line"][~table["noise"]], header.encoded[1]
    needed = 2 * int(max(-lines.min(initial=0), lines.max(initial=0) + 1))
    if not n_x < needed <= 1.25 * n_x:
        return header
    recon = header.recon[0], round(header.recon[1] * needed / n_x)
    return replace(header, encoded=(header.encoded[0], needed), recon=recon)


def open_twix(path: Path | str) -> Scan:
    """Open a Siemens twix file (.dat); only its headers and its noise scan are read.

    Needs twixtools (`pip install 'mrgen[twix]'`). Raises MrgenError, as one line that names the file, for anything that
    is not such a file, and for scans that are not Cartesian.
    """
    path = Path(path)
    check_file(path, "a Siemens twix file (.dat)")
    with naming(path):
        _, mdh_def = _twixtools()
        if path.stat().st_size == 0:
            raise MrgenError("the file is empty, expected Siemens raw data: copy it again")
        with _opened(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            modern, spans = _measurements(data)
            if modern:
                first, coil = np.dtype(mdh_def.Scan_header), np.dtype(mdh_def.Channel_header)
                layout = _Layout(first, first.itemsize, coil.itemsize)
            else:
                layout = _Layout(np.dtype(mdh_def.VB17_header), 0, np.dtype(mdh_def.VB17_header).itemsize)
            protocols = [_protocol(data, begin, end) for begin, end in spans]
            header = protocol_header(protocols[-1])
            tables, left_out = [], 0
            for (begin, end), protocol in zip(spans, protocols, strict=True):
                positions, heads, ended = _walk(data, begin + len(protocol), end, layout)
                tables.append(_table(positions, heads, protocol, modern, header.calibration == "embedded"))
                left_out = len(heads) - len(tables[-1])
        remarks = []
        if left_out:
            remarks.append(f"{left_out} phase-correction, feedback and dummy readouts are left out.")
        if not ended:
            remarks.append("The measurement has no end mark: it was stopped, or the file is cut off.")
        table = tables[-1]
        if not table["noise"].any():
            before = [one[one["noise"]] for one in tables[:-1] if one["noise"].any()]
            table = np.concatenate([table, *before[-1:]])
        header = _fitted(header, table)
        return assemble(path, table, _Samples(path, layout), header, format_="Siemens twix", xml=None, remarks=remarks)
