"""What a reconstruction says of itself while it runs, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mrgen.physics.masks import achieved_acceleration
from mrgen.scans.recognise import acceleration_text

if TYPE_CHECKING:
    from mrgen.review.run import Run


def describe(run: Run, mask: Tensor, facts: dict[str, Any], say: Callable[[str], None]) -> None:
    """Tell of the mask, the noise and the coils of a slice, by what was kept of it."""
    kept, whole = int(mask.sum()), mask.numel()
    what = "lines" if mask.ndim == 1 else "points"
    how = "as measured" if run.undersample is None else "retrospectively"
    measurable = achieved_acceleration(mask, sum(run.scan.padding))
    say(f"mask    {kept} of {whole} {what}, {how}, {acceleration_text(measurable, achieved_acceleration(mask))}")
    say(f"noise   sigma0 = {facts['sigma0']:.4f} of full scale, from {facts['noise_from']}")
    if facts["coil_energy"] is not None:
        energy = f"{100 * facts['coil_energy']:.1f} % of the energy of the calibration data"
        say(f"coils   {run.coils} virtual of {run.scan.shape[1]}, {energy}")
    say(f"maps    {_maps(facts['map_sets'], facts['second_share'], run.map_sets is None)}")


def _maps(sets: int, second_share: float | None, chosen: bool) -> str:
    """The number of sets of maps and what it rests on, in words."""
    text = f"{sets} set{'s' * (sets > 1)}"
    if second_share is None:
        return f"{text}, as asked"
    text += f": a second one holds {second_share:.2%} of the calibration image"
    if not chosen:
        return f"{text}, as asked"
    return f"{text}, so the object {'wraps' if sets > 1 else 'does not wrap'} into the field of view"


def regularised(facts: dict[str, Any]) -> str:
    """Lambda, how it was chosen, and whether the iteration converged."""
    text = f"{facts['regularisation']:.2g}, by {facts['chosen_by']}"
    if "changes" in facts:
        end = "converged" if facts["converged"] else "NOT converged"
        text += f"; {end}: the last of {len(facts['changes'])} iterations changed {100 * facts['changes'][-1]:.2g} %"
    return text


def other_map_sets(run: Run, used: Iterable[int]) -> str | None:
    """A note on slices with a number of sets of coil maps that the calibration of the spread has not seen."""
    if run.intervals is None or not (others := {*used} - {*run.intervals.map_sets}):
        return None
    known, found = (" and ".join(map(str, sorted(sets))) for sets in (run.intervals.map_sets, others))
    return (
        f"note    the calibration is of slices with {known} set(s) of coil maps, and this scan has slices with "
        f"{found}: do not rely on their intervals"
    )
