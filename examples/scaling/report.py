"""Figures from the records of the parts, and the tables made from them."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


def figures(record: Record) -> Record:
    """What the plan and the tables need, of the parts that were run."""
    found: Record = {}
    if "train" in record:
        first = record["train"][0]  # whose caches were empty
        found["startup_seconds"] = {count: run["startup_seconds"] for count, run in first["runs"].items()}
        found["slices_prepared_per_second"] = {
            count: run["slices"] / run["preparation_seconds"] for count, run in first["runs"].items()
        }
        found["cache_bytes_per_slice"] = first["cache_bytes_per_slice"]
        found["updates_per_second"] = {
            str(train["batch"]): {n: run["updates_per_second"] for n, run in train["runs"].items()}
            for train in record["train"]
        }
        found["training_ratio"] = {batch: ratio(of) for batch, of in found["updates_per_second"].items()}
        found["preparation_ratio"] = ratio(found["slices_prepared_per_second"])
    if "train" in record and "floor" in record:
        found["milliseconds_per_update"] = decomposition(record, found)
    if "recon" in record:
        of = {n: run["seconds_from_then_on"] for n, run in record["recon"]["runs"].items()}
        found["reconstruction_seconds"] = of
        found["reconstruction_ratio"] = ratio({n: 1 / seconds for n, seconds in of.items()})
        found["scans_per_second"] = {n: run["scans_per_second"] for n, run in record["recon"]["runs"].items()}
        found["steady_reconstruction_ratio"] = ratio(found["scans_per_second"])
    return found


def ratio(rates: dict[str, float | None]) -> float | None:
    """The speed on all GPUs over that on one."""
    one, many = rates.get("1"), rates[max(rates, key=int)] if rates else None
    return many / one if one and many and len(rates) > 1 else None


def decomposition(record: Record, found: Record) -> dict[str, float] | None:
    """An update on N GPUs: a 1 / N of one GPU's update, and what is added to it, in milliseconds."""
    runs, count = record["floor"]["runs"], record["machine"]["count"]
    rates = found["updates_per_second"][str(record["train"][0]["batch"])]
    alone, beside = ([run["updates_per_second"] for run in runs[which]] for which in ("alone", "beside"))
    if not all([*alone, *beside, *rates.values()]):
        return None
    one, many = 1e3 / rates["1"], 1e3 / rates[str(count)]
    share, slowest = 1e3 / alone[0], 1e3 / min(beside)
    return {
        "an Nth of one GPU's update": one / count,
        "small batches: an Nth of the batch takes more than an Nth of the time": share - one / count,
        "the host: N such trainings beside each other": slowest - share,
        "gradients, and waiting for each other": many - slowest,
        "in all": many,
    }


def _number(value: float | None, digits: int = 2) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def markdown(record: Record) -> str:
    """The tables."""
    found, machine = figures(record), record["machine"]
    n = str(machine["count"])
    rows: list[tuple[str, Any, Any, Any]] = []
    if "train" in record:
        of = found["slices_prepared_per_second"]
        rows.append(("prepared, slices/s", of.get("1"), of.get(n), found["preparation_ratio"]))
        for batch, rates in found["updates_per_second"].items():
            rows.append(
                (f"trained, updates/s of {batch}", rates.get("1"), rates.get(n), found["training_ratio"][batch])
            )
    if "recon" in record:
        of = found["scans_per_second"]
        jobs = record["recon"].get("jobs_per_gpu", 1)
        by = f" by {jobs} processes a GPU" if jobs > 1 else ""
        rows.append((f"reconstructed, scans/s{by}", of.get("1"), of.get(n), found["steady_reconstruction_ratio"]))
        times = found["reconstruction_seconds"]
        label = f"the same, s for {record['recon']['scans']} scans from the first on"
        rows.append((label, times.get("1"), times.get(n), found["reconstruction_ratio"]))
    if "train" in record:
        of = found["startup_seconds"]
        rows.append(("start of a command, s", of.get("1"), of.get(n), None))
    text = [f"{machine['name']}, torch {machine['torch']}, {machine['cores']} cores, {machine['threads']} threads each"]
    text += ["", f"| | 1 | {n} | ratio |", "|---|---|---|---|"]
    text += [f"| {name} | {_number(a)} | {_number(b)} | {_number(c) if c else ''} |" for name, a, b, c in rows]
    if parts := found.get("milliseconds_per_update"):
        text += ["", f"| an update on {n}, N = {n} | ms |", "|---|---|"]
        text += [f"| {name} | {value:.1f} |" for name, value in parts.items()]
    if "waits" in record:
        text += ["", "| GPU | ms an update | of which it waited for a batch | longest |", "|---|---|---|---|"]
        for count, ranks in record["waits"]["runs"].items():
            text += [f"| {i + 1} of {count} | {r['ms']:.1f} | {r['wait_ms']:.2f} | {r['longest_ms']:.1f} |"
                     for i, r in enumerate(ranks)]  # fmt: skip
    if "stages" in record:
        text += ["", "| preparing a slice, one process | ms |", "|---|---|"]
        text += [f"| {name} | {1e3 * value:.1f} |" for name, value in record["stages"]["seconds_per_slice"].items()]
    return "\n".join([*text, "", *_sentences(record), ""])


def _sentences(record: Record) -> list[str]:
    lines = []
    for train in record.get("train", []):
        if "agreement" in train:
            lines.append(f"- batch {train['batch']}: {_agreement(train['agreement'])}")
    if "kill" in record:
        kill = record["kill"]
        lines.append(
            f"- one process killed after update {kill['updates_reported']}: all ended "
            f"{_number(kill['seconds_until_all_ended'], 1)} s later, exit code {kill['exit_code']}; resumed at update "
            f"{', '.join(map(str, kill['resumed_at']))}"
        )
        if "agreement" in kill:
            lines[-1] += f"; against the run that was not killed: {_agreement(kill['agreement'])}"
    if "loading" in record:
        lines.append(f"- one process loads {record['loading']['bytes_per_second'] / 1e9:.1f} GB/s of files in memory")
    if "recon" in record and "agreement" in record["recon"]:
        of, turns = record["recon"]["agreement"], record["recon"].get("turns", {})
        if any(len(runs) > 1 for runs in turns.values()):
            took = [", ".join(f"{run['seconds_from_then_on']:.1f}" for run in runs) for runs in turns.values()]
            lines.append(f"- reconstruction: medians over turns that took {' and '.join(took)} s")
        lines.append(
            f"- {of['same_to_the_bit']} of {of['scans']} results are the same to the bit on 1 and on all GPUs; the "
            f"largest difference of any image is {of['largest_relative_difference']:.1e} of its maximum"
        )
    return lines


def _agreement(of: Record) -> str:
    return (
        f"the loss curves differ by {of['largest_relative_difference']:.1e} at most "
        f"({of['median_relative_difference']:.1e} in the median of {of['entries']} entries), the last weights by "
        f"{of['weights_relative_rms']:.1e} (rms, relative)"
    )
