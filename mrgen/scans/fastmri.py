"""Reader for the fastMRI HDF5 layout (Zbontar et al., arXiv 1811.08839).

`kspace` is (slice, coil, readout, phase), centred; single-coil files leave the coil axis out. `mask` (phase,)
marks an undersampled scan. `ismrmrd_header` gives the matrix sizes.

- The readout is oversampled. Where the header's reconSpace is smaller, it is cropped in image space, along the
  readout only; phase encodes are never cropped, because that would change the resolution.
- Without `mask`, phase lines that are zero everywhere are either the scanner's zero-filling at the edges,
  which the header's limits explain (the scan counts as fully sampled), or undersampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.scans.header import Header, anonymous_header, parse_header
from mrgen.scans.scan import Scan

_SMALLEST = 16  # samples; below this neither noise nor coil maps can be estimated


def crop_readout(kspace: Tensor, rows: int) -> Tensor:
    """Keep the central `rows` image rows of k-space (coil, ky, kx): readout to image, crop, and back.

    The transforms are orthonormal, so white noise keeps its std, and lines of zeros stay exactly zero.
    """
    n_y = kspace.shape[-2]
    if rows == n_y:
        return kspace
    image = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(kspace, dim=-2), dim=-2, norm="ortho"), dim=-2)
    first = n_y // 2 - rows // 2
    cropped = torch.fft.ifftshift(image[..., first : first + rows, :], dim=-2)
    back: Tensor = torch.fft.fftshift(torch.fft.fft(cropped, dim=-2, norm="ortho"), dim=-2)
    return back


def _lines_with_data(kspace: Tensor) -> Tensor:
    """(kx,) bool: which lines of (coil, ky, kx) hold anything but zeros."""
    return (kspace != 0).flatten(0, 1).any(0)


def _load(path: Path, index: int) -> Tensor:
    """One slice as stored, (coil, ky, kx) complex64; the file is open only inside this function."""
    try:
        with h5py.File(path, "r") as file:
            kspace = torch.from_numpy(file["kspace"][index]).to(torch.complex64)
    except OSError as error:
        raise MrgenError(f"{path.name}: slice {index} cannot be read ({error}): copy the file again") from None
    return kspace if kspace.ndim == 3 else kspace.unsqueeze(0)


@dataclass(frozen=True)
class _Reader:
    """`Scan.read_slice`; a class rather than a closure so that a Scan can be sent to worker processes."""

    path: Path
    slices: int
    rows: int
    mask: Tensor | None
    lines: Tensor | None  # (kx,) bool, lines that every slice has to hold, where no mask says so

    def __call__(self, index: int) -> Tensor:
        if not 0 <= index < self.slices:
            raise IndexError(f"slice {index} of {self.slices}")
        kspace = _load(self.path, index)
        where = f"{self.path.name}: slice {index}"
        if not torch.isfinite(kspace).all():
            raise MrgenError(f"{where} of kspace holds NaN or infinity, expected finite numbers: leave it out")
        if self.mask is not None:
            kspace = kspace * self.mask
        lines = _lines_with_data(kspace)
        if not lines.any():
            raise MrgenError(f"{where} of kspace is all zeros, expected measured data: leave it out")
        if self.lines is not None and not torch.equal(lines, self.lines):
            raise MrgenError(
                f"{where} samples other lines than the middle slice, expected one pattern for the whole scan: "
                "store slices with different patterns in separate files"
            )
        return crop_readout(kspace, self.rows)


def _read_mask(file: h5py.File, lines: int) -> Tensor | None:
    """The file's `mask` as float (kx,); None where there is none or where it keeps every line."""
    if "mask" not in file:
        return None
    if not isinstance(file["mask"], h5py.Dataset) or file["mask"].dtype.kind not in "biuf":
        raise MrgenError("mask is not an array of numbers: expected one 0 or 1 for each phase line")
    mask = torch.from_numpy(file["mask"][()].astype("float32")).flatten()
    if mask.numel() != lines:
        raise MrgenError(f"mask has {mask.numel()} entries, expected one for each of the {lines} phase lines")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MrgenError("mask holds values other than 0 and 1: expected 1 where a line was sampled")
    if not mask.any():
        raise MrgenError("mask keeps no line: expected 1 where a line was sampled")
    return None if bool(mask.all()) else mask


def _read_shape(file: h5py.File) -> tuple[int, int, int, int]:
    """(slice, coil, ky, kx) of a usable `kspace`."""
    kspace = file.get("kspace")
    if not isinstance(kspace, h5py.Dataset):
        found = ", ".join(sorted(file)[:5]) or "nothing"
        raise MrgenError(f"no dataset 'kspace' (found: {found}); expected the fastMRI layout: convert the file")
    if kspace.dtype.kind != "c":
        raise MrgenError(f"kspace is {kspace.dtype}, expected complex numbers: store it as complex64")
    if kspace.ndim not in (3, 4):
        raise MrgenError(f"kspace has shape {kspace.shape}, expected (slice, coil, readout, phase): rearrange it")
    slices, *coils, n_y, n_x = kspace.shape
    if slices == 0 or 0 in coils or min(n_y, n_x) < _SMALLEST:
        raise MrgenError(
            f"kspace has shape {kspace.shape}, expected at least one slice and coil of {_SMALLEST} x {_SMALLEST}: "
            "check how the file was made"
        )
    return slices, coils[0] if coils else 1, n_y, n_x


def _read_header(file: h5py.File, matrix: tuple[int, int]) -> tuple[Header | None, str | None]:
    """The parsed header and its anonymous text, where the file has one."""
    if "ismrmrd_header" not in file:
        return None, None
    text = file["ismrmrd_header"][()]
    xml = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    header = parse_header(xml)
    if header.encoded == matrix[::-1] != matrix:
        raise MrgenError(
            f"kspace is {matrix[0]} x {matrix[1]} but its header says readout {header.encoded[0]}, "
            f"phase {header.encoded[1]}: swap the last two axes"
        )
    return header, anonymous_header(xml)


def open_fastmri(path: Path | str) -> Scan:
    """Open a fastMRI-layout file without reading its k-space, but for the middle slice where `mask` is absent.

    Raises MrgenError, as one line that names the file, for anything that is not such a file.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "there is no such file"
        raise MrgenError(f"{path.name}: {found}, expected an HDF5 scan in the fastMRI layout: check the path")
    try:
        with h5py.File(path, "r") as file:
            slices, coils, n_y, n_x = _read_shape(file)
            header, xml = _read_header(file, (n_y, n_x))
            mask = _read_mask(file, n_x)
    except MrgenError as error:
        raise MrgenError(f"{path.name}: {error}") from None
    except OSError:
        raise MrgenError(f"{path.name}: not a readable HDF5 file, expected the fastMRI layout: check it") from None

    padding = header.padding(n_x) if header else (0, 0)
    lines = None
    if mask is None:
        lines = _lines_with_data(_load(path, slices // 2))
        if not lines.any():
            raise MrgenError(f"{path.name}: slice {slices // 2} of kspace is all zeros, expected measured data")
        if bool(lines[: padding[0]].any() or lines[n_x - padding[1] :].any()):
            padding = (0, 0)  # the limits do not describe this k-space: it has data where they have none
        if not bool(lines[padding[0] : n_x - padding[1]].all()):
            mask = lines.float()
    rows = header.cropped(0, n_y) if header else n_y
    crop = (rows, header.cropped(1, n_x)) if header else (rows, n_x)
    return Scan(
        path=str(path),
        shape=(slices, coils, rows, n_x),
        mask=mask,
        read_slice=_Reader(path, slices, rows, mask, lines),
        header=xml,
        crop=None if crop == (rows, n_x) else crop,
        padding=padding,
    )
