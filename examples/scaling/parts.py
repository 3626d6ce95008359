"""What is measured: each part runs commands in the work folder and gives a record of them, ready for JSON."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
import torch
from benchmark_preparation import COILS, MATRIX, loading, write_raw

from mrgen.prior.cache import LARGE, CachedScan
from mrgen.prior.data import TrainingSet
from mrgen.prior.files import read_safetensors
from mrgen.settings import Protocol, load, settings_folder
from scaling.commands import Done, Machine

Record = dict[str, Any]
GPU_WAITS = Path(__file__).parent / "waits.py"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    scans: int = 64
    slices: int = 2
    batches: tuple[int, ...] = (32,)
    steps: int = 150  # of a training with the first of the batches; fewer with larger ones
    acceleration: float = 8
    coils: int = COILS
    matrix: tuple[int, int] = MATRIX
    recipe: str = "posterior"
    jobs_per_gpu: int = 1  # processes of a reconstruction
    turns: int = 1  # of reconstructions
    network: str = "head"  # the protocol that is trained
    protocol: dict[str, str] = field(default_factory=lambda: {"warmup": "20"})  # what differs from it


@dataclass(frozen=True)
class Bench:
    """The machine, the sizes and the folder of everything."""

    machine: Machine
    size: Size
    work: Path

    @property
    def counts(self) -> list[int]:
        """Numbers of GPUs to compare."""
        return sorted({1, self.machine.count})

    @property
    def files(self) -> list[Path]:
        return [self.work / "scans" / f"{number:03d}.h5" for number in range(self.size.scans)]

    def data(self) -> Record:
        """Fully sampled raw scans, each of another object and noise."""
        size, begun, threads = self.size, time.perf_counter(), torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            write = partial(write_raw, slices=size.slices, coils=size.coils, matrix=size.matrix)
            list(pool.map(lambda item: write(item[1], seed=item[0]), enumerate(self.files)))
        torch.set_num_threads(threads)
        return {
            "scans": size.scans,
            "slices": size.scans * size.slices,
            "bytes": sum(file.stat().st_size for file in self.files),
            "seconds": time.perf_counter() - begun,
        }

    def protocol(self, batch: int) -> Path:
        """The protocol with another batch, as a file."""
        text = (settings_folder(Protocol) / f"{self.size.network}.toml").read_text()
        for key, value in {"batch": str(batch), **self.size.protocol}.items():
            text, count = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
            if not count:
                text = text.replace("[training]\n", f"[training]\n{key} = {value}\n")
        path = self.work / f"protocol-{batch}.toml"
        path.write_text(text)
        return path

    def steps(self, batch: int) -> int:
        return max(1, self.size.steps * self.size.batches[0] // batch)

    def training(self, name: str, batch: int, cache: str, steps: int) -> list[object]:
        """The command that trains `name`."""
        return ["train-prior", self.work / "scans", "--protocol", self.protocol(batch), "--steps", steps,
                "--cache", self.work / cache, "-o", self.work / name / "prior.safetensors"]  # fmt: skip

    def train(self, batch: int) -> Record:
        """The same training on 1 and on all GPUs, each with a cache of its own, which the first batch size fills."""
        record: Record = {"batch": batch, "steps": self.steps(batch), "runs": {}}
        for count in self.counts:
            name, cache = f"train-{batch}-{count}", f"cache-{count}"
            self._clear(name, *([cache] if batch == self.size.batches[0] else []))
            command = self.training(name, batch, cache, self.steps(batch))
            done = self.machine.start(*command, gpus=range(count)).succeed()
            record["runs"][str(count)] = said(name, training_record(done))
        if len(self.counts) > 1:
            one, many = (self.work / f"train-{batch}-{count}" for count in self.counts)
            record["agreement"] = agreement(one, many)
        files = sorted((self.work / "cache-1").glob("*.h5"))
        slices = self.size.scans * self.size.slices
        record["cache_bytes_per_slice"] = sum(f.stat().st_size for f in files) / slices
        places = [CachedScan.open(f).places for f in files]
        basis = load(Protocol, str(self.protocol(batch))).training.basis
        parts = LARGE if basis == "sense" else LARGE[:1]  # the Fourier basis learns without maps
        record["read_bytes_per_slice"] = sum(p.nbytes for of in places for part in parts for p in of[part]) / slices
        return record

    def floor(self) -> Record:
        """One GPU's share of the batch as a training of its own: on one GPU alone, and on all at once, without a word
        between them."""
        batch, count = self.size.batches[0], self.machine.count
        share, steps = batch // count, self.steps(batch)
        runs: dict[str, list[Record]] = {}
        for which, gpus in (("alone", [0]), ("beside", list(range(count)))):
            self._clear(*(f"{which}-{gpu}" for gpu in gpus))
            started = [
                self.machine.start(*self.training(f"{which}-{gpu}", share, "cache-1", steps), gpus=range(gpu, gpu + 1))
                for gpu in gpus
            ]
            with ThreadPoolExecutor(len(started)) as pool:
                done = list(pool.map(lambda command: command.succeed(), started))
            runs[which] = [said(which, training_record(each)) for each in done]
        return {"batch": share, "runs": runs}

    def kill(self) -> Record:
        """SIGKILL to the last process in the middle of the training on all GPUs, and the same command once more."""
        batch, count = self.size.batches[0], self.machine.count
        name, whole = f"kill-{batch}-{count}", f"train-{batch}-{count}"
        self._clear(name)
        arguments = self.training(name, batch, f"cache-{count}", self.steps(batch))
        command, killed = self.machine.start(*arguments, gpus=range(count)), list[float]()

        def kill(line: str) -> None:
            found = re.match(r"step (\d+)/(\d+) ", line)
            if found and 2 * int(found[1]) >= int(found[2]) and not killed:  # the first report left a checkpoint
                command.kill(count - 1)
                killed.append(time.perf_counter() - command.begun)

        done = command.follow(kill)
        reported = [step for _, step in reports(done)]
        record: Record = {
            "exit_code": done.code,
            "seconds_until_all_ended": done.seconds - killed[0] if killed else None,
            "root_cause": [m[0] for _, m in done.when(r"Signal \d+ \(\w+\)")][-1:],  # as torchrun tells it
            "the_others_say": [text for _, text in done.lines if "lost the others" in text],
            "updates_reported": reported[-1] if reported else 0,
        }
        resumed = self.machine.start(*arguments, gpus=range(count)).succeed()
        record["resumed_at"] = [int(m[1]) for _, m in resumed.when(r"^resuming \S+ at step (\d+)")]
        record["run"] = training_record(resumed)
        if (self.work / whole / "prior.safetensors").exists():
            record["agreement"] = agreement(self.work / whole, self.work / name)
        return record

    def loading(self) -> Record:
        """How fast one process loads batches from files in memory onto a GPU, while nothing else is done."""
        device, protocol = self.machine.device, load(Protocol, str(self.protocol(self.size.batches[0])))
        scans, cache = self.work / "scans", self.work / "cache-1"
        data = TrainingSet.from_folder(scans, protocol, cache, lambda _: None, device)
        return {"bytes_per_second": loading(replace(data, fingerprint="from memory"), device)}

    def waits(self) -> Record:
        """For how long each GPU stands still before it has a batch, on 1 GPU and on all."""
        batch, runs = self.size.batches[0], {}
        for count in self.counts:
            arguments = [self.work / "scans", self.protocol(batch), self.work / f"cache-{count}", self.steps(batch)]
            done = self.machine.start_script(GPU_WAITS, *arguments, gpus=range(count)).succeed()
            pattern = r"^rank (\d+): ([\d.]+) ms an update, waited ([\d.]+) ms, at most ([\d.]+)"
            runs[str(count)] = [
                dict(zip(("ms", "wait_ms", "longest_ms"), map(float, m.groups()[1:]), strict=True))
                for _, m in sorted(done.when(pattern), key=lambda found: found[1][1])
            ]
        return {"batch": batch, "runs": runs}

    def recon(self) -> Record:
        """One slice of every scan on 1 and on all GPUs, in turns; `runs` has the medians over them."""
        size = self.size
        record: Record = {"scans": size.scans, "recipe": size.recipe, "jobs_per_gpu": size.jobs_per_gpu}
        turns: dict[str, list[Record]] = {str(count): [] for count in self.counts}
        for turn in range(size.turns):
            for count in self.counts if turn % 2 == 0 else reversed(self.counts):
                self._clear(f"recon-{count}")
                options = ["--R", size.acceleration, "--recipe", size.recipe, "--slices", "0:1"]
                command = ["recon", *self.files, *options, "--formats", "hdf5", "-o", self.work / f"recon-{count}"]
                done = self.machine.start(*command, gpus=range(count), each=size.jobs_per_gpu).succeed()
                turns[str(count)].append(said(f"recon-{count}", reconstruction_record(done)))
        record |= {"turns": turns, "runs": {count: medians(runs) for count, runs in turns.items()}}
        if len(self.counts) > 1:
            pairs = [[self.work / f"recon-{n}" / f.stem / f"{f.stem}.h5" for n in self.counts] for f in self.files]
            record["agreement"] = same_arrays(pairs)
        return record

    def _clear(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.work / name, ignore_errors=True)


def said(name: str, record: Record) -> Record:
    """The record, which is also printed, so that it is not lost with a part that is broken off."""
    print(f"{name}: {json.dumps(record)}", flush=True)
    return record


def reports(done: Done, begin: float = 0.0) -> list[tuple[float, int]]:
    """When a training reported which update from that share of them on, but for the last, after which it writes."""
    found = ((when, int(m[1]), int(m[2])) for when, m in done.when(r"^step (\d+)/(\d+) "))
    return [(when, step) for when, step, steps in found if begin * steps <= step < steps]


def training_record(done: Done) -> Record:
    """Of `mrgen train-prior`: its speed is that of its last two thirds, when a GPU has recorded what it does."""
    (prepared, found), *_ = done.when(r"^prepared \d+ scans: (\d+) slices, \d+ of them new, in ([\d.]+) s")
    said = reports(done, 1 / 3)
    window = [said[-1][0] - said[0][0], said[-1][1] - said[0][1]] if len(said) > 1 else None
    return {
        "seconds": done.seconds,
        "startup_seconds": prepared - float(found[2]),
        "preparation_seconds": float(found[2]),  # next to nothing where the cache was full
        "slices": int(found[1]),
        "window": window,  # seconds and updates
        "updates_per_second": window[1] / window[0] if window else None,
    }


def reconstruction_record(done: Done) -> Record:
    """Of `mrgen recon`: `each` is of the scans after the first of each process."""
    ended: dict[str, list[float]] = {}
    for when, found in done.when(r"^(?:\[(\d+)\] )?wrote   .*report\.json$"):
        ended.setdefault(found[1] or "0", []).append(when)
    first = done.when(r"^(?:\[\d+\] )?scan    ")[0][0]
    steady = [(len(times) - 1) / (times[-1] - times[0]) for times in ended.values() if len(times) > 1]
    return {
        "seconds": done.seconds,
        "first_scan_at": first,
        "seconds_from_then_on": max(times[-1] for times in ended.values()) - first,
        "scans_per_second": sum(steady) if steady else None,
        "scans": sum(map(len, ended.values())),
    }


def medians(records: list[Record]) -> Record:
    """Of each figure over the records; None where it is missing in one."""
    found = {key: [record[key] for record in records] for key in records[0]}
    return {key: None if None in values else median(values) for key, values in found.items()}


def table(folder: Path) -> list[list[str]]:
    with (folder / "prior.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def agreement(one: Path, two: Path) -> Record:
    """How far two trainings are apart in their loss curves, entry by entry, and in their last weights."""
    pairs = [
        (float(a), float(b))
        for row_a, row_b in zip(table(one), table(two), strict=True)
        for a, b in zip(row_a[2:], row_b[2:], strict=True)
        if a or b
    ]
    differences = np.array([abs(a - b) / max(abs(a), abs(b)) for a, b in pairs])
    (first, _), (second, _) = (read_safetensors(folder / "prior.checkpoint.safetensors") for folder in (one, two))
    a, b = (torch.cat([t.double().flatten() for k, t in sorted(x.items()) if "weight/" in k]) for x in (first, second))
    return {
        "largest_relative_difference": float(differences.max()),
        "median_relative_difference": float(np.median(differences)),
        "entries": len(pairs),
        "weights_relative_rms": float((a - b).norm() / a.norm()),
        "weights_largest_difference": float((a - b).abs().max()),
        "weights_rms": float(a.square().mean().sqrt()),
    }


def same_arrays(pairs: Sequence[Sequence[Path]]) -> Record:
    """Of results in pairs of files: how many are the same to the bit, and the largest difference of any array."""
    same, largest = 0, 0.0
    for one, two in pairs:
        with h5py.File(one) as first, h5py.File(two) as second:
            names = [name for name in first if first[name].dtype.kind == "f"]
            arrays = [(first[name][()], second[name][()]) for name in names]
        same += all(np.array_equal(a, b) for a, b in arrays)
        largest = max([largest, *(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in arrays)])
    return {"scans": len(pairs), "same_to_the_bit": same, "largest_relative_difference": largest}
