"""The `Scan`: raw multi-coil k-space of some slices, read lazily; and the `Slice` that the rest computes on.

A `Slice` is whitened and scaled: its noise is sigma0^2 I across coils, its intensities are near [0, 1], and
`scale` takes a result back to the scanner's units (multiply).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mrgen.physics.operators import LinearOperator, sense, sense_normal
from mrgen.scans.geometry import Geometry


@dataclass(frozen=True)
class Slice:
    """One prepared slice; arrays are (coil, ky, kx) with ky along the readout and kx along phase encoding."""

    kspace: Tensor  # (coil, ky, kx) complex64, whitened, scaled, zero where not sampled
    mask: Tensor  # (kx,) float for lines, (ky, kx) for points: 1 where sampled
    maps: Tensor  # (coil, y, x) complex64, sum_c |S_c|^2 = 1; (set, coil, y, x) with more than one set
    sigma0: float  # noise std of kspace (total complex), in scaled units
    scale: float  # scanner units per scaled unit
    reference: Tensor | None  # (y, x) |S^H F^H k| of the fully sampled scan, scaled units, where it is known
    rss: Tensor | None = None  # (y, x) the same scan: root of the sum of squares of its whitened coil images
    noise_from: str = "known"  # where sigma0 and the whitening come from, in words
    coil_energy: float | None = None  # share of the calibration data's that virtual coils keep; None: not compressed
    sets: int = 1  # of maps; with more than one, images are (set, y, x) wherever (y, x) is said
    second_share: float | None = None  # of the calibration image's power that a second set holds, where it was asked

    def operator(self, mask: Tensor | None = None) -> LinearOperator:
        """A = M F S of this slice, or with another mask."""
        return sense(self.maps, self.mask if mask is None else mask, sets=self.sets > 1)

    def normal(self) -> Callable[[Tensor], Tensor]:
        """A^H A for a batch of images, (n, y, x), the fast way."""
        return sense_normal(self.maps, self.mask, sets=self.sets > 1)

    def magnitude(self, images: Tensor) -> Tensor:
        """Magnitudes (..., y, x) of images; with several sets the root of the sum of squares over them.

        The sets are orthonormal at every pixel, so that is the RSS of the coil images that they stand for.
        """
        return images.abs() if self.sets == 1 else images.norm(dim=-3)

    @property
    def support(self) -> Tensor:
        """(y, x), True where any coil has a map, and so where the scan says anything about the image."""
        return (self.maps != 0).any(-3)

    def to(self, device: torch.device | str) -> Slice:
        """This slice with its tensors on `device`."""
        return replace(
            self,
            kspace=self.kspace.to(device),
            mask=self.mask.to(device),
            maps=self.maps.to(device),
            reference=None if self.reference is None else self.reference.to(device),
            rss=None if self.rss is None else self.rss.to(device),
        )


@dataclass(frozen=True)
class Scan:
    """Raw k-space of a scan, not yet whitened; `read_slice(i)` gives (coil, ky, kx) complex64.

    What a reader calls a slice is one image to reconstruct: repetitions, contrasts and phases of a slice are slices
    of their own, and `remarks` says how they are ordered. The file is open only while something is read from it.
    """

    path: str
    shape: tuple[int, int, int, int]  # slice, coil, ky (readout), kx (phase)
    mask: Tensor | None  # (kx,) or (ky, kx), 0 and 1, of an undersampled scan; None when fully sampled
    read_slice: Callable[[int], Tensor] = field(repr=False)
    # ismrmrd_header, XML, without anything that identifies a person; out of repr because it is long
    header: str | None = field(default=None, repr=False)
    crop: tuple[int, int] | None = None  # reconSpace matrix (y, x) where it is smaller than the image
    padding: tuple[int, int] = (0, 0)  # lines at the left and right edge of kx that the scanner zero-filled
    format: str = "fastMRI HDF5"
    # samples (coil, n) of a noise scan, scaled so that their covariance is that of the k-space noise
    noise: Tensor | None = field(default=None, repr=False)
    # (coil, ay, ax): the fully sampled centre of k-space, measured apart from the slices' own lines
    read_calibration: Callable[[int], Tensor] | None = field(default=None, repr=False)
    geometry: Geometry = field(default_factory=Geometry)
    remarks: tuple[str, ...] = ()  # what the reader found unusual and what it did about it, one sentence each

    @property
    def slices(self) -> int:
        return self.shape[0]
