"""Training data: prepared once, without a line that was not sampled, in batches that a step number determines."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.masks import sampling_mask, sampling_probability
from mrgen.physics.operators import sense
from mrgen.prior.data import CachedSlices, Item, TrainingSet, gsure_weights, item_of
from mrgen.prior.files import read_safetensors
from mrgen.prior.objectives import CleanBatch, MeasuredBatch, gsure_fourier, gsure_sense
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import undersampling_mask
from mrgen.scans.scan import Slice
from mrgen.settings import Protocol, Sampling, Training

SHAPE = (48, 40)
PROTOCOL = Protocol(
    description="test", anatomy="phantom", sampling=Sampling(acceleration=(2.0, 3.0), center_fraction=0.2)
)


def items(data: TrainingSet) -> list[Item]:
    assert isinstance(data.items, CachedSlices)
    return list(data.items)


@pytest.fixture
def folder(write_scan: Callable[..., Path], phantom: Callable[..., Tensor]) -> Path:
    """Two fully sampled scans of 2 and 3 slices."""
    for number in range(2):
        kspace = phantom(slices=2 + number, coils=4 + number, shape=SHAPE)
        path = write_scan(f"scan{number}.h5", kspace=kspace)
    return path.parent


@pytest.fixture
def prepare(folder: Path) -> Callable[..., tuple[TrainingSet, int]]:
    """The set of `folder`, and how many slices were prepared for it."""

    def call(protocol: Protocol = PROTOCOL, cache: str = "cache") -> tuple[TrainingSet, int]:
        said: list[str] = []
        data = TrainingSet.from_folder(folder, protocol, folder / cache, said.append)
        return data, int(said[-1].split(",")[1].split()[0])

    return call


def test_a_slice_is_prepared_once_with_one_mask(prepare, folder) -> None:
    data, made = prepare()
    assert (made, len(data.shapes), set(data.shapes)) == (5, 5, {SHAPE})
    masks = [i.mask for i in items(data)]
    assert len({tuple(m.tolist()) for m in masks}) > 1
    stamps = [f.stat().st_mtime_ns for f in data.items.files]

    again, made = prepare()
    assert made == 0
    assert again.fingerprint == data.fingerprint
    assert [f.stat().st_mtime_ns for f in again.items.files] == stamps

    elsewhere, made = prepare(cache="other")
    assert made == 5
    for one, two in zip(items(data), items(elsewhere), strict=True):
        assert torch.equal(one.mask, two.mask)
        assert torch.equal(one.kspace, two.kspace)
        assert torch.equal(one.maps, two.maps)


def test_masks_are_those_of_the_protocol(prepare, folder) -> None:
    data, _ = prepare()
    scan = open_fastmri(folder / "scan0.h5")
    for index, item in enumerate(items(data)[:2]):
        allowed = [undersampling_mask(scan, PROTOCOL.sampling, r, PROTOCOL.training.seed, index) for r in (2.0, 3.0)]
        r = next(r for r, mask in zip((2.0, 3.0), allowed, strict=True) if torch.equal(mask, item.mask))
        torch.testing.assert_close(1 / item.weights, sampling_probability("equispaced-any-offset", 40, r, 0.2))


def test_only_what_changed_is_prepared_anew(prepare, folder) -> None:
    data, _ = prepare()
    stat = (folder / "scan1.h5").stat()
    os.utime(folder / "scan1.h5", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched, made = prepare()
    assert made == 3
    assert touched.fingerprint != data.fingerprint
    assert touched.items.files[:2] == data.items.files[:2]
    other = PROTOCOL.model_copy(update={"sampling": PROTOCOL.sampling.model_copy(update={"center_fraction": 0.25})})
    assert prepare(other)[1] == 5
    assert prepare(other)[1] == 0
    longer = PROTOCOL.model_copy(update={"training": PROTOCOL.training.model_copy(update={"steps": 7})})
    assert prepare(longer)[1] == 0  # what does not enter the data does not ask for new data


def test_nothing_of_an_unsampled_line_is_stored(prepare, folder) -> None:
    data, _ = prepare()
    for file, item in zip(data.items.files, items(data), strict=True):
        stored, metadata = read_safetensors(file)
        sampled = int(item.mask.sum())
        assert {k: tuple(v.shape) for k, v in stored.items()} == {
            "lines": (len(item.maps), SHAPE[0], sampled),
            "mask": (SHAPE[1],),
            "maps": (len(item.maps), *SHAPE),
            "weights": (SHAPE[1],),
        }
        assert set(metadata) == {"format", "sigma0"}
        assert (item.kspace * (1 - item.mask)).abs().max() == 0
        assert item.kspace[..., item.mask.bool()].abs().min() > 0


def test_unsampled_lines_cannot_change_an_item(
    monkeypatch: pytest.MonkeyPatch, write_scan: Callable[..., Path], phantom: Callable[..., Tensor]
) -> None:
    """Given the noise covariance (of the receiver, and measured in the background), nothing else leaks."""
    monkeypatch.setattr("mrgen.scans.prepare.noise_covariance", lambda raw, mask: (4e-4 * torch.eye(4) + 0j, "known"))
    kspace = phantom(coils=4, shape=SHAPE)
    path = write_scan("scan.h5", kspace=kspace)
    first = items(TrainingSet.from_folder(path.parent, PROTOCOL, path.parent / "a", lambda _: None))[0]
    spoiled = torch.where(first.mask.bool(), kspace, 100 * torch.randn(kspace.shape, dtype=torch.complex64))
    write_scan("scan.h5", kspace=spoiled)
    second = items(TrainingSet.from_folder(path.parent, PROTOCOL, path.parent / "b", lambda _: None))[0]
    assert torch.equal(first.kspace, second.kspace)
    assert torch.equal(first.maps, second.maps)
    assert torch.equal(first.mask, second.mask)
    assert first.sigma0 == second.sigma0


def test_an_undersampled_scan_is_taken_as_it_is(
    write_scan: Callable[..., Path], phantom: Callable[..., Tensor]
) -> None:
    mask = sampling_mask("equispaced-any-offset", 40, 3.0, 0.2, torch.Generator().manual_seed(3))
    path = write_scan("scan.h5", kspace=phantom(coils=4, shape=SHAPE) * mask, mask=mask)
    item = items(TrainingSet.from_folder(path.parent, PROTOCOL, path.parent / "cache", lambda _: None))[0]
    assert torch.equal(item.mask, mask)
    torch.testing.assert_close(1 / item.weights, sampling_probability("equispaced-any-offset", 40, 3.0, 0.2))


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MrgenError, match=r"no \.h5 scans in"):
        TrainingSet.from_folder(tmp_path, PROTOCOL, tmp_path / "cache")


def test_lines_that_are_never_sampled_are_refused_but_for_the_edge() -> None:
    probability = torch.full((40,), 0.5)
    probability[[0, 1, 38, 39]] = 0
    weights = gsure_weights(probability)
    torch.testing.assert_close(weights[2:38], torch.full((36,), 2.0))
    assert weights[[0, 1, 38, 39]].max() == 0
    probability[17] = 0
    with pytest.raises(MrgenError, match=r"1 of 40 phase-encode lines \(the first is 17\) are never sampled"):
        gsure_weights(probability)


def fake_set(seed: int = 0) -> TrainingSet:
    """Items of two matrix sizes and of 2 to 4 coils, in memory."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for number in range(11):
        coils, shape = 2 + number % 3, (8, 6) if number < 7 else (6, 6)
        maps = torch.randn(coils, *shape, dtype=torch.complex64, generator=g)
        maps = maps / maps.abs().square().sum(0).sqrt()
        mask = (torch.rand(6, generator=g) < 0.6).float()
        y = torch.randn(coils, *shape, dtype=torch.complex64, generator=g) * mask
        made.append(Item(y, mask, maps, torch.full((6,), 1 / 0.6), 0.1 + 0.01 * number))
    return TrainingSet(made, [i.shape for i in made], "fake")


def test_an_epoch_has_every_item_once_and_equal_sizes_per_batch() -> None:
    data = fake_set()
    seen = set()
    for number in range(10):
        epoch = data.epoch(number, batch=3, seed=1)
        assert sorted(itertools.chain(*epoch)) == list(range(11))
        assert all(len({data.shapes[i] for i in batch}) == 1 and 1 <= len(batch) <= 3 for batch in epoch)
        assert epoch == data.epoch(number, batch=3, seed=1)
        seen.add(str(epoch))
    assert len(seen) == 10
    assert data.epoch(0, batch=3, seed=1) != data.epoch(0, batch=3, seed=2)


@pytest.mark.parametrize("step", [1, 4, 5, 6, 13])
def test_batches_are_a_function_of_seed_and_step(step: int) -> None:
    data = fake_set()
    whole = list(itertools.islice(data.batches(0, 3, seed=1), 18))[step:]
    resumed = itertools.islice(data.batches(step, 3, seed=1), 18 - step)
    for one, two in zip(whole, resumed, strict=True):
        assert isinstance(one, MeasuredBatch)
        assert isinstance(two, MeasuredBatch)
        assert torch.equal(one.kspace, two.kspace)
        assert torch.equal(one.sigma0, two.sigma0)


def test_a_batch_holds_its_items() -> None:
    data = fake_set()
    batch = data.collate([4, 0, 2])
    assert isinstance(batch, MeasuredBatch)
    assert batch.kspace.shape == batch.maps.shape == (3, 4, 8, 6)
    assert batch.mask.shape == batch.weights.shape == (3, 1, 1, 6)
    assert batch.sigma0.tolist() == pytest.approx([0.14, 0.10, 0.12])
    for row, index in enumerate([4, 0, 2]):
        item = data.items[index]
        assert isinstance(item, Item)
        coils = len(item.maps)
        assert torch.equal(batch.kspace[row, :coils], item.kspace)
        assert batch.kspace[row, coils:].numel() == 0 or batch.kspace[row, coils:].abs().max() == 0
        assert torch.equal(batch.mask[row, 0, 0], item.mask)


def test_coil_padding_leaves_the_physics_alone() -> None:
    data = fake_set()
    padded = data.collate([0, 1, 2])  # 2, 3 and 4 coils
    x = torch.randn(3, 8, 6, dtype=torch.complex64)
    a = sense(padded.maps, padded.mask)
    for row in range(3):
        item = data.items[row]
        own = sense(item.maps, item.mask)
        torch.testing.assert_close(a.adjoint(padded.kspace)[row], own.adjoint(item.kspace))
        torch.testing.assert_close(a.normal(x)[row], own.normal(x[row]))
        misfit = (padded.mask * (a.forward(x) - padded.kspace)).abs().square()[row].sum()
        torch.testing.assert_close(misfit, (own.forward(x[row]) - item.kspace).abs().square().sum())


def risks(objective: Callable[..., Tensor], coils: int, padding: int, scans: int = 4000) -> tuple[float, float]:
    """Mean estimate, and its standard error, for pure noise seen by `coils` in a batch that has `padding` more."""
    g = torch.Generator().manual_seed(0)
    maps = torch.full((coils, 4, 4), coils**-0.5, dtype=torch.complex64)
    mask, weights = torch.ones(4), torch.ones(4)
    y = 0.5 * torch.randn(scans, coils, 4, 4, dtype=torch.complex64, generator=g)
    data = TrainingSet([Item(k, mask, maps, weights, 0.5) for k in y], [(4, 4)] * scans, "noise")
    batch = data.collate(list(range(scans)))
    assert isinstance(batch, MeasuredBatch)
    wider = replace(
        batch,
        kspace=torch.nn.functional.pad(batch.kspace, (0, 0, 0, 0, 0, padding)),
        maps=torch.nn.functional.pad(batch.maps, (0, 0, 0, 0, 0, padding)),
    )
    values = objective(lambda u, s: 0.3 * u, wider, torch.full((scans,), 0.8), g, Training(cg_iterations=3))
    return float(values.mean()), float(values.std() / scans**0.5)


@pytest.mark.parametrize("objective", [gsure_sense, gsure_fourier])
def test_coil_padding_leaves_the_estimated_risk_alone(objective: Callable[..., Tensor]) -> None:
    (plain, error), (padded, other_error) = risks(objective, 2, 0), risks(objective, 2, 2)
    assert padded == pytest.approx(plain, abs=4 * (error + other_error))
    assert 4 * (error + other_error) < 0.25 * 0.5**2  # so that a coil too many would be seen


def test_clean_images_make_clean_batches_only() -> None:
    images = [torch.randn(6, 5, dtype=torch.complex64) for _ in range(4)]
    data = TrainingSet.from_images(images, "clean")
    batch = next(data.batches(0, 2, seed=0))
    assert isinstance(batch, CleanBatch)
    with pytest.raises(AttributeError):
        gsure_sense(lambda u, s: u, batch, torch.ones(2), torch.Generator(), Training())  # type: ignore[arg-type]
    measured = fake_set().collate([0, 1])
    assert not hasattr(measured, "image")


def test_zero_filled_lines_do_not_change_the_acceleration_that_is_assumed() -> None:
    """A scan whose outer lines the scanner left out keeps fewer lines than R says; its weights are still R's."""
    sampling = Sampling(acceleration=(2.0, 3.0, 4.0), center_fraction=0.08)
    for r in sampling.acceleration:
        mask = sampling_mask(sampling.pattern, 368, r, 0.08, torch.Generator().manual_seed(0))
        mask[:34] = mask[-34:] = 0
        item = item_of(fake_slice(mask), sampling)
        torch.testing.assert_close(1 / item.weights, sampling_probability(sampling.pattern, 368, r, 0.08))


def fake_slice(mask: Tensor) -> Slice:
    """A slice of which only the mask matters."""
    empty = torch.zeros(2, 4, len(mask), dtype=torch.complex64)
    return Slice(empty, mask, empty, 0.1, 1.0, None)


def test_a_scan_far_from_the_protocols_acceleration_is_refused() -> None:
    mask = torch.zeros(64)
    mask[::8] = 1
    mask[28:36] = 1
    maps = torch.ones(1, 8, 64, dtype=torch.complex64)
    slice_ = Slice(torch.zeros_like(maps), mask, maps, 0.1, 1.0, None)
    with pytest.raises(MrgenError, match="no R of the protocol"):
        item_of(slice_, Sampling(acceleration=(2.0,), center_fraction=0.08))
