"""Make examples/data/brain.h5: one measured 13-coil axial head slice in the fastMRI layout.

The source is the Apache-2.0 package pyqmri 1.3.0 on PyPI, whose source archive (86 MB) holds a fully sampled
spoiled gradient echo scan at ten flip angles. This script lets pip fetch the archive. Without pip, or offline,
take pyqmri-1.3.0.tar.gz from the "Download files" page of https://pypi.org/project/pyqmri/1.3.0/ and give it
with --sdist.

The source keeps k-space as a plain FFT does, with its centre in the corner. mrgen and fastMRI keep both k-space
and the image centred at N // 2:

    kspace[i, j] = (-1)^(i + j) fftshift(source)[i, j] / max |source|

Research use only. Not for diagnostic use.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from mrgen.physics.fourier import ifft2c

RELEASE = "pyqmri==1.3.0"
MEMBER = "pyqmri-1.3.0/test/VFA_cart_smalltest.h5"
MEMBER_SHA256 = "336d6557ebb2ab7e7d750422992b07b76278d6795d4b0de6513c28e23d10a573"
FLIP_ANGLE = 2  # index of the angle with the strongest signal: 5 degrees

# Matrix, coils, TR and flip angle are the source's. It states no field of view, slice thickness or field strength.
HEADER = """<?xml version="1.0" encoding="utf-8"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <acquisitionSystemInformation>
    <receiverChannels>{coils}</receiverChannels>
  </acquisitionSystemInformation>
  <experimentalConditions>
    <H1resonanceFrequency_Hz>127731000</H1resonanceFrequency_Hz>
  </experimentalConditions>
  <encoding>
    <encodedSpace>{space}</encodedSpace>
    <reconSpace>{space}</reconSpace>
    <encodingLimits>
      <kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center></kspace_encoding_step_1>
    </encodingLimits>
    <trajectory>cartesian</trajectory>
  </encoding>
  <sequenceParameters>
    <TR>{repetition_time}</TR>
    <flipAngle_deg>{flip_angle}</flipAngle_deg>
  </sequenceParameters>
  <userParameters>
    <userParameterString>
      <name>note</name>
      <value>Nominal, not measured: field of view, slice thickness, resonance frequency</value>
    </userParameterString>
  </userParameters>
</ismrmrdHeader>
"""
SPACE = (
    "<matrixSize><x>{x}</x><y>{y}</y><z>1</z></matrixSize>"
    "<fieldOfView_mm><x>{x}</x><y>{y}</y><z>1</z></fieldOfView_mm>"  # 1 mm voxels
)


def download(folder: Path) -> Path:
    """The source archive, fetched by pip from its usual index."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        "pyqmri",
        "-d",
        str(folder),
        RELEASE,
    ]
    subprocess.run(command, check=True)
    return next(folder.glob("pyqmri-1.3.0.tar.*"))


def read_member(sdist: Path) -> bytes:
    """The scan's HDF5 file, as bytes, checked against its known hash."""
    with tarfile.open(sdist) as archive:
        member = archive.extractfile(MEMBER)
        if member is None:
            raise SystemExit(f"{sdist} holds no {MEMBER}; expected the source archive of {RELEASE}")
        content = member.read()
    if (found := hashlib.sha256(content).hexdigest()) != MEMBER_SHA256:
        raise SystemExit(f"{sdist}: {MEMBER} has SHA-256 {found}, expected {MEMBER_SHA256}")
    return content


def centred(source: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Plain FFT order (..., ky, kx) to centred k-space of a centred image; even sizes, where it is exact."""
    rows, columns = np.indices(source.shape[-2:])
    sign = np.where((rows + columns) % 2 == 0, 1, -1).astype(np.float32)
    return np.asarray(sign * np.fft.fftshift(source, axes=(-2, -1)), dtype=np.complex64)


def write_scan(content: bytes, path: Path) -> None:
    with h5py.File(io.BytesIO(content), "r") as source:
        # (angle, coil, slice, y, x) to (slice, coil, readout, phase)
        raw = (source["real_dat"][FLIP_ANGLE] + 1j * source["imag_dat"][FLIP_ANGLE]).swapaxes(0, 1)
        flip_angle = round(float(np.degrees(source.attrs["fa"][FLIP_ANGLE])), 3)
        repetition_time = float(source.attrs["TR"][0])
    kspace = centred(raw / np.abs(raw).max())
    _, coils, n_y, n_x = kspace.shape
    rss = torch.linalg.vector_norm(ifft2c(torch.from_numpy(kspace)), dim=1).numpy()  # (slice, y, x)
    header = HEADER.format(
        coils=coils,
        space=SPACE.format(x=n_y, y=n_x),  # ISMRMRD's x is the readout
        last=n_x - 1,
        centre=n_x // 2,
        repetition_time=repetition_time,
        flip_angle=flip_angle,
    )
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", data=kspace, compression="gzip", shuffle=True)
        file.create_dataset("reconstruction_rss", data=rss, compression="gzip", shuffle=True)
        file.create_dataset("ismrmrd_header", data=header)
        file.attrs["acquisition"] = "AXT1"
        file.attrs["max"] = float(rss.max())
        file.attrs["norm"] = float(np.linalg.norm(rss))
        file.attrs["patient_id"] = hashlib.sha256(b"pyqmri-demo").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="pyqmri-1.3.0.tar.gz, downloaded by hand")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "data" / "brain.h5")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        content = read_member(arguments.sdist or download(Path(folder)))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_scan(content, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
