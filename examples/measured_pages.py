"""The pages of examples/measured_scans.py, from the JSON of what is finished: an index, and a page for each scan.

What was not run stands there as that, and what depends on it is open.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mrgen.review.figure import NOTICE, save_figure

Cell = dict[str, Any]
Key = tuple[str, float | None, str]  # scan, R (None: as measured), recipe
Cells = dict[Key, Cell]

MAIN, RIVAL, AT, GAIN = "posterior", "l1-wavelet", 8, 2.0  # the target: so many dB above the rival at this R
CHOSEN_ON = {  # scans on which settings were chosen, and which
    "brain_vfa_fa05_13ch_224x224": "Settings were chosen on this scan: it is examples/data/brain.h5, whose name gives "
    "it another mask.",
    "brain_wrapped_8ch_320x168": "`sigma_max_sets` was chosen on this scan, at R = 8 and 10.",
}
LICENCES = {  # of scans whose pictures may be published
    "brain_vfa_fa01_13ch_224x224": "Apache-2.0",
    "brain_vfa_fa05_13ch_224x224": "Apache-2.0",
    "brain_poisson2d_R8_8ch_230x180": "BSD-3-Clause",
}
NOT_RUN = "not run"
COLOURS = 128  # of a picture, which makes it a third of the size
COLUMNS = """PSNR (dB), SSIM and NMSE are of magnitudes after the best scalar fit to the coil combination of the fully
sampled scan, noise included. lambda marked * is tuned on this very scan's reference: an upper bound. Coverage is the
share of the body within 1.645 std of the mean: 84 % of 8 exact samples of a Gaussian posterior. rank is Spearman's
correlation of error and std, AUSE the area under the sparsification error (0 is best), both in the body. The residual
is that of the samples, 1 if the model is right. Seconds include tuning."""

WITHOUT = """Undersampled when measured: there is no reference, so no figure of quality and no lambda tuned by one; the
recipe's own rule chooses it. A residual of 1 says that the model explains the data, error over spread of 1 that the
spread is right; the measured share is that part of the mean's power which the data tell (mrgen/posterior/check.py)."""


def read_cells(work: Path, seed: int) -> Cells:
    """What is finished of this seed."""
    cells: Cells = {}
    for path in sorted(work.glob(f"*/*/*-seed{seed}.json")):
        cell = json.loads(path.read_text())
        recipe = path.stem.removesuffix(f"-seed{seed}")
        identity = cell["identity"]
        cells[Path(identity["scan"]).stem, identity["R"], recipe] = cell | {"images": path.with_suffix(".npz")}
    return cells


def gains(cells: Cells, scans: Iterable[str], acceleration: float, rival: str) -> list[float | None]:
    """PSNR of the default recipe less the rival's on each scan, dB; None where one of the two was not run."""
    found: list[float | None] = []
    for scan in scans:
        ours, theirs = (cells.get((scan, acceleration, recipe)) for recipe in (MAIN, rival))
        found.append(ours["psnr"] - theirs["psnr"] if ours and theirs else None)
    return found


def judge(values: Sequence[float | None], holds: Callable[[list[float]], bool], early: bool = False) -> str:
    """Met or missed, open where values are missing; with `early` missed as soon as those that are there fail."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "missed" if early and known and not holds(known) else "open"
    return "met" if holds(known) else "missed"


def _found(values: Sequence[float | None]) -> str:
    """The mean of what there is, and each."""
    known = [value for value in values if value is not None]
    if not known:
        return NOT_RUN
    each = ", ".join(NOT_RUN if value is None else f"{value:+.2f}" for value in values)
    return f"mean{'' if len(known) == len(values) else f' of {len(known)}'} {np.mean(known):+.2f} ({each})"


def verdicts(cells: Cells, scans: Sequence[str], accelerations: Sequence[float], recipes: Sequence[str]) -> str:
    """The targets as a Markdown table. `scans` are those with a reference."""
    unseen = [scan for scan in scans if scan not in CHOSEN_ON]
    lines = ["| target | found, dB | verdict |", "|---|---|---|"]

    def average(of: Sequence[str], rival: str, least: float, target: str) -> None:
        found = gains(cells, of, AT, rival)
        verdict = judge(found, lambda known: float(np.mean(known)) >= least)
        lines.append(f"| {target} | {_found(found)} | {verdict} |")

    wanted = f"R = {AT}: {MAIN} at least {GAIN:g} dB above the tuned {RIVAL} on average over"
    average(scans, RIVAL, GAIN, f"{wanted} {len(scans)} scans")
    for rival in (recipe for recipe in recipes if recipe not in (MAIN, RIVAL)):
        average(scans, rival, 0, f"and above {rival} on average")
    average(unseen, RIVAL, GAIN, f"{wanted} the {len(unseen)} that no setting was chosen on")
    found = [gain for acceleration in accelerations for gain in gains(cells, scans, acceleration, RIVAL)]
    known = [gain for gain in found if gain is not None]
    worst = f"least {min(known):+.2f} of {len(known)}, {sum(g < 0 for g in known)} below 0" if known else NOT_RUN
    if len(known) < len(found):
        worst += f"; {len(found) - len(known)} {NOT_RUN}"
    never = judge(found, lambda known: min(known) >= 0, early=True)
    lines.append(f"| never below the tuned {RIVAL} at any R on any of the {len(scans)} | {worst} | {never} |")
    return "\n".join(lines)


def overview(cells: Cells, scans: Sequence[str], acceleration: float, recipes: Sequence[str]) -> str:
    """PSNR of every scan and recipe at one R, with the mean where all scans were run."""
    if not any((scan, acceleration, recipe) in cells for scan in scans for recipe in recipes):
        return f"R = {acceleration:g}: {NOT_RUN}."
    lines = [f"| R = {acceleration:g}, PSNR (dB) | " + " | ".join(recipes) + " |", "|---" * (len(recipes) + 1) + "|"]
    columns = [[cells.get((scan, acceleration, recipe)) for scan in scans] for recipe in recipes]
    for number, scan in enumerate(scans):
        row = [column[number] for column in columns]
        best = max(cell["psnr"] for cell in row if cell) if (scan, acceleration, MAIN) in cells else None
        shown = [NOT_RUN if cell is None else f"{cell['psnr']:.2f}" for cell in row]
        marked = [
            f"**{text}**" if cell and cell["psnr"] == best else text for cell, text in zip(row, shown, strict=True)
        ]
        lines.append(f"| [{scan}]({scan}.md) | " + " | ".join(marked) + " |")
    means = [
        f"{np.mean([cell['psnr'] for cell in column if cell]):.2f}" if all(column) else NOT_RUN for column in columns
    ]
    return "\n".join([*lines, "| mean | " + " | ".join(means) + " |"])


def _lambda(cell: Cell) -> str:
    if "lambda" not in cell:
        return ""
    star = "*" if cell["lambda_by"] == "the reference" else ""
    return f"{cell['lambda']:.2g}{star}" + (", not converged" if cell.get("converged") is False else "")


def scores_table(cells: Cells, scan: str, accelerations: Sequence[float], recipes: Sequence[str]) -> str:
    """Every figure of one scan with a reference."""
    head = "R (achieved) recipe PSNR SSIM NMSE lambda n coverage rank AUSE residual seconds".replace(" (", "_(").split()
    lines = ["| " + " | ".join(name.replace("_", " ") for name in head) + " |", "|---" * len(head) + "|"]
    for acceleration in sorted(accelerations):
        for recipe in recipes:
            cell = cells.get((scan, acceleration, recipe))
            if cell is None:
                continue
            spread = ["", "", "", ""]
            if "spread" in cell:
                s = cell["spread"]
                spread = [f"{s['coverage']:.0%}", f"{s['rank_correlation']:.2f}", f"{s['ause']:.2f}"]
                spread.append(f"{cell['checks']['residual']:.2f}")
            row = [f"{acceleration:g} ({cell['achieved_R']:.2f})", recipe, f"{cell['psnr']:.2f}", f"{cell['ssim']:.3f}"]
            row += [f"{cell['nmse']:.4f}", _lambda(cell), f"{cell.get('n', '')}", *spread, f"{cell['seconds']:.0f}"]
            lines.append("| " + " | ".join(row) + " |")
        missing = ", ".join(recipe for recipe in recipes if (scan, acceleration, recipe) not in cells)
        if missing:
            lines.append(f"| {acceleration:g} | {missing} | {NOT_RUN} |" + " |" * (len(head) - 3))
    return "\n".join(lines)


def checks_table(cells: Cells, scan: str, recipes: Sequence[str]) -> str:
    """What can be said of a scan without a reference."""
    lines = [
        "| recipe | lambda | n | residual | error over spread at withheld points | measured share | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        cell = cells.get((scan, None, recipe))
        if cell is None:
            lines.append(f"| {recipe} | {NOT_RUN} | | | | | |")
            continue
        told = ["", "", ""]
        if "checks" in cell:
            checks, withheld = cell["checks"], cell["checks"].get("withheld")
            ratio = f"{withheld['ratio']:.2f} ± {withheld['standard_error']:.2f}" if withheld else "nothing to withhold"
            told = [f"{checks['residual']:.2f}", ratio, f"{checks['measured_share']:.1%}"]
        row = [recipe, _lambda(cell), str(cell.get("n", "")), *told, f"{cell['seconds']:.0f}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def picture(path: Path, cells: Cells, scan: str, acceleration: float | None) -> bool:
    """Zero-filled, L1-wavelet and the default recipe of a scan; False where one of them was not run."""
    shown = {"zero_filled": "zero-filled", "l1_wavelet": RIVAL, "reconstruction": MAIN}
    row = {name: cells.get((scan, acceleration, recipe)) for name, recipe in shown.items()}
    found = {name: cell for name, cell in row.items() if cell is not None}
    if len(found) < len(row):
        return False
    files = {name: np.load(cell["images"], allow_pickle=False) for name, cell in found.items()}
    last = files["reconstruction"]
    scores = {n: {"psnr_fit": c["psnr"], "ssim_fit": c["ssim"]} for n, c in found.items() if "psnr" in c}
    cell = found["reconstruction"]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(
        path,
        images={name: file["image"] for name, file in files.items()},
        std=last["std"],
        samples=cell["n"],
        reference=last.get("reference"),
        scores=scores,
        mask=last["mask"],
        title=f"{scan}, R = {cell['achieved_R']:.2f}, {cell['coils']} coil(s)",
    )
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return True


def scan_page(
    cells: Cells, scan: str, known: bool, accelerations: Sequence[float], recipes: Sequence[str], shown: str
) -> str:
    """The page of one scan; `shown` is what stands for the picture."""
    some = next((cell for (name, _, _), cell in cells.items() if name == scan), None)
    facts = f"{NOT_RUN.capitalize()}."
    if some is not None:
        height, width = some["shape"]
        facts = f"Matrix {height} × {width}, {some['coils']} coil(s), sigma0 {some['sigma0']:.3f} of full scale."
        sets = sorted({(r or 0, cell["sets"]) for (name, r, _), cell in cells.items() if name == scan})
        if any(count > 1 for _, count in sets):
            told = ", ".join(f"{count} at R = {r:g}" if r else f"{count}" for r, count in sets)
            facts += f" It wraps: sets of coil maps, chosen by itself, {told}."
    if scan in CHOSEN_ON:
        facts += f" {CHOSEN_ON[scan]}"
    table = scores_table(cells, scan, accelerations, recipes) if known else checks_table(cells, scan, recipes)
    note = COLUMNS if known else WITHOUT
    return f"# {scan}\n\n{NOTICE} [All scans](README.md).\n\n{facts}\n\n{shown}\n\n{table}\n\n{note}\n"


def write_pages(
    work: Path, output: Path, seed: int, scans: dict[str, bool], accelerations: Sequence[float], recipes: Sequence[str]
) -> None:
    """Index, a page for each scan, the pictures that may be published and figures.json; other pictures go to `work`.

    `scans` says whether a scan, by its name without ending, has a reference.
    """
    cells = read_cells(work, seed)
    output.mkdir(parents=True, exist_ok=True)
    for scan, known in scans.items():
        public = scan in LICENCES
        made = picture((output if public else work) / f"{scan}.png", cells, scan, AT if known else None)
        shown = f"![{scan}]({scan}.png)\n\nThe scan's licence: {LICENCES.get(scan)}."
        if not public:
            shown = "The scan's licence allows no picture here; the command puts one into its work folder."
        elif not made:
            shown = f"Picture: {NOT_RUN}."
        (output / f"{scan}.md").write_text(scan_page(cells, scan, known, accelerations, recipes, shown))
    with_reference = [scan for scan, known in scans.items() if known]
    tables = "\n\n".join(overview(cells, with_reference, r, recipes) for r in sorted(accelerations))
    without = "".join(f"- [{scan}]({scan}.md), without a reference\n" for scan, known in scans.items() if not known)
    (output / "README.md").write_text(
        f"# Every recipe on measured head scans\n\n{NOTICE}\n\n"
        f"Written by examples/measured_scans.py; one mask each (fastMRI's equispaced, seed {seed}).\n\n"
        f"{verdicts(cells, with_reference, accelerations, recipes)}\n\n"
        f"In brackets the scans in the order of the tables.\n\n{tables}\n\n{without}\n{COLUMNS}\n"
    )
    kept = [{k: v for k, v in cell.items() if k != "images"} | {"recipe": key[2]} for key, cell in cells.items()]
    (output / "figures.json").write_text(json.dumps(kept, indent=1) + "\n")
