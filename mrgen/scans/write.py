"""Writer of raw data in the fastMRI HDF5 layout (Zbontar et al., arXiv 1811.08839), the counterpart of its reader.

kspace                (slice, coil, readout, phase) complex64, centred, one chunk a slice
mask                  (phase,), or (readout, phase) of points, float32: 0 where an undersampled scan was set to zero
ismrmrd_header        XML: matrix sizes, fields of view, limits of the phase encodes
reconstruction_rss    (slice, y, x) float32: RSS of the fully sampled k-space, noise and all, cropped to reconSpace
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from mrgen.physics.fourier import centre_crop, ifft2c

_HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation>
    <receiverChannels>{coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>127731000</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>{encoded}</encodedSpace>
    <reconSpace>{recon}</reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center></kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
</ismrmrdHeader>
"""
_SPACE = (
    "<matrixSize><x>{0}</x><y>{1}</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>{2:.6g}</x><y>{3:.6g}</y><z>{4:.6g}</z></fieldOfView_mm>"
)


@dataclass(frozen=True)
class Layout:
    """What the arrays of a file look like."""

    slices: int
    coils: int
    matrix: tuple[int, int]  # of the image, y (readout) and x (phase)
    oversampling: int  # of the readout
    fov: tuple[float, float]  # of the image, mm
    thickness: float  # mm

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of k-space: (slice, coil, readout, phase)."""
        return self.slices, self.coils, self.oversampling * self.matrix[0], self.matrix[1]

    def header(self) -> str:
        """The ISMRMRD header; its x is the readout. The resonance frequency, which it must have, is that of 3 T."""
        (n_y, n_x), (f_y, f_x), wide = self.matrix, self.fov, self.oversampling
        return _HEADER.format(
            coils=self.coils,
            encoded=_SPACE.format(wide * n_y, n_x, wide * f_y, f_x, self.thickness),
            recon=_SPACE.format(n_y, n_x, f_y, f_x, self.thickness),
            last=n_x - 1,
            centre=n_x // 2,
        )


def write_fastmri(path: Path, kspace: Iterable[Tensor], layout: Layout, mask: Tensor | None, name: str) -> None:
    """Write fully sampled k-space (coil, readout, phase), a slice at a time, to a new file.

    `mask` (phase,) or (readout, phase) of 0 and 1 undersamples it on the way. `name` becomes the attribute
    `patient_id`. Equal arguments give equal bytes. Raises OSError where the disk refuses, ValueError for slices that
    `layout` does not announce.
    """
    slices, coils, n_y, n_x = layout.shape
    with h5py.File(path, "w") as file:
        file["ismrmrd_header"] = layout.header()
        data = file.create_dataset("kspace", (slices, coils, n_y, n_x), "complex64", chunks=(1, coils, n_y, n_x))
        images = np.zeros((slices, *layout.matrix), np.float32)
        count = 0
        for i, full in enumerate(kspace):
            images[i] = torch.linalg.vector_norm(centre_crop(ifft2c(full), layout.matrix), dim=0).numpy()
            data[i] = (full if mask is None else full * mask).numpy()
            count += 1
        if count != slices:
            raise ValueError(f"{count} slices, expected {slices}")
        file["reconstruction_rss"] = images
        if mask is not None:
            file["mask"] = mask.numpy().astype(np.float32)
        file.attrs["acquisition"] = "SIMULATED"
        file.attrs["max"] = float(images.max())
        file.attrs["norm"] = float(np.linalg.norm(images))
        file.attrs["patient_id"] = name
