"""Batches: determined by a step number, loaded ahead, and padded so that the physics does not change."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.physics.masks import sampling_mask, sampling_probability
from mrgen.physics.operators import sense
from mrgen.prior.cache import CachedScan, Entry, write_scan
from mrgen.prior.data import AHEAD, Item, StoredItem, TrainingSet, item_of
from mrgen.prior.objectives import OBJECTIVES, CleanBatch, MeasuredBatch, gsure
from mrgen.scans.scan import Slice
from mrgen.settings import Sampling, Training


def fake_items(coils: int, shape: tuple[int, int], count: int, seed: int = 0) -> list[Item]:
    g = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        maps = torch.randn(coils, *shape, dtype=torch.complex64, generator=g)
        maps = maps / maps.abs().square().sum(0).sqrt()
        mask = (torch.rand(shape[1], generator=g) < 0.6).float()
        y = torch.randn(coils, *shape, dtype=torch.complex64, generator=g) * mask
        made.append(Item(y, mask, maps, torch.full((shape[1],), 1 / 0.6), 0.1 + 0.01 * number))
    return made


def fake_set() -> TrainingSet:
    """Items of two matrix sizes and of 2 to 4 coils, in memory."""
    made = [
        replace(fake_items(2 + n % 3, (8, 6) if n < 7 else (6, 6), 1, seed=n)[0], sigma0=0.1 + 0.01 * n)
        for n in range(11)
    ]
    return TrainingSet(made, [i.shape for i in made], "fake")


def batches(data: TrainingSet, step: int, device: str = "cpu") -> Iterator[MeasuredBatch | CleanBatch]:
    """Whole batches of at most 3."""
    return (share.items for share in data.shares(step, 3, seed=1, device=device))


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
    whole = list(itertools.islice(batches(data, 0), 18))[step:]
    resumed = itertools.islice(batches(data, step), 18 - step)
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


def risks(training: Training, coils: int, padding: int, scans: int = 4000) -> tuple[float, float]:
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
    objective = OBJECTIVES[training.objective]
    values = objective(lambda u, s: 0.3 * u, wider, torch.full((scans,), 0.8), g, training)
    return float(values.mean()), float(values.std() / scans**0.5)


@pytest.mark.parametrize("basis", ["sense", "fourier"])
@pytest.mark.parametrize("objective", ["gsure", "ambient"])
def test_coil_padding_leaves_the_estimated_risk_alone(objective: str, basis: str) -> None:
    training = Training(objective=objective, basis=basis, cg_iterations=3, lambda_max=1)  # type: ignore[arg-type]
    (plain, error), (padded, other_error) = risks(training, 2, 0), risks(training, 2, 2)
    assert padded == pytest.approx(plain, abs=4 * (error + other_error))
    assert 4 * (error + other_error) < 0.25 * 0.5**2  # so that a coil too many would be seen


def test_clean_images_make_clean_batches_only() -> None:
    images = [torch.randn(6, 5, dtype=torch.complex64) for _ in range(4)]
    data = TrainingSet.from_images(images, "clean")
    batch = next(data.shares(0, 2, seed=0)).items
    assert isinstance(batch, CleanBatch)
    with pytest.raises(AttributeError):
        gsure(lambda u, s: u, batch, torch.ones(2), torch.Generator(), Training())  # type: ignore[arg-type]
    measured = fake_set().collate([0, 1])
    assert not hasattr(measured, "image")


def test_every_process_knows_the_floors_of_the_whole_batch() -> None:
    images = [torch.full((6, 5), float(n)) + 0j for n in range(7)]
    data = replace(TrainingSet.from_images(images, "clean"), floors=torch.arange(7.0))
    for step in range(4):
        one, two = (next(data.shares(step, 4, 0, "cpu", rank, 2)) for rank in range(2))
        assert torch.equal(one.floors, two.floors)
        for share in (one, two):
            if len(share.positions):
                shown = share.items.image[:, 0, 0].real  # type: ignore[union-attr]
                assert torch.equal(share.floors[torch.tensor(share.positions)], shown)


def test_an_item_has_the_weights_of_its_mask() -> None:
    mask = sampling_mask("random", 64, 4.0, 0.1, np.random.RandomState(0))
    maps = torch.ones(1, 8, 64, dtype=torch.complex64)
    item = item_of(Slice(maps * mask, mask, maps, 0.1, 1.0, None), Sampling(pattern="random", center_fraction=0.1), 4.0)
    torch.testing.assert_close(1 / item.weights, sampling_probability("random", 64, 4.0, 0.1))
    assert (item.sigma0, item.coils, item.shape) == (0.1, 1, (8, 64))


class Watched(Sequence[Item]):
    """The items of `fake_set`, slow by different times; counts how many were asked for, and may have a broken one."""

    def __init__(self, broken: int = -1) -> None:
        self.items, self.broken, self.asked = fake_set().items, broken, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]
        self.asked += 1
        if index == self.broken:
            raise MrgenError("broken")
        time.sleep(0.002 * (index % 3))
        return self.items[index]  # type: ignore[return-value]


def watched(broken: int = -1) -> tuple[Watched, TrainingSet]:
    items = Watched(broken)
    return items, TrainingSet(items, fake_set().shapes, "watched")


def loaders() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(("batches", "items"))]


def test_the_next_batches_are_loaded_while_one_is_used_and_no_more() -> None:
    before, (items, data) = loaders(), watched()
    sizes = [len(batch) for batch in data.epoch(0, 3, seed=1)]
    shares = data.shares(0, 3, seed=1)
    assert items.asked == 0
    next(shares)
    deadline = time.monotonic() + 20
    while items.asked < sum(sizes[: 1 + AHEAD]) and time.monotonic() < deadline:
        time.sleep(0.01)  # no other batch is asked for
    time.sleep(0.05)
    assert items.asked == sum(sizes[: 1 + AHEAD])
    shares.close()
    assert set(loaders()) <= set(before)  # of other tests, whose training was interrupted


def test_threads_do_not_change_the_order() -> None:
    plain = list(itertools.islice(batches(fake_set(), 3), 15))
    for one, two in zip(plain, batches(watched()[1], 3), strict=False):
        assert isinstance(one, MeasuredBatch)
        assert isinstance(two, MeasuredBatch)
        assert torch.equal(one.kspace, two.kspace)


def test_an_item_that_cannot_be_loaded_stops_its_batch_and_the_threads() -> None:
    before, order = loaders(), fake_set().epoch(0, 3, seed=1)
    _, data = watched(broken=order[2][0])
    shares = data.shares(0, 3, seed=1)
    assert [len(next(shares).floors) for _ in range(2)] == [len(b) for b in order[:2]]
    with pytest.raises(MrgenError, match="broken"):
        next(shares)
    assert set(loaders()) <= set(before)  # of other tests, whose training was interrupted


def test_stored_items_make_the_batches_of_items_in_memory(tmp_path: Path) -> None:
    sampling = Sampling(pattern="random", acceleration=(2.0,), center_fraction=0.2)
    made: list[Item] = []
    scans = []
    for coils in (2, 4):
        slices = [Slice(i.kspace, i.mask, i.maps, i.sigma0, 1.0, None) for i in fake_items(coils, (16, 20), 3)]
        write_scan(tmp_path / f"{coils}.h5", [Entry(n, 2.0, s) for n, s in enumerate(slices)], {"left_out": {}})
        scans.append(CachedScan.open(tmp_path / f"{coils}.h5"))
        made += [item_of(s, sampling, 2.0) for s in slices]
    stored = [StoredItem(scan, n, sampling) for scan in scans for n in range(3)]
    for indices in ([5, 0, 3], [1, 2]):
        one, two = (TrainingSet(i, [(16, 20)] * 6, "").collate(indices) for i in (made, stored))
        for field in fields(MeasuredBatch):
            assert torch.equal(getattr(one, field.name), getattr(two, field.name))


def stored_set(folder: Path) -> tuple[TrainingSet, TrainingSet, list[CachedScan]]:
    """Slices with 2 and with 4 coils, in files and in memory."""
    sampling = Sampling(pattern="random", acceleration=(2.0,), center_fraction=0.2)
    scans, made = [], []
    for coils in (2, 4):
        (item,) = fake_items(coils, (16, 20), 1)
        slice_ = Slice(item.kspace, item.mask, item.maps, 0.1, 1.0, None)
        write_scan(folder / f"{coils}.h5", [Entry(0, 2.0, slice_)], {"left_out": {}})
        scans.append(CachedScan.open(folder / f"{coils}.h5"))
        made.append(item_of(slice_, sampling, 2.0))
    stored = [StoredItem(scan, 0, sampling) for scan in scans]
    return TrainingSet(stored, [(16, 20)] * 2, ""), TrainingSet(made, [(16, 20)] * 2, ""), scans


def test_the_fourier_basis_learns_from_virtual_coils_and_reads_no_maps(tmp_path: Path) -> None:
    """Of files and of memory the same; a unit-norm combination of an item's own coils, whichever share asks for it."""
    stored, made, scans = stored_set(tmp_path)
    plain = made.collate([0, 1])
    for scan in scans:
        os.truncate(scan.file, scan.places["maps"][0].offset)
    one, two = (data.collate([0, 1], combine=torch.Generator().manual_seed(3)) for data in (stored, made))
    assert isinstance(plain, MeasuredBatch)
    assert isinstance(one, MeasuredBatch)
    assert isinstance(two, MeasuredBatch)
    assert one.kspace.shape == (2, 1, 16, 20)
    assert torch.equal(one.maps, torch.ones(2, 1, 1, 1) + 0j)
    torch.testing.assert_close(one.kspace, two.kspace)
    for n, coils in enumerate((2, 4)):
        rows = plain.kspace[n, :coils].flatten(1).mT
        weights = torch.linalg.lstsq(rows, one.kspace[n].flatten()[:, None]).solution
        torch.testing.assert_close(rows @ weights, one.kspace[n].flatten()[:, None], rtol=1e-4, atol=1e-5)
        assert float(weights.norm()) == pytest.approx(1, rel=1e-4)
        part = stored.collate([0, 1], range(n, n + 1), combine=torch.Generator().manual_seed(3))
        assert isinstance(part, MeasuredBatch)
        assert torch.equal(part.kspace[0], one.kspace[n])
    with pytest.raises(MrgenError, match="ends too early"):
        stored.collate([0, 1])


def test_virtual_coils_have_the_power_of_the_coils_on_average_and_change_with_the_step() -> None:
    made = fake_items(3, (8, 6), 4)
    data = TrainingSet(made, [i.shape for i in made], "")
    drawn = [share.items for share in itertools.islice(data.shares(0, 4, seed=1, combined=True), 400)]
    again = next(data.shares(7, 4, seed=1, combined=True)).items
    kspace = torch.stack([batch.kspace for batch in drawn if isinstance(batch, MeasuredBatch)])
    assert isinstance(again, MeasuredBatch)
    assert torch.equal(again.kspace, kspace[7])
    assert not torch.equal(again.kspace, kspace[8])
    power = torch.stack([i.kspace.abs().square().sum() for i in made]).mean() / 3
    assert float(kspace.abs().square().sum((-3, -2, -1)).mean()) == pytest.approx(float(power), rel=0.05)


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize(("processes", "parts"), [(1, 2), (2, 1), (2, 2), (5, 1)])
def test_shares_make_up_the_batch(processes: int, parts: int, combined: bool) -> None:
    data = fake_set()
    whole = [share.items for share in itertools.islice(data.shares(2, 3, 1, combined=combined), 8)]
    shares = [data.shares(2, 3, 1, "cpu", rank, processes, parts, combined) for rank in range(processes)]
    for batch in whole:
        assert isinstance(batch, MeasuredBatch)
        seen: list[int] = []
        for share in (next(own) for own in shares for _ in range(parts)):
            assert len(share.floors) == len(batch.kspace)
            assert isinstance(share.items, MeasuredBatch)
            assert len(share.items.kspace) == max(1, len(share.positions))  # one to spare where there is none left
            for row, position in enumerate(share.positions or [0]):
                for field in fields(MeasuredBatch):
                    assert torch.equal(getattr(share.items, field.name)[row], getattr(batch, field.name)[position])
            seen += share.positions
        assert sorted(seen) == list(range(len(batch.kspace)))


@pytest.mark.gpu
@pytest.mark.parametrize("combined", [False, True])
def test_a_gpu_gets_the_same_batches(combined: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")
    here_and_there = (fake_set().shares(0, 3, 1, device, combined=combined) for device in ("cpu", "cuda"))
    for one, two in itertools.islice(zip(*here_and_there, strict=False), 30):
        for field in fields(MeasuredBatch):
            here, there = getattr(one.items, field.name), getattr(two.items, field.name)
            assert there.device.type == ("cpu" if field.name == "sigma0" else "cuda")
            if combined:
                torch.testing.assert_close(here, there.cpu())
            else:
                assert torch.equal(here, there.cpu())
