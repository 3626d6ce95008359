"""`mrgen evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.review.evaluate import evaluate_pair, find_pairs, open_pair, summarise
from mrgen.review.figure import NOTICE, label
from mrgen.review.folder import prepare_output_dir, replacing
from mrgen.review.output import finite

DEFINITIONS = (
    "psnr (dB), ssim, nmse: of the images as they are, as in fastmri.evaluate; psnr_fit, ssim_fit, nmse_fit: after the "
    "best scalar fit, of the whole volume or of each slice. data_range is the peak of PSNR and SSIM, for slices too. "
    "over_slices: mean and standard deviation (n - 1) of the slices' figures. spread: coverage of the body (reference "
    "above 10 % of its 99th percentile) by mean +- 1.645 std, Spearman's rank correlation of error and std there, and "
    "the area under the sparsification error (AUSE); posterior spread, not calibrated. interval_95: bootstrap over "
    "scans. null: not defined or infinite."
)
FIGURES = {"psnr": ".2f", "ssim": ".4f", "nmse": ".4f", "psnr_fit": ".2f", "ssim_fit": ".4f", "nmse_fit": ".4f"}
Record = dict[str, Any]


def _line(what: str, cells: list[str]) -> str:
    return f"{what:<20}" + "".join(f"{cell:>{15 if i % 3 == 0 else 17}}" for i, cell in enumerate(cells))


def _row(what: str, figures: Record) -> str:
    """One line of the table; a figure is a number, or the mean and std of several."""
    cells = []
    for name, form in FIGURES.items():
        value = figures[name]
        several = isinstance(value, dict)
        cells.append(f"{value['mean']:{form}} ± {value['std']:{form}}" if several else f"{value:{form}}")
    return _line(f"  {what}", cells)


def _describe(scan: Record) -> list[str]:
    """The protocol in words, what is unknown left out."""
    p = scan["protocol"]
    facts = ["slices {}:{}".format(*p["slices"])]
    if p["R"] is not None:
        facts.append("R = {:.2f} ({} of {} {})".format(p["R"], *p["sampled"], p["unit"]))
    facts += [
        f"{word} {p[key]}"
        for word, key in (("recipe", "recipe"), ("n =", "n_samples"), ("seed", "seed"))
        if p[key] is not None
    ]
    matrix = "{} x {}".format(*p["matrix"])
    if p["cropped"]:
        matrix += ", {} cropped around its centre from {} x {}".format(p["cropped"], *p[f"{p['cropped']}_matrix"])
    return [
        f"scan    {scan['scan']}: {', '.join(facts)}",
        f"against {p['reference']}; {matrix}; data range {p['data_range']:.4g}, {p['data_range_from']}",
    ]


def _spread(figures: Record) -> list[str]:
    """The posterior spread against the error, of one scan or the mean over scans."""
    of = {name: value["mean"] if isinstance(value, dict) else value for name, value in figures.items()}
    lines = [f"posterior spread, not calibrated, in the body ({of['body']:.0%} of the pixels):"]
    for fit, how in (("", ""), ("_fit", ", best scalar fit")):
        lines.append(
            f"  mean ± 1.645 std covers {of['coverage' + fit]:.1%} (Gaussian: 90%), "
            f"rank correlation with errors {of['rank_correlation' + fit]:.2f}, AUSE {of['ause' + fit]:.2f}{how}"
        )
    if "coverage_calibrated" in of:
        lines.append(f"  the interval, calibrated, covers {of['coverage_calibrated']:.1%}")
    return lines


def _table(scan: Record, per_slice: bool) -> list[str]:
    """Every image's figures: of the volume, over slices, and on request of each slice."""
    slices, lines = scan["slices"], [_line("", list(FIGURES))]
    for name, figures in scan["volume"].items():
        lines += [label(name, scan["protocol"]["n_samples"]), _row("volume", figures)]
        if len(slices) > 1:
            lines.append(_row("slices, mean ± std", scan["over_slices"][name]))
        if per_slice:
            lines += [_row(f"slice {row['slice']}", row[name]) for row in slices]
    if scan["empty_slices"]:
        lines.append(f"left out, as their reference is all zeros: slices {', '.join(map(str, scan['empty_slices']))}")
    if len(slices) > 1:
        by_slice = {row["slice"]: row["reconstruction"]["psnr"] for row in slices}
        worst = ", ".join(f"{i} ({by_slice[i]:.2f} dB)" for i in scan["worst_slices"])
        lines.append(f"lowest psnr of the reconstruction: slice {worst}")
    if scan["spread"]:
        lines += _spread(scan["spread"])
    return lines


def _over_scans(summary: Record) -> list[str]:
    """The figures of the volumes, averaged over scans."""
    lines = [f"all     {summary['scans']} scans, mean ± std over them of the figures of their volumes"]
    if summary["R"]:
        lines[0] += ", R = {:.2f} to {:.2f}".format(*summary["R"])
    if summary["differ_in"]:
        lines.append(f"        the scans differ in {', '.join(summary['differ_in'])}: this mean mixes protocols")
    lines.append(_line("", list(FIGURES)))
    for name, figures in summary["images"].items():
        lines += [label(name, None), _row(f"{figures['psnr']['scans']} scans", figures)]
        intervals = [(figures[figure]["interval_95"], form) for figure, form in FIGURES.items()]
        if any(ends for ends, _ in intervals):
            cells = [f"{ends[0]:{form}}..{ends[1]:{form}}" if ends else "-" for ends, form in intervals]
            lines.append(_line("  95 % interval", cells))
    if summary["spread"]:
        lines += _spread(summary["spread"])
    return lines


def evaluate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A result of mrgen recon (.h5), or a folder of them.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="A file of the same name, or a folder of them, fastMRI or mrgen; else the result's own."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every figure there.")] = None,
    per_slice: Annotated[bool, typer.Option("--per-slice", help="Print the figures of every slice.")] = False,
) -> None:
    """Compare results with fully sampled references: PSNR, SSIM and NMSE, per volume, slice and over scans."""
    pairs = find_pairs(out, reference)
    if json_file is not None:
        prepare_output_dir(json_file.parent)
    scans: list[Record] = []
    for result_file, reference_file in pairs:
        scans.append(evaluate_pair(open_pair(result_file, reference_file)))
        typer.echo("\n".join([*_describe(scans[-1]), *_table(scans[-1], per_slice), ""]))
    summary = summarise(scans)
    if len(scans) > 1:
        typer.echo("\n".join([*_over_scans(summary), ""]))
    known = len(list(reference.glob("*.h5"))) if reference is not None and reference.is_dir() else 0
    if known > len(scans):
        typer.echo(f"note    {len(scans)} of {known} scans of {reference} have a result: the others do not count")
    if json_file is not None:
        record = {"notice": NOTICE, "mrgen_version": __version__, "definitions": DEFINITIONS}
        try:
            with replacing([json_file]) as (partial,):
                text = json.dumps(finite({**record, "scans": scans, "summary": summary}), indent=2, allow_nan=False)
                partial.write_text(text + "\n")
        except OSError as error:
            raise MrgenError(f"--json {json_file}: cannot write it ({error.strerror}): choose another place") from None
        typer.echo(f"wrote   {json_file}")
    typer.echo(NOTICE)
