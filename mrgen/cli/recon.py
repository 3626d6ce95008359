"""`mrgen recon`."""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from mrgen.cli.common import (
    Device,
    OnDevice,
    PriorFile,
    ProcessCount,
    RecipeName,
    Samples,
    Slices,
    become,
    interruptible,
    join_for_scans,
    progress_on_stderr,
)
from mrgen.cli.export import (
    DEFAULT_FORMATS,
    Flag,
    Formats,
    Overlay,
    PatientId,
    ReferenceDicom,
    StudyUid,
    chosen_exports,
)
from mrgen.cli.spread import check_lines, spread_lines
from mrgen.errors import MrgenError
from mrgen.physics.masks import PATTERNS, achieved_acceleration
from mrgen.posterior.batch import Batch
from mrgen.posterior.reconstruct import refuse_half_pairs
from mrgen.prior.distributed import ALONE, Processes, silent
from mrgen.prior.files import bundled_prior, load_prior
from mrgen.review.calibration import read_calibration
from mrgen.review.export import DICOM, HDF5, Exports, clear_exports, place_of
from mrgen.review.figure import NOTICE, label
from mrgen.review.folder import prepare_output_dir
from mrgen.review.output import finished, write_result
from mrgen.review.parts import partial_slices
from mrgen.review.run import Run, digest, gather, reconstruct_slices
from mrgen.scans.maskfile import read_mask
from mrgen.scans.open import open_scan
from mrgen.scans.prepare import default_center_fraction, undersampling_mask
from mrgen.scans.scan import Scan
from mrgen.settings import Recipe, Sampling, load


class MapSets(StrEnum):
    """How many sets of coil maps."""

    auto = "auto"
    one = "1"
    two = "2"

    @property
    def number(self) -> int | None:
        """Their number; None where the scan decides."""
        return None if self is MapSets.auto else int(self.value)


def parse_slices(text: str | None, count: int) -> range:
    """The slices A to B - 1 of "A:B", of which either may be left out. Raises MrgenError."""
    first, colon, last = (text or ":").partition(":")
    numbers = all(part.isdecimal() for part in (first or "0", last or "0"))
    chosen = range(int(first or 0), int(last or count)) if numbers else range(0)
    if not colon or not 0 <= chosen.start < chosen.stop <= count:
        raise MrgenError(f"--slices {text}: expected A:B with 0 <= A < B <= {count}, the slices of this scan")
    return chosen


def choose_mask(
    scan: Scan, acceleration: float | None, seed: int, pattern: str = "equispaced", center_fraction: float | None = None
) -> Tensor | None:
    """The mask for retrospective undersampling; None for a scan that was undersampled when measured.

    `pattern` is one of mrgen.physics.masks.PATTERNS or a file with a mask. All slices share the mask; without a seed it
    is that of fastMRI's evaluation. Raises MrgenError where R is missing, impossible, or asked for a second time.
    """
    from_file = pattern not in PATTERNS
    if acceleration is not None and not (math.isfinite(acceleration) and acceleration >= 1):
        raise MrgenError(f"--R {acceleration:g}: expected a number of at least 1 (1 keeps every line)")
    if scan.mask is not None:
        if acceleration is None and not from_file:
            return None
        achieved = achieved_acceleration(scan.mask, sum(scan.padding))
        raise MrgenError(
            f"the scan is already undersampled, R = {achieved:.2f}: leave out --R and --mask to reconstruct it"
        )
    _, _, rows, lines = scan.shape
    if from_file:
        if acceleration is not None or center_fraction is not None:
            raise MrgenError("the file of --mask says which lines are kept: leave out --R and --center-fraction")
        return read_mask(Path(pattern), lines, rows)
    if acceleration is None:
        raise MrgenError("the scan is fully sampled: say with --R by how much to undersample it, for example --R 8")
    if center_fraction is not None and not 0 < center_fraction < 1:
        raise MrgenError(f"--center-fraction {center_fraction:g}: expected a number between 0 and 1")
    fraction = center_fraction or default_center_fraction(acceleration)
    sampling = Sampling.model_validate(
        {"pattern": pattern, "acceleration": (acceleration,), "center_fraction": fraction}
    )
    return undersampling_mask(scan, sampling, acceleration, seed, slice_index=0)


def load_recipe(name: str, samples: int | None, prior: Path | None, save_samples: bool = False) -> Recipe:
    """The recipe of a command's options. Raises MrgenError for options that it has no use for."""
    recipe = load(Recipe, name)
    if samples is not None and not recipe.draws:
        raise MrgenError(f"recipe {name!r} draws no samples: leave out --samples")
    if save_samples and not recipe.draws:
        raise MrgenError(f"recipe {name!r} draws no samples: leave out --save-samples and --dicom-samples")
    if prior is not None and not recipe.learned:
        raise MrgenError(f"recipe {name!r} uses no prior: leave out --prior")
    if samples is not None:
        recipe = recipe.model_copy(update={"samples": samples})
        refuse_half_pairs(recipe)
    return recipe


@dataclass(frozen=True)
class _Plan:
    """What the scans of a command share."""

    run: Callable[[Scan], Run]
    exports: Exports
    resume: bool
    prefix: str  # of every line, where several processes speak

    def say(self, text: str, err: bool = False) -> None:
        typer.echo(self.prefix + text, err=err)


def _reconstruct(scan_file: Path, out: Path, plan: _Plan, skip_finished: bool, processes: Processes = ALONE) -> None:
    """One scan from its file to the files of its result, which the first of `processes` writes. Raises MrgenError."""
    say = plan.say if processes.rank == 0 else silent
    scan = open_scan(scan_file)
    for remark in scan.remarks:
        say(f"note    {remark}")
    run = plan.run(scan)
    prepare_output_dir(out)
    placement = plan.exports.check(out, run.geometry, len(run.slices), scan.slices, scan.crop or scan.shape[2:])
    identity = run.identity()
    if skip_finished and finished(out, scan_file.stem, digest(identity)):
        say(f"skipped {scan_file.name}: {out} holds this very result; --no-resume computes it again")
        missing = tuple(name for name in plan.exports.formats if name != HDF5 and not place_of(out, name).exists())
        for path in replace(plan.exports, formats=missing).write(out, out / f"{scan_file.stem}.h5", say):
            say(f"wrote   {path}")
        if not plan.exports.plain and DICOM in plan.exports.formats and DICOM not in missing:
            say(
                f"note    {place_of(out, DICOM)} stays as it is: mrgen export makes it anew, with the options for DICOM"
            )
        return

    _, measured, n_y, n_x = scan.shape
    array = f"{measured} coil" + "s" * (measured > 1)
    details = [f"{run.samples} samples"] * run.recipe.draws + ([f"prior {run.prior.sha256[:12]}"] if run.prior else [])
    detail = ": " * bool(details) + ", ".join(details)
    say(f"scan    {scan_file.name}: {len(run.slices)} of {scan.slices} slices, {array}, {n_y} x {n_x}")
    say(f"recipe  {run.recipe_name}{detail}, seed {run.seed}, on {run.device}")
    with partial_slices(out, scan_file.stem, identity, plan.resume, processes) as parts:
        with progress_on_stderr(plan.prefix) as progress:
            resumed = reconstruct_slices(run, parts, plan.say, progress, processes)
        if processes.rank > 0:
            return
        result = gather(run, parts, resumed, say)
        result = replace(result, geometry_from=placement.source)
        paths = write_result(out, scan_file.stem, result)
        clear_exports(out)
        parts.remove()
    paths += plan.exports.write(out, paths[0], say)

    of_rss = result.volume_rss_scores
    if of_rss:
        say(f"{'after a best scalar fit':<24}{'against the coil combination':<30}against the RSS")
    for name, score in result.volume_scores.items():
        figures = [f"PSNR {s['psnr_fit']:5.2f} dB, SSIM {s['ssim_fit']:.4f}" for s in (score, of_rss[name])]
        say(f"{label(name, run.samples):<24}{'    '.join(figures)}")
    if run.samples is not None:
        spread = spread_lines(run.samples, run.recipe.antithetic, result.calibration)
        for line in [*spread, *check_lines(result.checks)]:
            say(line)
    for path in paths:
        say(f"wrote   {path}")


def _reconstruct_each(scan_files: Iterable[Path], out: Path, plan: _Plan) -> int:
    """Each scan into a folder of its own; tells which failed, and why, and gives their number."""
    failed = {}
    for scan_file in scan_files:
        try:
            _reconstruct(scan_file, out / scan_file.stem, plan, skip_finished=plan.resume)
            continue
        except MrgenError as error:
            failed[scan_file.name] = str(error)
        except Exception as error:  # a bug, which the other scans may not meet
            traceback.print_exc()
            failed[scan_file.name] = f"a bug, see the traceback above: {type(error).__name__}: {error}"
        plan.say(f"failed  {scan_file.name}: {failed[scan_file.name]}", err=True)
    for name, reason in failed.items():  # again, where it is not lost among the others
        plan.say(f"failed  {name}: {reason}", err=True)
    return len(failed)


def refuse_namesakes(scan_files: list[Path]) -> None:
    """Raises MrgenError for files of one name, whose results would get one folder."""
    stem, count = Counter(path.stem for path in scan_files).most_common(1)[0]
    if count > 1:
        raise MrgenError(
            f"{count} of the scans are called {stem}, and would get the same folder: reconstruct them one by one, each "
            "with an --out of its own"
        )


def recon(
    scan_files: Annotated[
        list[Path],
        typer.Argument(metavar="SCAN...", help="Raw data: fastMRI .h5, ISMRMRD, Siemens .dat, BART .cfl or .npz."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the results; several scans get a folder each in it.")
    ],
    acceleration: Annotated[
        float | None, typer.Option("--R", "-r", help="Undersample a fully sampled scan by this factor.")
    ] = None,
    mask: Annotated[
        str, typer.Option(metavar="PATTERN|FILE", help=f"{', '.join(PATTERNS)}, or a file with the mask to apply.")
    ] = "equispaced",
    center_fraction: Annotated[
        float | None, typer.Option(help="Fully sampled share of the lines; without it, fastMRI's for this R.")
    ] = None,
    calibration_file: Annotated[
        Path | None,
        typer.Option("--calibration-scan", help="Take coil maps from the centre of this scan of the same coils."),
    ] = None,
    coils: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Compress to N virtual coils; the loss is told."),
    ] = None,
    map_sets: Annotated[
        MapSets, typer.Option(help="Sets of coil maps; auto: 2 where the object wraps into the field of view.")
    ] = MapSets.auto,
    recipe_name: RecipeName = "posterior",
    prior_file: PriorFile = None,
    samples: Samples = None,
    interval_file: Annotated[
        Path | None, typer.Option("--calibration", help="A file of mrgen calibrate: adds the interval it was made for.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the mask's offset and the samples.")] = 0,
    slices: Slices = None,
    save_samples: Annotated[
        bool, typer.Option("--save-samples", help="Keep every posterior sample in the .h5 file, too.")
    ] = False,
    formats: Formats = DEFAULT_FORMATS,
    reference_dicom: ReferenceDicom = None,
    patient_id: PatientId = None,
    study_uid: StudyUid = None,
    dicom_samples: Annotated[
        bool, typer.Option("--dicom-samples", help="A DICOM series of every sample, too; keeps the samples.")
    ] = False,
    flag: Flag = None,
    overlay: Overlay = False,
    check: Annotated[
        bool, typer.Option(help="Hold the spread against withheld lines, which costs two more samples a slice.")
    ] = True,
    resume: Annotated[
        bool, typer.Option(help="Go on from the slices that an interrupted run has left, and skip finished scans.")
    ] = True,
    device: OnDevice = Device.auto,
    process_count: ProcessCount = 1,
) -> None:
    """Reconstruct scans: posterior mean and spread, beside zero-filled and L1-wavelet images.

    Several processes share the scans, or the slices of a single one, and the GPUs if those are fewer.
    """
    save_samples |= dicom_samples
    recipe = load_recipe(recipe_name, samples, prior_file, save_samples)
    exports = chosen_exports(formats, reference_dicom, patient_id, study_uid, dicom_samples, flag, overlay)
    if len(scan_files) > 1 and (exports.reference is not None or exports.identity.real):
        raise MrgenError("several scans, but --reference-dicom, --patient-id and --study-uid are of one: take it alone")
    if interval_file is not None and not recipe.draws:
        raise MrgenError(f"recipe {recipe_name!r} draws no samples: leave out --calibration")
    if flag is not None and interval_file is None:
        raise MrgenError("--flag looks at calibrated intervals: add --calibration with a file of mrgen calibrate")
    if overlay and not recipe.draws:
        raise MrgenError(f"recipe {recipe_name!r} draws no samples: leave out --overlay")
    intervals = None if interval_file is None else read_calibration(interval_file)
    refuse_namesakes(scan_files)
    become(process_count, scan_files)
    processes = join_for_scans(device)
    target, prefix, count = processes.device, processes.prefix, 0
    with interruptible(f"{prefix}the reconstruction"):
        calibration = None if calibration_file is None else open_scan(calibration_file)
        prior = load_prior(prior_file or bundled_prior(), target) if recipe.learned else None

        def run(scan: Scan) -> Run:
            return Run(
                scan,
                parse_slices(slices, scan.slices),
                choose_mask(scan, acceleration, seed, mask, center_fraction),
                Path(recipe_name).stem,
                recipe,
                prior,
                seed,
                target,
                calibration,
                coils,
                map_sets.number,
                save_samples,
                intervals,
                check and recipe.draws,
                batch,
            )

        plan = _Plan(run, exports, resume, prefix)
        batch = Batch.on(target, plan.say)
        if len(scan_files) > 1:
            count = _reconstruct_each(processes.share(scan_files), out, plan)
        else:
            _reconstruct(scan_files[0], out, plan, skip_finished=False, processes=processes)
        # torchrun ends all processes with the first one that fails, so each waits here for the others
        count = int(processes.sum(torch.tensor(count)))
    if processes.rank == 0:
        typer.echo(NOTICE)
        if count:
            raise MrgenError(f"{count} of {len(scan_files)} scans failed, as told above; the others are finished")
