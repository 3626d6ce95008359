"""The tables and the plain words of the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mrgen.review.figure import label
from mrgen.review.geometry import Placement
from mrgen.review.held import SAMPLES, Held
from mrgen.review.markup import Markup, joined, picture, rows, table, tag
from mrgen.review.stored import Stored
from mrgen.review.uncertainty import std_sampling_error

_MASK_WIDTH = 448  # of its picture, pixels


def headline(stored: Stored) -> str:
    """What was done, in one line."""
    count, n_y, n_x = stored.shape
    slices = f"{count} slice{'s' * (count > 1)} of {n_y} × {n_x}"
    return f"{label('reconstruction', stored.samples)}, R = {stored.attributes['R']:.1f}, {slices}"


def summary(stored: Stored, placement: Placement, held: Held) -> Markup:
    """All that stands below the images, and on the printed page."""
    sections = (
        ("flags", "Slices worth a second look", _flags(stored.report["flagged"], stored.attributes["first_slice"])),
        ("scores", "Scores", _scores(stored)),
        ("made", "How it was made", _made(stored, placement)),
        ("limits", "What these images do not tell", _limits(stored, placement, held)),
    )
    return joined(tag("section", tag("h2", title), content, class_=name) for name, title, content in sections)


def pixel_size(stored: Stored, placement: Placement) -> tuple[float, float] | None:
    """(y, x) in mm, None where neither the raw data nor a DICOM series tell it."""
    return None if placement.nominal and stored.geometry.spacing is None else placement.spacing


def slice_button(number: int, first: int) -> Markup:
    """A button that shows a slice, by its number in the scan; the page begins with slice `first`."""
    return tag("button", f"Slice {number}", type="button", data_slice=number - first)


def _flags(flagged: dict[str, Any], first: int) -> Markup:
    listed = [
        tag("li", slice_button(flag["slice"], first), " ", "; ".join(flag["reasons"])) for flag in flagged["slices"]
    ]
    found = tag("ul", *listed) if listed else tag("p", "None is listed by the rule below.")
    return joined([found, tag("p", flagged["rule"], class_="small")])


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _scores(stored: Stored) -> Markup:
    """Of every slice, as far as they are known; and of every image of the volume, where there is a reference."""
    report, first = stored.report, stored.attributes["first_slice"]
    metrics = report.get("metrics")
    columns = {"PSNR, dB": ("psnr_fit", 2), "SSIM": ("ssim_fit", 3), "NMSE": ("nmse_fit", 4)}
    parts = []
    listed = {flag["slice"] for flag in report["flagged"]["slices"]}
    head, lines = [], []
    for row in report["flagged"]["figures"]:
        number = row["slice"]
        cells = dict(_slice_cells(stored, row))
        if metrics:
            score = metrics["slices"][number - first]["reconstruction"]
            cells = {title: _number(score[key], digits) for title, (key, digits) in columns.items()} | cells
        head = ["", *cells, "second look"]
        lines.append((slice_button(number, first), *cells.values(), "⚑ yes" if number in listed else ""))
    if len(head) > 2:
        parts.append(table("Each slice", head, lines))
    if metrics:
        body = (
            (label(name, stored.samples), *(_number(score[key], digits) for key, digits in columns.values()))
            for name, score in metrics["volume"].items()
        )
        parts.append(table("Whole volume", ("image", *columns), body))
        text = "PSNR, SSIM and NMSE: against the coil combination of the fully sampled scan, after the best scalar fit."
        parts.append(tag("p", text, class_="small"))
    return joined(parts) if parts else tag("p", "Neither a reference nor samples, so there is nothing to score by.")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _slice_cells(stored: Stored, row: dict[str, float]) -> list[tuple[str, str]]:
    checks = {check["slice"]: check for check in stored.report.get("checks", {}).get("slices", [])}
    cells = []
    if "relative_spread" in row:
        cells.append(("std / mean", f"{100 * row['relative_spread']:.1f} %"))
    if "null_space_share" in row:
        cells.append(("not measured", f"{100 * row['null_space_share']:.1f} %"))
        cells.append(("misfit / noise", _number(row["residual"], 2)))
    if any("withheld" in check for check in checks.values()):
        found = checks[int(row["slice"])].get("withheld")
        text = f"{found['ratio']:.2f} ± {found['standard_error']:.2f}" if found else "–"
        cells.append(("error / spread at withheld lines", text))
    return cells


def _made(stored: Stored, placement: Placement) -> Markup:
    report, attributes = stored.report, stored.attributes
    recipe, prior = report["recipe"], attributes.get("prior_sha256")
    sampled = report.get("lines") or report["points"]
    what = "phase-encode lines" if "lines" in report else "points"
    filled = f", {report['zero_filled_lines']} left out by the scanner" if report["zero_filled_lines"] else ""
    coils, noise, spacing = report["coils"], report["noise"], pixel_size(stored, placement)
    acquisition = {
        "Undersampling": f"R = {attributes['R']:.2f}: {sampled['sampled']} of {sampled['all']} {what}{filled}",
        "Coils": f"{coils['scan']}" + (f", compressed to {coils['virtual']}" if coils["virtual"] else ""),
        "Noise": f"from {noise['from']}",
        "Geometry": {"nominal": "nominal: left and right not verified"}.get(placement.source, placement.source),
        "Pixel": "size not known" if spacing is None else f"{spacing[0]:.2f} × {spacing[1]:.2f} mm (y × x)",
    }
    skipped = {"name", "description", "samples"}
    settings = ", ".join(f"{key} {value}" for key, value in recipe.items() if key not in skipped)
    drawn = stored.samples
    off = _percent(std_sampling_error(drawn, stored.antithetic)) if drawn else ""
    pairs = " in antithetic pairs" if stored.antithetic else ""
    reconstruction = {
        "Recipe": recipe["name"],
        "Description": recipe.get("description"),
        "Settings": settings,
        "Samples": drawn and f"n = {drawn}{pairs}; the std of a pixel is itself off by {off}",
        "Seed": report["seed"],
        "mrgen": attributes["mrgen_version"],
        "Written": f"{stored.created:%Y-%m-%d %H:%M} UTC",
        "Identity": tag("code", report["identity"][:16]),
    }
    interval = report.get("interval")
    calibration = {
        "Interval": f"mean ± {interval['factor']:.2f} std, to cover {_percent(interval['coverage'])} of the object",
        "SHA-256": tag("code", interval["sha256"][:16]),
    } if interval else {"Interval": "none: the spread was not calibrated"}  # fmt: skip
    card = {**report.get("prior", {}), "SHA-256": prior and tag("code", prior[:16])}
    parts = [tag("div", tag("h3", "Measured"), rows(acquisition.items()), _mask(stored))]
    others = {"Reconstruction": reconstruction, "Prior": prior and card, "Calibration": drawn and calibration}
    parts += [tag("div", tag("h3", title), rows(found.items())) for title, found in others.items() if found]
    return tag("div", *parts, class_="columns")


def _mask(stored: Stored) -> Markup:
    """White where k-space was measured."""
    mask = stored.mask()
    grey = mask.astype("uint8") * 255
    lines = mask.ndim == 1
    height = 18 if lines else round(_MASK_WIDTH * grey.shape[0] / grey.shape[1])
    grey = grey[None].repeat(2, 0) if lines else grey
    note = "Sampling mask: white lines were measured" if lines else "Sampling mask: white points were measured"
    image = picture(grey, (max(_MASK_WIDTH, grey.shape[1]), height), note, class_="mask")
    return tag("figure", image, tag("figcaption", f"{note}; the centre of k-space is in the middle."))


def _limits(stored: Stored, placement: Placement, held: Held) -> Markup:
    """In plain words, what a reader must not conclude."""
    drawn, interval = stored.samples, stored.report.get("interval")
    said = ["This is research software, not a medical device. No diagnosis may rest on this page."]
    if stored.attributes.get("prior_sha256"):
        said.append(
            "Only a part of the data was measured. The rest is filled in from what the prior has learned about images "
            "like those it was trained on (its card is above). A finding that is rare or absent there can be weakened, "
            "removed or invented, and look sharp and natural all the same."
        )
    if drawn:
        said += [
            "Low std does not mean correct. The std map shows where the samples differ from each other, under this "
            "prior and these coil maps; where all of them are wrong in the same way it is dark.",
            "Each sample is an image that fits the data and the prior. A detail that comes and goes between samples is "
            "not settled by the data; one that stays is not proven by that.",
            f"The std is estimated from n = {drawn} samples, and so off by about "
            f"{_percent(std_sampling_error(drawn, stored.antithetic))} of itself.",
        ]
        if interval:
            said.append(
                f"The {_percent(interval['coverage'])} interval is marginal and in-distribution: it holds for pixels "
                "on average over scans like those of its calibration. It is no statement on one pixel, region, lesion "
                "or patient."
            )
        else:
            said.append("The std was not calibrated: mean ± 1.645 std is not known to cover 90 % of anything.")
    if "metrics" in stored.report:
        said.append("The error map is against a fully sampled scan that has noise of its own, which is part of it.")
    if placement.nominal:
        said.append("The raw data do not tell where the slices lie. Left and right are not verified.")
    said.append(
        f"Values are in arbitrary units (a.u.), those of the raw data, and rounded by less than "
        f"{100 * held.rounding:g} % of the largest of their kind. The exact ones are in the HDF5 and NIfTI files."
    )
    if held.left_out:
        said.append(
            f"This scan is too large for one file of this kind, so it is without {'; '.join(_left_out(stored, held))}. "
            "The HDF5 file has them."
        )
    return tag("ul", *(tag("li", text) for text in said))


def _left_out(stored: Stored, held: Held) -> Iterator[str]:
    """What is not in the page for its size, the least missed first."""
    first = stored.attributes["first_slice"]
    for name, there in reversed(held.left_out.items()):
        what = {SAMPLES: "samples", "std": "std", "null_space": "what was not measured"}.get(name) or label(name, None)
        yield f"{what}, but of slices {first + there.start} to {first + there.stop - 1}" if there else what
