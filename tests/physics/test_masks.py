"""Sampling masks against the fastMRI package's own functions, enumeration, and a real Poisson-disc scan."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.masks import (
    PATTERNS,
    achieved_acceleration,
    acs_lines,
    acs_region,
    adjusted_spacing,
    centre_lines,
    fastmri_rng,
    sampling_mask,
    sampling_probability,
)
from mrgen.prior.data import gsure_weights

LINES = [pattern for pattern in PATTERNS if pattern != "poisson-disc"]
COUNTED = [pattern for pattern in LINES if pattern != "magic"]  # R counts the centre
CLASSES = {"random": "RandomMaskFunc", "equispaced": "EquispacedMaskFractionFunc", "magic": "MagicMaskFunc"}
CASES = [(224, 4, 0.08), (224, 8, 0.04), (368, 4, 0.08), (320, 10, 0.04), (171, 6, 0.06), (181, 3.5, 0.1)]
WHOLE = [case for case in CASES if case[1] == int(case[1])]
PAIRS = [(2, 0.08), (3, 0.08), (4, 0.08), (5, 0.07), (6, 0.06), (8, 0.04), (10, 0.04), (12, 0.02)]
NAMES = ["file1000000.h5", "file_brain_AXT1POST_201_6002717.h5", "Schädel 3.h5"]
DATA = Path(__file__).parents[2].parent / "shared/data"  # a data folder beside the repository


def draw(pattern: str, case: tuple[int, float, float], seeds: Sequence[int]) -> Tensor:
    """Masks (seed, n)."""
    return torch.stack([sampling_mask(pattern, *case, np.random.RandomState(s)) for s in seeds])


def distinct(masks: Tensor) -> set[tuple[float, ...]]:
    return {tuple(m) for m in masks.tolist()}


@pytest.fixture(scope="module")
def subsample():  # type: ignore[no-untyped-def]
    return pytest.importorskip("fastmri.data.subsample", reason="fastmri is not installed", exc_type=ImportError)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pattern", CLASSES)
def test_a_file_gets_fastmris_mask(subsample, pattern: str, name: str) -> None:  # type: ignore[no-untyped-def]
    for n, (acceleration, fraction) in itertools.product((64, 171, 224, 320, 368, 372, 396, 399, 640), PAIRS):
        theirs = getattr(subsample, CLASSES[pattern])([fraction], [acceleration])
        expected = theirs((1, n, 2), seed=tuple(map(ord, name)))[0].flatten()
        assert torch.equal(sampling_mask(pattern, n, acceleration, fraction, fastmri_rng(name)), expected), n


@pytest.mark.parametrize("pattern", CLASSES)
def test_fastmris_evaluation_uses_that_mask(subsample, pattern: str) -> None:  # type: ignore[no-untyped-def]
    transforms = pytest.importorskip("fastmri.data.transforms")
    transform = transforms.VarNetDataTransform(getattr(subsample, CLASSES[pattern])([0.08], [4]))
    attributes = {"padding_left": 5, "padding_right": 90, "recon_size": (40, 40), "max": 1.0}
    kspace = np.ones((2, 48, 96), np.complex64)
    sample = transform(kspace, None, np.ones((40, 40), np.float32), attributes, NAMES[0], 7)
    ours = sampling_mask(pattern, 96, 4, 0.08, fastmri_rng(NAMES[0]))
    ours[:5] = ours[90:] = 0
    assert torch.equal(sample.mask.flatten().float(), ours)


def test_with_several_pairs_fastmri_first_chooses_one(subsample) -> None:  # type: ignore[no-untyped-def]
    fractions, accelerations = [0.08, 0.06, 0.04], [4, 6, 8]
    theirs, chosen = subsample.EquispacedMaskFractionFunc(fractions, accelerations), set()
    for name in [f"file{i}.h5" for i in range(20)]:
        rng = fastmri_rng(name)
        i = rng.randint(3)
        ours = sampling_mask("equispaced", 320, accelerations[i], fractions[i], rng)
        assert torch.equal(ours, theirs((1, 320, 2), seed=tuple(map(ord, name)))[0].flatten())
        chosen.add(i)
    assert chosen == {0, 1, 2}


def test_other_seeds_and_slices_get_other_masks() -> None:
    keys = [(), (1, 0), (0, 1), (1, 1), (2, 0), (2**70, 0), (-1, 0)]
    masks = torch.stack([sampling_mask("random", 320, 4, 0.08, fastmri_rng(NAMES[0], *key)) for key in keys])
    assert len(distinct(masks)) == len(keys)
    assert torch.equal(masks[0], sampling_mask("random", 320, 4, 0.08, fastmri_rng(NAMES[0], 0, 0)))


def test_a_seed_gives_the_same_mask_in_every_version() -> None:
    kept = {
        pattern: sampling_mask(pattern, 48, 4, 0.08, fastmri_rng("a.h5", 1, 2)).nonzero().flatten().tolist()
        for pattern in LINES
    }
    assert kept == {
        "random": [0, 7, 12, 13, 22, 23, 24, 25, 33, 46],
        "equispaced": [1, 6, 12, 18, 22, 23, 24, 25, 28, 34, 40, 45],
        "equispaced-any-offset": [0, 6, 11, 17, 22, 23, 24, 25, 28, 33, 39, 44],
        "magic": [3, 7, 11, 15, 19, 22, 23, 24, 25, 27, 31, 35, 39, 43, 47],
    }


@pytest.mark.parametrize("pattern", ["equispaced", "magic"])
@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_probability_is_the_mean_over_fastmris_offsets(subsample, pattern, case) -> None:  # type: ignore[no-untyped-def]
    n, acceleration, center_fraction = case
    theirs = getattr(subsample, CLASSES[pattern])([center_fraction], [acceleration])
    offsets = range(round(adjusted_spacing(*case)) if pattern == "equispaced" else acceleration)
    expected = torch.stack([theirs((1, n, 1), offset=o)[0].flatten() for o in offsets])
    ours = draw(pattern, case, range(15 * len(offsets)))
    assert distinct(ours) == distinct(expected)
    assert distinct(1 - ours) != distinct(expected), "a complemented mask would not pass"
    torch.testing.assert_close(sampling_probability(pattern, *case), expected.mean(0))


@pytest.mark.parametrize("case", [(120, 4, 0.08), (96, 8, 0.04), (75, 1, 0.08)], ids=str)
@pytest.mark.parametrize("pattern", LINES)
def test_probability_is_the_mean_mask(pattern: str, case: tuple[int, float, float]) -> None:
    draws = 1500
    mean, expected = draw(pattern, case, range(draws)).mean(0), sampling_probability(pattern, *case)
    assert (mean - expected).abs().max() < 4.5 * 0.5 / draws**0.5
    certain = (expected == 0) | (expected == 1)
    assert torch.equal(mean[certain], expected[certain])


@pytest.mark.parametrize(("n", "acceleration"), [(320, 4), (368, 6), (171, 8), (399, 10)])
def test_magic_with_an_even_r_samples_odd_lines_only(n: int, acceleration: int) -> None:
    k = (torch.arange(n) - n // 2).abs()
    expected = torch.where(k % 2 == 1, 2 / acceleration, 0.0)
    expected[k == 1] = 1 / acceleration
    expected[centre_lines(n, 0.02)] = 1
    torch.testing.assert_close(sampling_probability("magic", n, acceleration, 0.02), expected)


@pytest.mark.parametrize("acceleration", [4, 6, 10])
def test_mirrored_lines_of_magic_fill_its_gaps(acceleration: int) -> None:
    """Sampled k and mirrored -k lie two apart in turn: together they are 2, R - 2, 2, R - 2, ... apart."""
    for mask in draw("magic", (321, acceleration, 0.005), range(30)):
        k = mask.nonzero().flatten() - 160
        k = k[k.abs() > acceleration + 2]
        both = torch.cat([k, -k]).sort().values
        steps = set(both[both > 0].diff().tolist())
        assert steps == {2, acceleration - 2}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("pattern", COUNTED)
def test_a_mask_keeps_its_centre_and_its_r(pattern: str, case: tuple[int, float, float]) -> None:
    n, acceleration, center_fraction = case
    masks = draw(pattern, case, range(200))
    assert masks.unique().tolist() == [0, 1]
    centre = centre_lines(n, center_fraction)
    assert centre.stop - centre.start == round(n * center_fraction)
    assert centre.start <= n // 2 < centre.stop
    assert (masks[:, centre] == 1).all()
    assert float(masks.mean()) == pytest.approx(1 / acceleration, rel=0.03)
    if pattern != "random":  # one mask at a time; a random one scatters
        for mask in masks:
            assert achieved_acceleration(mask) == pytest.approx(acceleration, rel=0.06)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_acceleration_keeps_everything(pattern: str) -> None:
    shape = (40, 50) if pattern == "poisson-disc" else (50,)
    assert torch.equal(sampling_mask(pattern, 50, 1, 0.08, np.random.RandomState(0), rows=40), torch.ones(shape))


@pytest.mark.parametrize("n", [16, 15])
def test_acs_lines_are_the_run_through_the_centre(n: int) -> None:
    mask = torch.zeros(n)
    mask[[0, 5, 6, 7, 8, 9, 12]] = 1
    assert acs_lines(mask) == slice(5, 10)
    assert acs_lines(torch.ones(n)) == slice(0, n)
    mask[n // 2] = 0
    assert acs_lines(mask) == slice(n // 2, n // 2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_acs_lines_hold_the_centre_of_a_drawn_mask(case: tuple[int, float, float]) -> None:
    n, _, center_fraction = case
    for mask in draw("equispaced", case, range(20)):
        found, centre = acs_lines(mask), centre_lines(n, center_fraction)
        assert found.start <= centre.start
        assert found.stop >= centre.stop
        assert (mask[found] == 1).all()


def rank(mask: Tensor, y: slice, x: slice) -> tuple[int, int]:
    """What makes a rectangle large; (0, 0) where it is not fully sampled."""
    height, width = y.stop - y.start, x.stop - x.start
    return (min(height, width), height * width) if bool(mask[y, x].all()) else (0, 0)


@pytest.mark.parametrize("shape", [(8, 7), (7, 10), (1, 9), (9, 1)])
def test_acs_region_is_the_largest_of_all_rectangles(shape: tuple[int, int]) -> None:
    generator, (y, x) = torch.Generator().manual_seed(0), (n // 2 for n in shape)
    every = [
        (slice(top, bottom), slice(left, right))
        for top, bottom in itertools.product(range(y + 1), range(y + 1, shape[0] + 1))
        for left, right in itertools.product(range(x + 1), range(x + 1, shape[1] + 1))
    ]
    for density in (0.5, 0.8, 0.9, 0.97, 1.0):
        for _ in range(6):
            mask = (torch.rand(shape, generator=generator) < density).float()
            mask[y, x] = 1
            found = acs_region(mask)
            assert found in every
            assert rank(mask, *found) == max(rank(mask, *r) for r in every)
    mask[y, x] = 0
    assert acs_region(mask) == (slice(y, y), slice(x, x))


def test_acs_region_of_lines_is_that_of_acs_lines() -> None:
    for mask in draw("equispaced", (224, 4, 0.08), range(5)):
        assert acs_region(mask.expand(90, 224)) == (slice(0, 90), acs_lines(mask))


def test_acs_region_is_not_a_spoke() -> None:
    mask = torch.zeros(200, 160, dtype=torch.bool)
    mask[100], mask[:, 80] = True, True
    mask[95:107, 70:82] = True
    assert acs_region(mask) == (slice(95, 107), slice(70, 82))


def test_acs_region_of_a_measured_poisson_disc_scan() -> None:
    file = DATA / "scans/brain_poisson2d_R8_8ch_230x180.npz"
    if not file.exists():
        pytest.skip(f"{file.name} is not in a data folder beside the repository")
    with np.load(file) as data:
        mask = torch.from_numpy((data["kspace"] != 0).any(0))
    assert mask.shape == (230, 180)
    assert acs_region(mask) == (slice(103, 127), slice(78, 102))  # 24 x 24 around (115, 90)
    assert achieved_acceleration(mask) == pytest.approx(8.04, abs=0.01)


def test_achieved_acceleration() -> None:
    assert achieved_acceleration(torch.tensor([1.0, 0, 0, 1])) == 2
    assert achieved_acceleration(torch.zeros(4)) == np.inf
    assert achieved_acceleration(torch.eye(6)) == 6
    assert achieved_acceleration(torch.eye(6, 9, dtype=torch.bool)) == 9
    assert achieved_acceleration(torch.tensor([0, 1.0, 0, 0, 1, 0]), zero_filled=2) == 2
    assert achieved_acceleration(torch.eye(6, 9), zero_filled=3) == 6


@pytest.mark.parametrize(("shape", "acceleration", "fraction"), [((64, 64), 4, 0.08), ((90, 61), 8, 0.04)])
def test_poisson_disc_has_its_r_and_its_calibration(shape, acceleration, fraction) -> None:  # type: ignore[no-untyped-def]
    """Over several seeds: sigpy alone fails where its first point falls inside the calibration, one in five here."""
    rows, n = shape
    masks = [
        sampling_mask("poisson-disc", n, acceleration, fraction, np.random.RandomState(s), rows) for s in range(10)
    ]
    sides = [2 * round(length * fraction**0.5 / 2) for length in shape]
    centre = tuple(
        slice(length // 2 - side // 2, length // 2 + side // 2) for length, side in zip(shape, sides, strict=True)
    )
    assert sides[0] * sides[1] == pytest.approx(fraction * rows * n, rel=0.15)
    for mask in masks:
        assert mask.shape == shape
        assert mask.unique().tolist() == [0, 1]
        assert bool((mask[centre] == 1).all())
        assert achieved_acceleration(mask) == pytest.approx(acceleration, rel=0.031)
        assert not mask[:3, :3].any(), "the corners are left out"
        found = acs_region(mask)
        assert all(f.start <= c.start and f.stop >= c.stop for f, c in zip(found, centre, strict=True))
    assert len(distinct(torch.stack(masks).flatten(1))) == len(masks)
    outside = torch.stack(masks).mean(0)
    outside[centre] = 0
    assert outside[rows // 4 : -rows // 4].mean() > 2 * outside[: rows // 4].mean(), "sparser further out"


def test_poisson_disc_is_repeatable_and_leaves_other_random_numbers_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (sampling_mask("poisson-disc", 48, 5, 0.04, fastmri_rng("a.h5", 3), rows=60) for _ in range(2))
    assert torch.equal(first, second)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_errors_say_what_to_do() -> None:
    rng = np.random.RandomState(0)
    with pytest.raises(ValueError, match="unknown mask pattern 'spiral'; there are random, equispaced"):
        sampling_mask("spiral", 100, 4, 0.08, rng)
    with pytest.raises(ValueError, match="unknown mask pattern"):
        sampling_probability("spiral", 100, 4, 0.08)
    for r in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="R must be at least 1, not"):
            sampling_mask("random", 100, r, 0.08, rng)
    for pattern in COUNTED:
        with pytest.raises(ValueError, match="25 of 100 lines alone exceeds 1/R = 1/4: lower the centre fraction or R"):
            sampling_mask(pattern, 100, 4, 0.25, rng)
        with pytest.raises(ValueError, match="lower the centre fraction or R"):
            sampling_probability(pattern, 100, 4, 0.5)
    with pytest.raises(ValueError, match=r"R is the spacing of the lines in a magic mask, an integer: not 3\.5"):
        sampling_mask("magic", 100, 3.5, 0.08, rng)
    with pytest.raises(ValueError, match="two phase-encode directions: give the rows"):
        sampling_mask("poisson-disc", 100, 4, 0.08, rng)
    for r, fraction in ((1.5, 0.08), (4, 0.25)):
        with pytest.raises(ValueError, match="R is at least 2, and below 1 / centre fraction"):
            sampling_mask("poisson-disc", 100, r, fraction, rng, rows=100)
    with pytest.raises(ValueError, match="no closed form, so GSURE has no weights for it: train with"):
        sampling_probability("poisson-disc", 100, 4, 0.08)


def test_fastmris_offsets_never_sample_some_lines() -> None:
    case = (368, 4, 0.08)
    spacing = adjusted_spacing(*case)
    assert (round(spacing, 2), round(spacing)) == (5.38, 5)
    never = sampling_probability("equispaced", *case) == 0
    assert int(never.sum()) == 24, "docs/protocols.md quotes this: 6.5 % of the lines"
    assert torch.equal(draw("equispaced", case, range(200)).sum(0) == 0, never)
    achieved = 368 / float(sampling_probability("magic", *case).sum())
    assert achieved == pytest.approx(3.2, abs=0.05), "docs/protocols.md quotes this"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_offset_samples_every_line_outside_the_centre_alike(case: tuple[int, float, float]) -> None:
    draws, outside = 1500, torch.ones(case[0], dtype=torch.bool)
    outside[centre_lines(case[0], case[2])] = False
    rate = 1 / adjusted_spacing(*case)
    probability = sampling_probability("equispaced-any-offset", *case)
    torch.testing.assert_close(probability[outside], torch.full_like(probability[outside], rate))
    assert bool((probability[~outside] == 1).all())
    mean = draw("equispaced-any-offset", case, range(draws)).mean(0)
    assert (mean - probability).abs().max() < 4.5 * (rate * (1 - rate) / draws) ** 0.5


@pytest.mark.parametrize("pattern", ["equispaced", "magic"])
def test_gsure_refuses_a_pattern_that_leaves_lines_out(pattern: str) -> None:
    with pytest.raises(MrgenError, match="never sampled by this protocol") as error:
        gsure_weights(sampling_probability(pattern, 368, 4, 0.08))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_offset_leaves_no_line_out(case: tuple[int, float, float]) -> None:
    assert bool((draw("equispaced-any-offset", case, range(400)).sum(0) > 0).all())
