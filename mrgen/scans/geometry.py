"""Where the slices of a scan lie in the patient, apart from its k-space: what is shown of a result needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Where the slices lie, in mm and in the patient's LPS axes (left, posterior, superior are positive).

    Position and directions are None where the file does not tell them.
    """

    spacing: tuple[float, float] | None = None  # of image pixels along readout (y) and phase encoding (x), mm
    thickness: float | None = None  # mm
    positions: tuple[Vector, ...] | None = None  # centre of each slice's image
    readout: Vector | None = None  # unit vector of increasing y
    phase: Vector | None = None  # unit vector of increasing x
    normal: Vector | None = None  # unit vector across the slices, from the first to the last

    @property
    def complete(self) -> bool:
        """Whether every pixel has a place in the patient."""
        return None not in (self.spacing, self.thickness, self.positions, self.readout, self.phase, self.normal)
