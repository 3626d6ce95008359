"""`mrgen inspect`."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.review.figure import NOTICE
from mrgen.review.folder import prepare_output_dir, replacing
from mrgen.review.inspection import save_inspection
from mrgen.scans.doctor import Findings, examine, find_scans
from mrgen.scans.recognise import acceleration_text

_WIDTH = 110  # characters of a line
DEFINITIONS = (
    "sigma0: std of the total complex noise, E|n|^2 = sigma0^2, where the image is near 1. snr: median over the object "
    "of the whitened, coil-combined image of the fully sampled centre of k-space, over the noise std of a fully "
    "sampled image. maps_explain: share of the energy of the coil images, less noise, that one set of maps explains; "
    "two_signals_area: share of the object's pixels where a second set of maps has support. acceleration: lines "
    "(points) that the scanner did not zero-fill over those measured; acceleration_all: the same of all lines."
)


def _entry(name: str, text: str) -> str:
    kept = text.replace(" = ", "\xa0=\xa0")  # not to be broken: "R = 4.00"
    filled = textwrap.fill(
        kept, _WIDTH, initial_indent=f"{name:<10} ", subsequent_indent=" " * 11, break_on_hyphens=False
    )
    return filled.replace("\xa0", " ")


def _count(n: int | None, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _sampling(f: Findings) -> str:
    s = f.sampling
    assert s is not None
    acs = f"centre {s.acs[1]} lines" if s.kind != "points" else f"centre {s.acs[0]} x {s.acs[1]} points"
    facts = [s.kind, s.pattern] if s.kind == "fully sampled" else [s.kind, s.pattern, acs]
    facts.append(acceleration_text(s.acceleration, s.acceleration_all))
    if s.acceleration_outside is not None:
        facts[-1] += f", {s.acceleration_outside:.2f} outside the centre"
    if s.padding != (0, 0):
        facts.append("empty lines: {} left, {} right".format(*s.padding))
    if s.partial_fourier:
        facts.append(f"partial Fourier: {s.partial_fourier}")
    return "; ".join(facts)


def _entries(f: Findings) -> list[tuple[str, str]]:
    """What is known, as (name, text)."""
    entries = [("scan", f.file)]
    if f.matrix is not None and f.sampling is not None:
        cropped = f", readout cropped from {f.readout}" if f.readout else ""
        size = f"{f.matrix[0]} x {f.matrix[1]} (readout x phase{cropped})"
        entries += [
            ("format", f"{f.format}; slice {f.examined_slice} examined"),
            ("matrix", f"{size}, {_count(f.coils, 'coil')}, {_count(f.slices, 'slice')}"),
        ]
        pixels = "pixels {:.3g} x {:.3g} mm".format(*f.spacing) if f.spacing else "pixel size not told by the file"
        thick = f", slices {f.thickness:.3g} mm" if f.thickness else ""
        entries += [
            ("geometry", f"{pixels}{thick}; {f.orientation or 'orientation not told by the file'}"),
            ("sampling", _sampling(f)),
        ]
    if f.noise is not None:
        n = f.noise
        level = f"sigma0 = {n.sigma0:.3g}, " if n.sigma0 is not None else ""
        entries.append(("noise", f"{level}from the {n.source}"))
        condition = "singular" if n.condition is None else f"condition {n.condition:.3g}"
        entries.append(
            (
                "coils",
                f"noise {min(n.coil_std):.2f} to {max(n.coil_std):.2f} times the median coil's, correlated up to "
                f"{n.correlation:.2f}, {condition}",
            )
        )
    if f.snr is not None:
        entries.append(("SNR", f"{f.snr:.3g} (median of the object over the noise std of a fully sampled image)"))
    if f.maps_explain is not None:
        entries.append(("maps", f"one set explains {f.maps_explain:.2%} of the object's energy"))
    if f.plan is not None and f.command is not None:
        entries += [("mrgen will", f"{f.plan}"), ("command", f.command)]
    entries += [("note", text) for text in f.remarks]
    entries += [("WARNING", text) for text in f.warnings]
    entries += [("CANNOT USE", text) for text in f.reasons]
    return entries


def report(findings: Findings) -> str:
    """One screen of text."""
    return "\n".join(_entry(name, text) for name, text in _entries(findings))


def _write(path: Path, findings: Findings) -> None:
    assert findings.evidence is not None
    title = f"{findings.file}, slice {findings.examined_slice}, {findings.format}"
    try:
        with replacing([path]) as (partial,):
            save_inspection(partial, findings.evidence, title)
    except OSError as error:
        raise MrgenError(
            f"could not write {path.name} ({error.strerror}): free space or choose another place"
        ) from None


def _json(scans: list[dict[str, Any]]) -> str:
    record = {"notice": NOTICE, "mrgen_version": __version__, "definitions": DEFINITIONS}
    usable = sum(scan["usable"] for scan in scans)
    return json.dumps({**record, "scans": scans, "usable": usable}, indent=2, allow_nan=False) + "\n"


def inspect(
    scans: Annotated[list[Path], typer.Argument(metavar="SCAN...", help="Raw data, or folders of it.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for a picture of each scan, <stem>.inspect.png.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the findings there; - for stdout alone.")
    ] = None,
    all_slices: Annotated[bool, typer.Option("--all-slices", help="See whether every slice can be read.")] = False,
) -> None:
    """Examine raw data: sampling, noise, coils, SNR, what mrgen will do with it and every reason not to.

    Exit code 1 where a scan cannot be used.
    """
    files = [file for path in scans for file in find_scans(path)]
    quiet = str(json_file) == "-"
    if out is not None:
        prepare_output_dir(out)
    if json_file is not None and not quiet:
        prepare_output_dir(json_file.parent)

    def say(text: str) -> None:
        if not quiet:
            typer.echo(text)

    for path in scans:
        if path.is_dir():
            say(f"{path.name}: {len(find_scans(path))} files that may be scans")
    records = []
    for file in files:
        findings = examine(file, all_slices=all_slices)
        records.append(findings.record())
        say(report(findings))
        if out is not None and findings.evidence is not None:
            picture = out / f"{file.stem}.inspect.png"
            _write(picture, findings)
            say(_entry("picture", picture.name))
        say("")
    usable = sum(record["usable"] for record in records)
    if out is None:
        say("For pictures of the coils, maps and sampling, name a folder with -o.")
    if quiet:
        typer.echo(_json(records), nl=False)
    elif json_file is not None:
        try:
            with replacing([json_file]) as (partial,):
                partial.write_text(_json(records))
        except OSError as error:
            raise MrgenError(f"--json {json_file}: cannot write it ({error.strerror}): choose another place") from None
        say(f"wrote {json_file.name}")
    say(f"{usable} of {len(records)} scans can be used. {NOTICE}")
    if usable < len(records):
        raise typer.Exit(1)
