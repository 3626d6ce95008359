from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import h5py
import numpy as np
import oblique
import pytest

from mrgen.errors import MrgenError
from mrgen.review.geometry import place, read_geometry, write_geometry
from mrgen.scans.geometry import Geometry
from mrgen.scans.open import open_scan

MATRIX = oblique.ROWS, oblique.COLUMNS


@pytest.mark.parametrize("reverse", [False, True])
def test_every_pixel_lies_where_the_raw_data_say(reverse):
    placement = place(oblique.oblique(reverse), oblique.SLICES, MATRIX)
    affine = placement.affine()
    assert placement.source == "raw data"
    for row, column, i in ((0, 0, 0), (12, 8, 2), (23, 16, 4), (5, 11, 3)):
        expected = oblique.world(row, column, i, reverse)
        np.testing.assert_allclose((affine @ [column, row, i, 1])[:3], expected, atol=1e-9)
        by_slice = placement.origins[i] + column * 0.8 * placement.along_x + row * 1.5 * placement.along_y
        np.testing.assert_allclose(by_slice, expected, atol=1e-9)


@pytest.mark.parametrize("matrix", [(8, 8), (7, 7), (8, 7), (7, 8)])
def test_the_centre_is_pixel_n_over_2_of_even_and_odd_sizes(matrix):
    geometry = oblique.oblique()
    affine = place(geometry, oblique.SLICES, matrix).affine()
    np.testing.assert_allclose((affine @ [matrix[1] // 2, matrix[0] // 2, 0, 1])[:3], geometry.positions[0], atol=1e-9)


def test_a_scanner_s_own_position_and_directions(scans):
    """Read once more from the file: IPP = position - read_dir (Nx // 2) dx - phase_dir (Ny // 2) dy."""
    path = scans / "phantom_14ch_prospective_R3_ismrmrd.h5"
    scan = open_scan(path)
    with h5py.File(path) as file:
        heads = file["dataset/data"].fields("head")[:]
        header = ElementTree.fromstring(file["dataset/xml"][0])
    head = heads[heads["number_of_samples"] == np.median(heads["number_of_samples"])][-1]
    space = header.find("{*}encoding/{*}encodedSpace")
    n, fov = (
        [float(space.findtext(f"{{*}}{kind}/{{*}}{axis}")) for axis in "xy"]
        for kind in ("matrixSize", "fieldOfView_mm")
    )
    matrix = scan.crop or scan.shape[2:]
    placement = place(scan.geometry, scan.slices, matrix)
    corner = np.array(head["position"], float)
    for name, size, along, step in zip(("read_dir", "phase_dir"), matrix, (placement.along_y, placement.along_x),
                                       (f / m for f, m in zip(fov, n, strict=True)), strict=True):  # fmt: skip
        corner -= head[name] * (size // 2) * step
        np.testing.assert_allclose(along, head[name], atol=1e-6)
    assert placement.source == "raw data"
    np.testing.assert_allclose(placement.origins, [corner], atol=1e-4)


def test_directions_in_single_precision_become_orthonormal():
    geometry = oblique.oblique()
    crooked = replace(geometry, phase=tuple(np.float32(v) + 3e-4 for v in geometry.phase))
    placement = place(crooked, oblique.SLICES, MATRIX)
    both = np.array([placement.along_x, placement.along_y])
    np.testing.assert_allclose(both @ both.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(placement.along_x, geometry.phase, atol=1e-3)


@pytest.mark.parametrize("missing", ["spacing", "thickness", "positions", "readout", "phase", "normal"])
def test_incomplete_geometry_is_nominal(missing):
    geometry = replace(oblique.oblique(), **{missing: None})
    placement = place(geometry, oblique.SLICES, MATRIX)
    assert placement.nominal
    dy, dx = (1.0, 1.0) if missing == "spacing" else (1.5, 0.8)
    dz = 1.0 if missing == "thickness" else 3.0
    np.testing.assert_allclose(
        placement.affine(), [[dx, 0, 0, -8 * dx], [0, dy, 0, -12 * dy], [0, 0, dz, -2 * dz], [0, 0, 0, 1]]
    )


def test_repetitions_begin_new_volumes():
    geometry = oblique.oblique()
    twice = replace(geometry, positions=geometry.positions * 2)
    placement = place(twice, 10, MATRIX)
    assert placement.volumes() == [range(0, 5), range(5, 10)]
    np.testing.assert_allclose(placement.affine(), place(geometry, 5, MATRIX).affine())
    alone = replace(geometry, positions=geometry.positions[:1] * 3)  # one slice, three contrasts
    assert place(alone, 3, MATRIX).volumes() == [range(0, 1), range(1, 2), range(2, 3)]


def test_a_single_slice_is_as_thick_as_it_says():
    geometry = replace(oblique.oblique(), positions=oblique.oblique().positions[:1])
    step = place(geometry, 1, MATRIX).step()
    np.testing.assert_allclose(step, 3.0 * np.cross(geometry.phase, geometry.readout), atol=1e-9)


def test_uneven_slices_have_no_affine():
    geometry = oblique.oblique()
    uneven = replace(geometry, positions=(*geometry.positions[:3], geometry.positions[4]))
    with pytest.raises(MrgenError, match=r"3\.30 to 6\.60 mm apart, expected equal steps"):
        place(uneven, 4, MATRIX).step()


def test_geometry_is_stored_as_it_is(tmp_path):
    for geometry in (oblique.oblique(), Geometry(), Geometry(spacing=(1.0, 2.0), thickness=5.0)):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            write_geometry(file, geometry)
            assert read_geometry(file) == geometry


def test_a_damaged_geometry_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        with pytest.raises(MrgenError, match="it holds no geometry"):
            read_geometry(file)
        for text in ('{"readout": [1, NaN, 0]}', '{"spacing": [1, 2, 3]}', '{"positions": [[1, 2], [3, 4], [5, 6]]}',
                     '{"way": 1}', "[1]", "{", '{"thickness": "thin"}'):  # fmt: skip
            file.pop("geometry", None)
            file["geometry"] = text
            with pytest.raises(MrgenError, match="its geometry is not what mrgen writes"):
                read_geometry(file)
    with pytest.raises(MrgenError, match="4 slices with 5 positions"):
        place(oblique.oblique(), 4, MATRIX)
