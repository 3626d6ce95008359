"""Small synthetic scans in the fastMRI layout, for every test that needs raw data."""

import torch
from torch import Tensor

from mrgen.physics.fourier import fft2c

HEADER = """<?xml version="1.0" encoding="ascii"?>
<ismrmrdHeader{xmlns}>
 <subjectInformation><patientName>Doe^Jane</patientName><patientID>Q4711Z</patientID></subjectInformation>
 <studyInformation><studyDate>2001-02-03</studyDate></studyInformation>
 <measurementInformation><patientPosition>HFS</patientPosition><protocolName>Jane brain</protocolName>
 </measurementInformation>
 <acquisitionSystemInformation><institutionName>Somewhere</institutionName>
  <systemFieldStrength_T>3.0</systemFieldStrength_T></acquisitionSystemInformation>
 <encoding>
  <encodedSpace><matrixSize><x>{enc[0]}</x><y>{enc[1]}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{enc[0]}.0</x><y>{enc[1]}.0</y><z>5</z></fieldOfView_mm></encodedSpace>
  <reconSpace><matrixSize><x>{rec[0]}</x><y>{rec[1]}</y><z>1</z></matrixSize>
   <fieldOfView_mm><x>{fov[0]}.0</x><y>{fov[1]}.0</y><z>5</z></fieldOfView_mm></reconSpace>
  <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum>
   <center>{centre}</center></kspace_encoding_step_1></encodingLimits>
 </encoding>
 <userParameters><userParameterString><name>patient_id</name><value>Q4711Z</value></userParameterString></userParameters>
</ismrmrdHeader>"""


def make_header(
    enc: tuple[int, int],
    rec: tuple[int, int] | None = None,
    fov: tuple[int, int] | None = None,
    limits: tuple[int, int] | None = None,
    xmlns: str = ' xmlns="http://www.ismrm.org/ISMRMRD"',
) -> str:
    """An ISMRMRD header; `enc` and `rec` are (readout, phase), `limits` the (centre, last) phase encode."""
    centre, last = limits or (enc[1] // 2, enc[1] - 1)
    rec = rec or enc
    return HEADER.format(enc=enc, rec=rec, fov=fov or rec, last=last, centre=centre, xmlns=xmlns)


def make_kspace(slices: int = 1, coils: int = 4, shape: tuple[int, int] = (64, 48), noise: float = 0.02) -> Tensor:
    """A head-like phantom seen by smooth coils, (slice, coil, ky, kx) complex64, white noise of std `noise`."""
    generator = torch.Generator().manual_seed(7)
    y, x = torch.meshgrid(*[(torch.arange(n) - n // 2) / (n / 2) for n in shape], indexing="ij")
    image = 0.4 * ((y / 0.6) ** 2 + (x / 0.6) ** 2 < 1).float()
    image += 0.5 * (((y + 0.2) / 0.15) ** 2 + ((x - 0.1) / 0.25) ** 2 < 1)
    angles = 2 * torch.pi * torch.arange(coils) / coils
    distance = (y[None] - angles.sin()[:, None, None]) ** 2 + (x[None] - angles.cos()[:, None, None]) ** 2
    maps = torch.exp(-distance / 2 + 1j * (y + x * angles[:, None, None]))
    kspace = fft2c(maps * image * torch.exp(1j * y)).expand(slices, -1, -1, -1)
    return kspace + noise * torch.randn(slices, coils, *shape, generator=generator, dtype=torch.complex64)
