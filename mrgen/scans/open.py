"""`open_scan`: raw data of any format that mrgen reads, told by what is in the file rather than by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py

from mrgen.errors import MrgenError
from mrgen.scans.cfl import open_cfl
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.files import check_file, hdf5, listing
from mrgen.scans.ismrmrd import open_ismrmrd
from mrgen.scans.npz import open_npz
from mrgen.scans.scan import Scan
from mrgen.scans.twix import open_twix

READERS: dict[str, Callable[[Path], Scan]] = {
    "fastMRI HDF5 (.h5)": open_fastmri,
    "ISMRMRD (.h5, .mrd)": open_ismrmrd,
    "Siemens twix (.dat)": open_twix,
    "BART (.cfl with .hdr)": open_cfl,
    "NumPy (.npz)": open_npz,
}

_IMAGES = "holds images, not raw data: export the raw data at the scanner"
_PACKED = "is packed: unpack it first"
# where a file's signature begins, the signature, what such a file is and what to do about it
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (128, b"DICM", f"a DICOM file, which {_IMAGES}"),
    (344, b"n+1\0", f"a NIfTI file, which {_IMAGES}"),
    (344, b"ni1\0", f"a NIfTI header, which {_IMAGES}"),
    (4, b"n+2\0", f"a NIfTI file, which {_IMAGES}"),
    (0, b"\x89PNG", f"a PNG file, which {_IMAGES}"),
    (0, b"\xff\xd8\xff", f"a JPEG file, which {_IMAGES}"),
    (0, b"II*\0", f"a TIFF file, which {_IMAGES}"),
    (0, b"MM\0*", f"a TIFF file, which {_IMAGES}"),
    (0, b"\x1f\x8b", f"a gzip file, which {_PACKED}"),
    (0, b"BZh", f"a bzip2 file, which {_PACKED}"),
    (0, b"\xfd7zXZ\0", f"an xz file, which {_PACKED}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7-Zip file, which {_PACKED}"),
    (0, b"\x28\xb5\x2f\xfd", f"a Zstandard file, which {_PACKED}"),
    (257, b"ustar", f"a tar file, which {_PACKED}"),
    (0, b"MATLAB 5.0", "a MATLAB file: save its k-space with scipy.io.loadmat and numpy.savez(file, kspace=...)"),
    (0, b"\x93NUMPY", "a single NumPy array: save it with numpy.savez(file, kspace=...)"),
    (0, b"%PDF", "a PDF document"),
)
_HEAD = 512  # bytes that hold all those signatures


def _hdf5_format(path: Path) -> str:
    with hdf5(path) as file:
        if "kspace" in file:
            return "fastMRI HDF5 (.h5)"
        if any(isinstance(group, h5py.Group) and {"data", "xml"} <= set(group) for group in file.values()):
            return "ISMRMRD (.h5, .mrd)"
        found = listing(file)
    raise MrgenError(
        f"{path.name}: an HDF5 file with neither 'kspace' (fastMRI) nor a group of 'xml' and 'data' (ISMRMRD), but "
        f"{found}: convert it to one of them"
    )


def scan_format(path: Path) -> str:
    """The key of `READERS` for `path`. Raises MrgenError for what none of them reads, saying what it is if known."""
    data = path.with_suffix(".cfl") if path.suffix == ".hdr" else Path(f"{path}.cfl")
    if path.suffix == ".cfl" or data.is_file():
        return "BART (.cfl with .hdr)"
    if path.is_dir():
        raise MrgenError(f"{path.name or path}: is a folder, expected a scan: name the files in it one by one")
    check_file(path, "a scan")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if h5py.is_hdf5(path):
        return _hdf5_format(path)
    if head.startswith(b"PK\3\4"):
        return "NumPy (.npz)"
    for offset, signature, what in _OTHERS:
        if head.startswith(signature, offset):
            raise MrgenError(f"{path.name}: {what}; mrgen reads {', '.join(READERS)}")
    if path.suffix == ".dat":
        return "Siemens twix (.dat)"
    what = "an empty file" if not head else "a file of unknown kind"
    raise MrgenError(f"{path.name}: {what}; mrgen reads {', '.join(READERS)}: convert it to one of them")


def open_scan(path: Path | str) -> Scan:
    """Open raw data of any format in `READERS`, chosen by the file's content; a BART pair by any of its names.

    Raises MrgenError, as one line that names the file, for anything that cannot be read.
    """
    path = Path(path)
    return READERS[scan_format(path)](path)
