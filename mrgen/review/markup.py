"""HTML in small: text is escaped unless it is markup already."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Markup(str):
    """Text that is HTML."""


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; a trailing underscore of an attribute's name is left out, other ones become hyphens."""
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    inside = "".join(part if isinstance(part, Markup) else escape(str(part)) for part in content)
    return Markup(f"<{name}{listed}>" if name == "img" else f"<{name}{listed}>{inside}</{name}>")


def joined(parts: Iterable[Markup]) -> Markup:
    return Markup("".join(parts))


def rows(pairs: Iterable[tuple[str, object]]) -> Markup:
    """A list of names and what they are; those with nothing are left out."""
    return tag("dl", *(joined([tag("dt", name), tag("dd", text)]) for name, text in pairs if text not in (None, "")))


def table(caption: str, head: Sequence[object], body: Iterable[Sequence[object]]) -> Markup:
    """A table whose first column names its rows."""
    lines = (tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells)) for first, *cells in body)
    top = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    return tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *lines))


def picture(grey: NDArray[np.uint8], size: tuple[int, int], alt: str, **attributes: object) -> Markup:
    """An `img` of grey levels (y, x), shown in `size` (width, height), averaged down to that where it is larger."""
    image = Image.fromarray(grey)
    if image.width > size[0]:
        image = image.resize(size, Image.Resampling.BOX)
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return tag("img", src=source, alt=alt, width=size[0], height=size[1], **attributes)
