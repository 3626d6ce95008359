"""What the file of a prior says of it, in the words of a report."""

from __future__ import annotations

from itertools import groupby
from typing import Any


def prior_card(metadata: dict[str, Any]) -> dict[str, str]:
    """Rows of name and text, of those that the metadata of a prior (mrgen.prior.files) tell."""
    protocol = metadata.get("protocol") or {}
    sampling = protocol.get("sampling") or {}
    accelerations = ", ".join(f"{r:g}" for r in sampling.get("acceleration", ()))
    levels = [metadata.get(name) for name in ("sigma_min", "sigma_max")]
    stages = [
        f"{count} times {objective}" if (count := len(list(same))) > 1 else objective
        for objective, same in groupby(str(stage.get("objective")) for stage in metadata.get("stages", ()))
    ]
    rows = {
        "Name": metadata.get("name"),
        "Protocol": protocol.get("description"),
        "Anatomy": protocol.get("anatomy"),
        "Contrast": protocol.get("contrast"),
        "Trained on": metadata.get("trained_on"),
        "Undersampling in training": accelerations and f"R = {accelerations}, {sampling.get('pattern')}",
        "Objective": ", then ".join(stages) or metadata.get("objective"),
        "Updates": metadata.get("steps_done"),
        "Noise levels": None if None in levels else f"{levels[0]:g} to {levels[1]:g} of the scaled image",
        "Intensities": metadata.get("scaling"),
        "Notice": metadata.get("notice"),
    }
    return {name: str(value) for name, value in rows.items() if value not in (None, "")}
