"""A plan for a training on many slices and GPUs, from what benchmark_scaling.py measured on a few.

    python examples/plan_training.py scaling.json --slices 70000 --gpus 8 --nodes 1 2 4

Measured on N GPUs of one machine: slices prepared per second, bytes a slice in raw files, in the cache, and of these
read for a batch, the time t_b of an update with a share of b slices a GPU while all GPUs of the machine train without a
word between them, and what the exchange of gradients adds to it, x. Extrapolated to G GPUs: every GPU keeps its share
b, so that the batch is b G; a ring all-reduce takes 2 (G - 1) / G times the gradients through every GPU's link, so that
an update takes

    t = t_b + x [(G - 1) / G] / [(N - 1) / N]

where links between machines are as fast as within one; --network says how fast they are instead, in GB/s for each
machine, and then the exchange takes at least as long as the gradients take through that. Not in it: a file system that
is slower than the memory which files were read from, and CPUs that have fewer cores a GPU. Research use only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrgen.prior.denoiser import Denoiser
from mrgen.settings import Protocol, load

BYTES = 8  # of a complex64 number; gradients are float32


def cache_bytes(coils: int, matrix: tuple[int, int], sampled: float, support: float = 1.0) -> float:
    """Of a slice in the cache (mrgen.prior.cache): the `sampled` share of k-space, maps where there are any (`support`,
    a share of the pixels), and one byte a pixel to say where that is.
    """
    pixels = matrix[0] * matrix[1]
    return BYTES * coils * pixels * (sampled + support) + pixels


@dataclass(frozen=True)
class Measured:
    """What the plan rests on, of a record of benchmark_scaling.py."""

    gpus: int
    batch: int  # of all GPUs
    prepared: float  # slices/s of all GPUs
    raw: float  # bytes a slice
    cached: float  # bytes a slice
    read: float  # bytes a slice of them, by a training
    share_seconds: float  # t_b
    exchange_seconds: float  # x
    loading: float | None  # bytes/s, one process
    looking: float  # seconds a slice to find it in the cache at the start
    weights: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> Measured:
        """Raises ValueError for a record without the parts that are needed."""
        missing = [part for part in ("data", "train", "floor") if part not in record]
        parts = record.get("figures", {}).get("milliseconds_per_update")
        if missing or parts is None:
            raise ValueError(f"the record has no {', '.join(missing) or 'speeds'}: run benchmark_scaling.py for them")
        figures, train, count = record["figures"], record["train"][0], record["machine"]["count"]
        network = load(Protocol, record["size"].get("network", "head")).network
        found = record["floor"]["runs"]["alone"][0]  # its cache was full
        exchange = max(0.0, parts["gradients, and waiting for each other"]) / 1e3
        return cls(
            gpus=count,
            batch=train["batch"],
            prepared=figures["slices_prepared_per_second"][str(count)],
            raw=record["data"]["bytes"] / record["data"]["slices"],
            cached=train["cache_bytes_per_slice"],
            read=train.get("read_bytes_per_slice", train["cache_bytes_per_slice"]),  # all, in earlier records
            share_seconds=parts["in all"] / 1e3 - exchange,
            exchange_seconds=exchange,
            loading=record["loading"]["bytes_per_second"] if "loading" in record else None,
            looking=found["preparation_seconds"] / found["slices"],
            weights=sum(weight.numel() for weight in Denoiser(network, 1.0).parameters()),
        )


@dataclass(frozen=True)
class Plan:
    """A training on `nodes` machines of `gpus` GPUs each."""

    measured: Measured
    slices: int
    seen: int  # slices that the training looks at in all, again and again
    gpus: int
    nodes: int
    network: float | None  # bytes/s of each machine's link

    @property
    def all_gpus(self) -> int:
        return self.gpus * self.nodes

    @property
    def batch(self) -> int:
        return self.measured.batch // self.measured.gpus * self.all_gpus

    @property
    def exchanged(self) -> float:
        """Bytes through every link in an update: of a GPU, and of a machine."""
        return 4 * self.measured.weights * 2 * (self.all_gpus - 1) / self.all_gpus

    @property
    def update_seconds(self) -> float:
        m, count = self.measured, self.all_gpus
        exchange = m.exchange_seconds * (1 - 1 / count) / (1 - 1 / m.gpus) if m.gpus > 1 else m.exchange_seconds
        if self.network is not None and self.nodes > 1:
            exchange = max(exchange, self.exchanged / self.network)
        return m.share_seconds + exchange

    def rows(self) -> list[tuple[str, str]]:
        m = self.measured
        preparation = self.slices / (m.prepared / m.gpus * self.all_gpus)
        reading = self.slices * m.raw / preparation / self.nodes
        needed = self.batch * m.read / self.update_seconds / self.nodes
        return [
            ("global batch", f"{self.batch}"),
            ("preparation, once", _span(preparation)),
            ("raw data read for it, each machine", f"{reading / 1e9:.2f} GB/s"),
            ("raw files", f"{self.slices * m.raw / 1e12:.2f} TB"),
            ("cache", f"{self.slices * m.cached / 1e12:.2f} TB"),
            ("looking through the cache, at every start", _span(self.slices * m.looking)),
            ("updates", f"{self.seen / self.batch:.0f}"),
            ("passes over the slices", f"{self.seen / self.slices:.1f}"),
            ("an update", f"{1e3 * self.update_seconds:.0f} ms"),
            ("training", _span(self.seen / self.batch * self.update_seconds)),
            ("its speed, of that without exchange", f"{m.share_seconds / self.update_seconds:.0%}"),
            ("loading needed, each machine", f"{needed / 1e9:.1f} GB/s"),
            (
                "loading measured, one process a GPU, files in memory",
                "not measured" if m.loading is None else f"{m.loading * self.gpus / 1e9:.1f} GB/s",
            ),
            ("gradients through each link", f"{self.exchanged / 1e6:.0f} MB an update"),
        ]


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="the .json of benchmark_scaling.py")
    parser.add_argument("--slices", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=8, help="of each machine")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1], help="machines; a column for each number")
    parser.add_argument("--network", type=float, help="GB/s between machines, each")
    parser.add_argument("--protocol", default="brain-t2", help="whose steps times batch is what is looked at in all")
    parser.add_argument("--seen", type=int, help="slices looked at in all, instead")
    args = parser.parse_args(arguments)
    training = load(Protocol, args.protocol).training
    seen = args.seen or training.steps * training.batch
    try:
        measured = Measured.of(json.loads(args.record.read_text()))
    except ValueError as error:
        parser.error(str(error))
    network = None if args.network is None else 1e9 * args.network
    plans = [Plan(measured, args.slices, seen, args.gpus, nodes, network) for nodes in args.nodes]
    columns = [dict(plan.rows()) for plan in plans]
    print(f"{args.slices} slices, {seen} looked at in all; measured on {measured.gpus} GPUs\n")
    print(f"| | {' | '.join(f'{plan.nodes} x {plan.gpus} GPUs' for plan in plans)} |")
    print("|---" * (1 + len(plans)) + "|")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
