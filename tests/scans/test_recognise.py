from __future__ import annotations

import numpy as np
import pytest
import torch

from mrgen.physics.masks import sampling_mask
from mrgen.scans.recognise import acceleration_text, recognise


def drawn(
    pattern: str, n: int, acceleration: float, fraction: float, seed: int, rows: int | None = None
) -> torch.Tensor:
    return sampling_mask(pattern, n, acceleration, fraction, np.random.RandomState(seed), rows)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("n", "acceleration", "fraction"), [(368, 4, 0.08), (320, 8, 0.04), (180, 3, 0.1), (224, 2.5, 0.08)]
)
@pytest.mark.parametrize("pattern", ["equispaced", "equispaced-any-offset"])
def test_equispaced_lines_show_their_spacing(pattern, n, acceleration, fraction, seed):
    centre = round(n * fraction)
    spacing = acceleration * (centre - n) / (centre * acceleration - n)  # fastMRI's adjusted acceleration
    found = recognise(drawn(pattern, n, acceleration, fraction, seed), (64, n))
    assert found.pattern.startswith("equispaced, every")
    assert found.spacing == pytest.approx(spacing, abs=0.02)
    assert 0 <= found.offset < found.spacing
    assert found.partial_fourier is None
    assert found.acceleration == pytest.approx(acceleration, rel=0.1)
    assert found.acceleration_outside == pytest.approx(spacing, rel=0.15)
    assert found.acs[0] == 64
    assert centre <= found.acs[1] <= centre + 4  # lines that happen to touch it belong to it


def test_the_offset_is_that_of_the_lattice():
    mask = (torch.arange(96) % 4 == 3).float()
    mask[42:54] = 1
    found = recognise(mask, (64, 96))
    assert (found.spacing, found.offset) == (4, 3)


@pytest.mark.parametrize("seed", range(8))
def test_random_lines_are_not_taken_for_a_lattice(seed):
    found = recognise(drawn("random", 320, 4, 0.08, seed), (64, 320))
    assert found.pattern == "random"
    assert (found.spacing, found.partial_fourier) == (None, None)


def test_one_line_missing_makes_a_lattice_random():
    mask = (torch.arange(96) % 4 == 3).float()
    mask[42:54] = 1
    mask[19] = 0
    assert recognise(mask, (64, 96)).pattern == "random"


def test_lines_denser_towards_the_centre_are_told():
    generator = torch.Generator().manual_seed(0)
    away = (torch.arange(320) - 160).abs() / 160
    mask = (torch.rand(320, generator=generator) < 0.8 * (1 - away) ** 3).float()
    mask[150:170] = 1
    assert recognise(mask, (64, 320)).pattern == "random, denser towards the centre"


@pytest.mark.parametrize("seed", range(4))
def test_magic_lines_have_an_offset_of_their_own_on_each_side(seed):
    found = recognise(drawn("magic", 320, 5, 0.08, seed), (64, 320))
    assert "every 5 lines, with an offset of its own on each side" in found.pattern


def test_partial_fourier_names_its_side():
    mask = (torch.arange(128) % 2 == 0).float()
    mask[56:72] = 1
    mask[:32] = 0
    found = recognise(mask, (64, 128))
    assert found.partial_fourier == "left side missing, 96 of 128 lines (75%) spanned"
    assert recognise(None, (64, 128), (0, 40)).partial_fourier == "right side missing, 88 of 128 lines (69%) spanned"
    full = recognise(None, (64, 128), (20, 21))
    assert (full.kind, full.partial_fourier, full.acs) == ("fully sampled", None, (64, 87))
    assert full.acceleration == 1
    assert full.acceleration_all == pytest.approx(128 / 87)


def test_zero_filled_lines_are_counted_apart():
    mask = drawn("equispaced", 128, 4, 0.08, 0)
    mask[:20] = mask[107:] = 0
    found = recognise(mask, (64, 128), (20, 21))
    kept = float(mask.sum())
    assert (found.acceleration, found.acceleration_all) == (87 / kept, 128 / kept)
    points = recognise(mask.expand(64, -1), (64, 128), (20, 21))
    assert (points.acceleration, points.acceleration_all) == (87 / kept, 128 / kept)
    assert acceleration_text(87 / 23, 128 / 23) == "R = 3.78, 5.57 with the zero-filled lines"
    assert acceleration_text(4, 4) == "R = 4.00"


def test_few_lines_are_not_judged():
    mask = torch.zeros(64)
    mask[28:36] = mask[10] = mask[50] = 1
    assert "2 lines beside the centre, too few" in recognise(mask, (64, 64)).pattern


def test_points_are_a_lattice_a_poisson_disc_or_random():
    y, x = torch.meshgrid(torch.arange(96), torch.arange(80), indexing="ij")
    centre = ((y - 48).abs() < 8) & ((x - 40).abs() < 8)
    lattice = (((y % 2 == 0) & ((x + y // 2) % 2 == 0)) | centre).float()  # shifted from row to row, as CAIPIRINHA
    assert recognise(lattice, (96, 80)).pattern.startswith("lattice, repeating after")
    generator = torch.Generator().manual_seed(0)
    random = ((torch.rand(96, 80, generator=generator) < 0.2) | centre).float()
    found = recognise(random, (96, 80))
    assert (found.kind, found.pattern) == ("points", "random points")
    assert (found.acs[0] >= 15, found.acs[1] >= 15) == (True, True)
    assert found.acceleration_outside == pytest.approx(5, rel=0.1)
    poisson = recognise(drawn("poisson-disc", 80, 6, 0.03, 0, rows=96), (96, 80))
    assert poisson.pattern.startswith("points that keep apart (Poisson disc)")
