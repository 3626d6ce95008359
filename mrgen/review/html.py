"""The report: one HTML file that a browser opens from disk, with the images, the figures and how they were made.

It asks for nothing from anywhere, which its content security policy enforces: no source is allowed but its own style
and script, named by their hashes, and pictures inside the page. Images are chosen by held.py, packed by pack.py and
unpacked where they are first shown; `report/` holds the page, its style and its script. Nothing that names a person, a
file or a folder is in it; a text from outside (a recipe, the file of a prior) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from mrgen.review.figure import NOTICE, label
from mrgen.review.geometry import NOMINAL_NOTICE, Placement, towards
from mrgen.review.held import MAPS, SAMPLES, Held, hold
from mrgen.review.markup import Markup, joined, picture, tag
from mrgen.review.metrics import best_scale
from mrgen.review.pack import COARSE
from mrgen.review.stored import Stored
from mrgen.review.uncertainty import std_sampling_error
from mrgen.review.words import headline, pixel_size, summary

LARGEST = 20e6  # bytes of the file
SHOWN = ("reconstruction", "zero_filled", "l1_wavelet", "reference", *MAPS)  # in the order of the menus
_TEXTS = 100e3, 1e3  # bytes that words and tables stay below, those of all and of each slice
_SCRIPTS = ("decode.js", "draw.js", "roi.js", "view.js", "mouse.js", "controls.js")
_THUMBNAIL = 144  # pixels, the longer side, of up to
_THUMBNAILS = 64  # slices; of more, all small pictures together have as many
_TOP = 99.8  # percentile that is white


def write_html(path: Path, stored: Stored, placement: Placement, name: str) -> None:
    """Write the report of a result; `name` is what identifies it to a reader, as DICOM's PatientID does."""
    page = (files("mrgen.review") / "report" / "page.html").read_text(encoding="utf-8")
    style, *scripts = (
        (files("mrgen.review") / "report" / file).read_text(encoding="utf-8") for file in ("style.css", *_SCRIPTS)
    )
    script = '"use strict";\n' + "\n".join(scripts)
    pictures = joined(thumbnails(stored, placement))
    held = hold(stored, LARGEST - len(pictures) - _TEXTS[0] - _TEXTS[1] * stored.shape[0])
    facts = _facts(stored, held)
    facts["edges"] = edges(placement)
    spacing = pixel_size(stored, placement)
    facts |= {"spacing": spacing, "area": None if spacing is None else spacing[0] * spacing[1]}
    text = Template(page).substitute(
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        version=escape(str(stored.attributes["mrgen_version"])),
        title=f"mrgen report {name}",
        style=style,
        script=script,
        notice=NOTICE,
        headline=tag("small", headline(stored)),
        result=tag("span", f"Result {name}"),
        warnings=tag("p", f"{NOMINAL_NOTICE}.", class_="warning") if placement.nominal else "",
        thumbnails=pictures,
        summary=summary(stored, placement, held),
        facts=_harmless(json.dumps(facts, allow_nan=False)),
        data="\n".join(f'<script type="text/plain" id="{key}">{block}</script>' for key, block in held.blocks.items()),
    )
    path.write_text(text, encoding="utf-8")


def map_label(name: str, samples: int | None, antithetic: bool) -> str:
    """What a reader sees for an image's or a map's name."""
    if name == "std" and samples is not None:
        return f"std map, n = {samples} (± {100 * std_sampling_error(samples, antithetic):.0f} %)"
    return "not measured (null space)" if name == "null_space" else label(name, samples)


def edges(placement: Placement) -> dict[str, str] | None:
    """What lies at the image's edges, such as A or AR; None if nominal."""
    if placement.nominal:
        return None
    x, y = placement.along_x, placement.along_y
    return {"left": towards(-x), "right": towards(x), "top": towards(-y), "bottom": towards(y)}


def thumbnails(stored: Stored, placement: Placement) -> Iterator[Markup]:
    """A button with a small picture for every slice."""
    mean = stored.images["reconstruction"]
    top = float(np.percentile(mean, _TOP)) or 1.0
    height, width = np.array(mean.shape[1:]) * placement.spacing
    ratio = _THUMBNAIL * min(1, (_THUMBNAILS / len(mean)) ** 0.5) / max(height, width)
    size = (max(round(width * ratio), 1), max(round(height * ratio), 1))
    first = stored.attributes["first_slice"]
    listed = {flag["slice"] for flag in stored.report["flagged"]["slices"]}
    for i, image in enumerate(mean):
        grey = np.clip(255 * image / top, 0, 255).astype(np.uint8)
        flag = first + i in listed
        name = tag("span", f"{first + i}{' ⚑' if flag else ''}")
        said = f"slice {first + i}" + ", worth a second look" * flag
        yield tag("button", picture(grey, size, said), name, type="button", data_slice=i, class_="flag" if flag else "")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _harmless(text: str) -> str:
    """JSON that ends no element, whatever its strings hold."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _unit(largest: float) -> dict[str, Any]:
    """Powers of a thousand, so that the largest value is between 1 and 1000."""
    power = 3 * int(np.floor(np.log10(largest) / 3)) if largest > 0 else 0
    superscript = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {"factor": 10.0**-power, "label": f"10{superscript} a.u." if power else "a.u."}


def _facts(stored: Stored, held: Held) -> dict[str, Any]:
    """What the script has to know."""
    mean, reference = stored.images["reconstruction"], stored.volume("reference")
    count, rows, columns = mean.shape
    there = {key.rpartition("-")[0] for key in held.blocks}
    largest = held.tops["reconstruction" if reference is None else "reference"]
    layers: list[dict[str, Any]] = [
        {"id": name, "label": map_label(name, stored.samples, stored.antithetic), "map": name in MAPS}
        | {"step": held.steps[name], "top": held.tops[name]}
        for name in SHOWN
        if name in there
    ]
    samples, fit = None, None
    if SAMPLES in there:
        samples = {
            "count": stored.samples,
            "antithetic": stored.antithetic,
            "step": COARSE * held.steps["reconstruction"],
            "ratio": COARSE,
        }
        layers.insert(1, {"id": "sample", "label": "sample", "map": False, "top": largest})
    if reference is not None and "reference" in there:
        fit = [best_scale(image, truth) for image, truth in zip(mean, reference, strict=True)]
        layers.append({"id": "error", "label": "absolute error", "map": True, "top": largest / 4})
    attributes = stored.attributes
    interval = {name: attributes.get(f"interval_{name}") for name in ("coverage", "factor")}
    return {
        **{"slices": count, "rows": rows, "columns": columns, "first": attributes["first_slice"]},
        **{"layers": layers, "largest": largest, "unit": _unit(largest), "fit": fit, "samples": samples},
        "interval": None if None in interval.values() else interval,
    }
