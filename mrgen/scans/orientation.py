"""Where slices lie in the patient, from what scanners store with each readout: a position and three directions.

With image pixel (n_y // 2, n_x // 2) at the position r of its slice, pixel (y, x) is at

    r + (y - n_y // 2) dy e_readout + (x - n_x // 2) dx e_phase,    in mm, LPS
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mrgen.scans.geometry import Geometry, Vector
from mrgen.scans.header import Header

_TOLERANCE = 1e-3  # of the length of unit vectors and of the cosines between them


def _vector(values: NDArray[np.floating]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def directions(table: NDArray[np.void]) -> NDArray[np.floating] | None:
    """The directions (readout, phase, slice) that all readouts share; None unless they are such and orthonormal."""
    e = table["directions"].astype(np.float64)
    if not np.isfinite(e).all() or np.abs(e - e[0]).max() > _TOLERANCE:
        return None
    return None if np.abs(e[0] @ e[0].T - np.eye(3)).max() > _TOLERANCE else e[0]


def ranks(table: NDArray[np.void]) -> NDArray[np.integer]:
    """The place of each readout's slice, one readout a slice, in order along the slice direction.

    As they come where the slices are not parallel or the positions do not tell them apart.
    """
    e, r = directions(table), table["position"].astype(np.float64)
    if e is None or not np.isfinite(r).all() or len(np.unique((r @ e[2]).round(3))) < len(table):
        return np.arange(len(table))
    return np.argsort(np.argsort(r @ e[2]))


def geometry(table: NDArray[np.void], header: Header, kept: range) -> tuple[Geometry, tuple[str, ...]]:
    """Geometry of all slices, and remarks on what is missing, from one readout of each volume.

    `kept` are the partitions of each volume, counted from its centre. Volumes are at places of their own but for
    repetitions, which have the same slice number.
    """
    spacing = thickness = None
    if header.encoded_fov:
        spacing = header.encoded_fov[0] / header.encoded[0], header.encoded_fov[1] / header.encoded[1]
    if header.slab:
        thickness = header.slab[0] / header.partitions[0]
    e = directions(table)
    r = table["position"].astype(np.float64)
    if not np.isfinite(r).all() or len(np.unique(r.round(3), axis=0)) != len(np.unique(table["image"][:, -1])):
        return Geometry(spacing, thickness), ("The file does not tell where the slices lie.",)
    if e is None:
        remark = "The slices are not parallel, or the file does not tell their directions."
        return Geometry(spacing, thickness, tuple(_vector(v) for v in r) if len(kept) == 1 else None), (remark,)
    if len(kept) > 1:
        offsets = np.multiply.outer(kept, e[2] * (thickness or np.nan))
        r = (r[:, None] + offsets).reshape(-1, 3)
    positions = tuple(_vector(v) for v in r) if np.isfinite(r).all() else None
    return Geometry(spacing, thickness, positions, _vector(e[0]), _vector(e[1]), _vector(e[2])), ()
