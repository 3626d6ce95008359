"""Reader for the fastMRI HDF5 layouts: knee and brain (Zbontar et al., arXiv 1811.08839), prostate T2 (2304.09254).

`kspace` is (slice, coil, readout, phase), centred; single-coil files leave the coil axis out, prostate files put
averages in front (mrgen.scans.averages), and beside it `calibration_data` (slice, coil, readout, phase), a quick scan
of the centre of k-space. `mask` (phase,) marks an undersampled scan. `ismrmrd_header` gives the matrix sizes.

- The readout is oversampled. Where the header's reconSpace is smaller, it is cropped in image space, along the
  readout only; phase encodes are never cropped, because that would change the resolution.
- Zeros at the edges of the phase encodes are zero-filling or partial Fourier; other zeros are undersampling.
- Prostate files are zero-filled to the header's matrix, as the others are when they are published.
- Axis 0 says how many slices there are: in some brain files the header says otherwise.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mrgen.errors import MrgenError
from mrgen.scans.averages import average_weights, combine_averages, describe_averages, measured_lines
from mrgen.scans.cartesian import LARGEST, SliceReader, cartesian_scan, check_shape, check_stored, stored_mask
from mrgen.scans.files import check_file, hdf5, listing, naming, plain, stored_text
from mrgen.scans.geometry import Geometry
from mrgen.scans.header import Header, anonymous_header, parse_header
from mrgen.scans.scan import Scan


@dataclass(frozen=True)
class _Load:
    """Slice `index` of a dataset, (coil, ky, kx) complex64; the file is open only meanwhile."""

    path: Path
    dataset: str = "kspace"
    averages: Tensor | None = None  # (average, kx) bool, the lines of each, where averages come first
    fill: tuple[int, int] = (0, 0)  # lines of zeros to add at the left and right

    def __call__(self, index: int) -> Tensor:
        kspace = _read(self.path, self.dataset, index if self.averages is None else (slice(None), index))
        if self.averages is not None:
            if not torch.equal(measured_lines(kspace), self.averages):
                raise MrgenError(
                    f"{self.path.name}: the averages of slice {index} hold other lines than those of the middle slice, "
                    "expected one pattern for the whole scan: leave it out"
                )
            kspace = combine_averages(kspace, average_weights(self.averages))
        return functional.pad(kspace if kspace.ndim == 3 else kspace[None], self.fill)


def _read(path: Path, dataset: str, where: int | tuple[slice, int]) -> Tensor:
    """dataset[where] as complex64; what does not fit into it becomes infinite, and is refused as such."""
    with hdf5(path) as file, np.errstate(over="ignore"):
        return torch.from_numpy(file[dataset][where].astype(np.complex64))


def _shape(file: h5py.File) -> tuple[int | None, tuple[int, int, int, int]]:
    """The number of averages, None without that axis, and (slice, coil, ky, kx) of a usable `kspace`."""
    kspace = file.get("kspace")
    if not isinstance(kspace, h5py.Dataset):
        raise MrgenError(f"no dataset 'kspace' (found: {listing(file)}); expected the fastMRI layout: convert the file")
    if kspace.dtype.kind != "c":
        raise MrgenError(f"kspace is {plain(str(kspace.dtype))}, expected complex numbers: store it as complex64")
    if kspace.ndim not in (3, 4) and not (kspace.ndim == 5 and "calibration_data" in file):
        raise MrgenError(
            f"kspace has shape {kspace.shape}, expected (slice, coil, readout, phase), or (average, slice, coil, "
            "readout, phase) beside the calibration_data of fastMRI prostate: rearrange it"
        )
    averages = kspace.shape[0] if kspace.ndim == 5 else None
    slices, *coils, n_y, n_x = kspace.shape[-4:]
    shape = slices, coils[0] if coils else 1, n_y, n_x
    check_shape(shape)
    if averages is not None and not 1 <= averages <= LARGEST // prod(shape[1:]):
        raise MrgenError(f"kspace has {averages} averages, expected a few: check how the file was made")
    if kspace.chunks and prod(kspace.chunks) > LARGEST:
        raise MrgenError(f"kspace is stored in chunks of {kspace.chunks}, too large to read: store one slice a chunk")
    if not kspace.is_virtual:  # else it is stored in other files
        check_stored(kspace.nbytes, kspace.id.get_storage_size())
    return averages, shape


def _mask(file: h5py.File, n_y: int, n_x: int) -> Tensor | None:
    """The file's `mask`, (kx,) or (ky, kx); None where there is none or where it keeps everything."""
    if "mask" not in file:
        return None
    dataset = file["mask"]
    if not isinstance(dataset, h5py.Dataset):
        raise MrgenError("mask is not an array of numbers: expected one 0 or 1 for each phase line")
    return stored_mask(dataset.shape, dataset.dtype, lambda: np.asarray(dataset[()]), n_y, n_x)


def _refuse_other_scans(trajectory: str | None, datasets: set[str]) -> None:
    """Raises MrgenError for the diffusion scans of fastMRI prostate, and for what is not Cartesian."""
    if trajectory == "epi" or datasets & {"coil_sens_maps", "phase_correction"}:
        raise MrgenError(
            "this is an echo-planar (diffusion) scan: its readout is sampled along ramps, and each average has another "
            "contrast; expected a Cartesian scan: of fastMRI prostate only the T2 files can be read"
        )
    if trajectory not in (None, "cartesian", "other"):
        raise MrgenError(
            f"its header says that the trajectory is {plain(trajectory, 20)}, expected cartesian: grid the data first"
        )


def _has_calibration(file: h5py.File, shape: tuple[int, int, int, int]) -> bool:
    """Whether there is `calibration_data`. Raises MrgenError for one that does not belong to a kspace of `shape`."""
    dataset = file.get("calibration_data")
    if dataset is None:
        return False
    found: tuple[int, ...] = dataset.shape if isinstance(dataset, h5py.Dataset) and dataset.dtype.kind == "c" else ()
    if len(found) != 4 or found[:3] != shape[:3] or not 4 <= found[3] <= shape[3]:
        raise MrgenError(
            f"calibration_data is no complex array of {shape[0]} slices, {shape[1]} coils, {shape[2]} readout samples "
            "and at least 4 lines, which its kspace needs: repair it or remove the dataset"
        )
    return True


def _filled(header: Header | None, n_x: int) -> tuple[int, int]:
    """Lines of zeros (left, right) that bring `n_x` to the encoded matrix, with the centre of k-space at its n // 2."""
    if header is None:
        return 0, 0
    left = header.encoded[1] // 2 - (header.limits[0] if header.limits else n_x // 2)
    right = header.encoded[1] - n_x - left
    return (left, right) if min(left, right) >= 0 else (0, 0)


def _listed_slices(xml: str) -> int | None:
    """The number of slices in the header, which is not always that of the file."""
    last = ET.fromstring(xml).findtext("{*}encoding/{*}encodingLimits/{*}slice/{*}maximum") or ""
    return int(last) + 1 if re.fullmatch(r"\s*\d{1,5}\s*", last) else None


def _geometry(header: Header, shape: tuple[int, int]) -> Geometry:
    """Pixel size and thickness for k-space of `shape` (ky, kx); fastMRI headers do not say where the slices lie."""
    thickness = header.slab[1] / header.partitions[1] if header.slab else None
    if header.encoded != shape or header.encoded_fov is None:
        return Geometry(thickness=thickness)
    fov_y, fov_x = header.encoded_fov
    return Geometry(spacing=(fov_y / shape[0], fov_x / shape[1]), thickness=thickness)


def open_fastmri(path: Path | str) -> Scan:
    """Open a fastMRI-layout file; of its k-space only the middle slice is read.

    Raises MrgenError, as one line that names the file, for anything that is not such a file.
    """
    path = Path(path)
    check_file(path, "an HDF5 scan in the fastMRI layout")
    with hdf5(path) as file:
        averages, (slices, coils, n_y, n_x) = _shape(file)
        mask, datasets = _mask(file, n_y, n_x), set(file)
        xml = stored_text(file["ismrmrd_header"], "ismrmrd_header") if "ismrmrd_header" in file else None
        calibrated = _has_calibration(file, (slices, coils, n_y, n_x))
    with naming(path):
        header = None if xml is None else parse_header(xml)
        xml = None if xml is None else anonymous_header(xml)
        _refuse_other_scans(header.trajectory if header else None, datasets)
        if header and header.encoded == (n_x, n_y) != (n_y, n_x):
            raise MrgenError(
                f"kspace is {n_y} x {n_x} but its header says readout {n_x}, phase {n_y}: swap the last two axes"
            )

    load, remarks = _Load(path), []
    if averages is not None:
        measured = measured_lines(_read(path, "kspace", (slice(None), slices // 2)))
        if not measured.any():
            raise MrgenError(f"{path.name}: slice {slices // 2} of kspace is all zeros, expected measured data")
        left, right = _filled(header, n_x)
        load, n_x = _Load(path, averages=measured, fill=(left, right)), left + n_x + right
        mask = None if mask is None else functional.pad(mask, (left, right))
        remarks.append(describe_averages(measured))
    listed = _listed_slices(xml) if xml else None
    if listed not in (None, slices):
        remarks.append(f"The header lists {listed} slices, kspace has {slices}: kspace is believed.")
    if header and header.encoded != (n_y, n_x):
        remarks.append(f"The header's matrix {header.encoded} is not that of kspace, {(n_y, n_x)}: no pixel sizes.")

    rows = header.cropped(0, n_y) if header else n_y
    crop = (rows, header.cropped(1, n_x)) if header else (rows, n_x)
    padding = header.padding(n_x) if header else (0, 0)
    with naming(path):
        for height in (n_y, rows):  # of k-space as filled, and of the image
            check_shape((slices, coils, height, n_x))
    scan = cartesian_scan(
        path, (slices, coils, n_y, n_x), load, format_="fastMRI HDF5", mask=mask, rows=rows, padding=padding
    )
    return replace(
        scan,
        header=xml,
        crop=None if crop == scan.shape[2:] else crop,
        read_calibration=SliceReader(_Load(path, "calibration_data"), path.name, slices, "calibration_data", rows=rows)
        if calibrated
        else None,
        geometry=_geometry(header, (n_y, n_x)) if header else Geometry(),
        remarks=(*remarks, *scan.remarks),
    )
