"""EM over a prior (Rozet et al., arXiv 2405.13712): learn from posterior samples of the scans, again and again.

    E:  x ~ p(x | y) under the current prior, for every training slice
    M:  the next prior is learned from those x, as if they were clean

The data's likelihood never falls by an exact round. In a direction measured with noise of variance s^2, where images
have variance C and the prior believes P, a round gives

    P' = P + (P / (P + s^2))^2 (C - P)

so a prior that believes in too much (P > C = 0: noise) falls to some s^2 at once and then only as s^2 / sqrt(2 rounds).
A direction that is never measured keeps its P.

What is drawn and learned lies in a work folder, each file complete or absent, so a run that is broken off goes on where
it was, and processes that share the folder share the E-step:

    run.json                            what all this was made from
    log.json                            scores of the priors, the one that EM started from first
    round-01/samples/<slice>.safetensors   image (n, y, x, 2) float16: the samples under the prior before;
                                        in the metadata sigma0 and R of what they were drawn from
    round-01/prior.safetensors          what was learned from them

DiffEM (arXiv 2510.12691) learns a conditional denoiser D(x_t, u, sigma) in each round, where u is a simple
reconstruction: of x measured again, y' = A x + z, when it learns, and of the scan's own y when it draws, which needs no
guidance then. From the samples of the best round an unconditional prior is learned, in final/. Files of samples hold u
as `condition`.

What a prior believes in wrongly goes slowly, round after round in the same direction. So from the third round on, with
`extrapolation` w, samples are drawn with D + w (D - D_before), where D_before is the denoiser of the round before, once
more that way ahead; the next M-step brings it into one network again. Near a fixed point to which the error e of a
round is rho e after the next, the way left is rho / (1 - rho) (D - D_before) (Aitken). Priors are scored as they are.

Or samples, after they were scored, go where the prior's flow takes them with the noise of their scan; see
mrgen.posterior.flow.

A share of the lines of a few slices is withheld throughout and tells when to stop; see mrgen.prior.heldout.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.prior.cache import alone
from mrgen.prior.distributed import is_first, silent
from mrgen.prior.draws import complex_noise
from mrgen.prior.files import read_safetensors, write_safetensors
from mrgen.prior.heldout import Score, mean_score, outside_centre, score, withhold
from mrgen.scans.scan import Slice
from mrgen.settings import EM

REPORT_SECONDS = 10.0
SEVERAL = 64  # samples that are drawn at once, of several slices, where they are
LOOK_SECONDS = 0.2  # between looks for the prior that another process is to write

P = TypeVar("P")


@dataclass(frozen=True)
class Case:
    """A training slice, read when it is needed. Its name is that of its file of samples."""

    name: str
    mask: Tensor  # (kx,)
    read: Callable[[], Slice]


@dataclass(frozen=True)
class Steps(Generic[P]):
    """What a prior is, and how one is drawn from and learned."""

    load: Callable[[Path], P]
    sample: Callable[[Slice, P, torch.Generator, int], Tensor]  # so many posterior samples (n, y, x) of a slice
    maximise: Callable[[list[Path], Path, Path], None]  # files of samples, the prior before, the one to write
    # DiffEM: a simple reconstruction (y, x) of a slice, and how to learn a prior from the last samples, as `maximise`
    condition: Callable[[Slice], Tensor] | None = None
    finish: Callable[[list[Path], Path, Path], None] | None = None
    # what the prior and the one before it become with EM.extrapolation
    extrapolate: Callable[[P, P, float], P] | None = None
    # where samples (n, y, x) of a slice go before they are learned from, the generator last
    transport: Callable[[Slice, Tensor, P, torch.Generator], Tensor] | None = None
    # `sample` for several slices at once, each with its generator, where that is faster
    several: Callable[[list[Slice], P, list[torch.Generator], int], list[Tensor]] | None = None


@dataclass(frozen=True)
class Run:
    """What a run of EM depends on besides its steps."""

    cases: Sequence[Case]
    start: Path  # the prior to begin with
    work: Path
    settings: EM
    origin: dict[str, Any]  # what the cases and the steps were made from: a work folder serves one origin
    seed: int = 0
    device: str = "cpu"  # where slices are sampled
    together: bool = False  # all processes of this run take part in `maximise` at once, instead of one

    def folder(self, number: int) -> Path:
        return self.work / f"round-{number:02d}"

    def prior(self, number: int) -> Path:
        """The prior that round `number` learned; for 0, the one to begin with."""
        return self.folder(number) / "prior.safetensors" if number else self.start

    def samples(self, number: int, case: Case) -> Path:
        return self.folder(number) / "samples" / f"{case.name}.safetensors"

    def generator(self, device: str, *purpose: object) -> torch.Generator:
        digest = hashlib.sha256(json.dumps([self.seed, *map(str, purpose)]).encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:7]))


def quietest(noise: Sequence[float], share: float) -> list[int]:
    """Indices of the slices to learn from, of the noise std of their images, sqrt(R) sigma0: at least a `share`."""
    loudest = sorted(noise)[math.ceil(share * len(noise)) - 1]
    return [n for n, std in enumerate(noise) if std <= loudest]


def expectation_maximisation(
    run: Run, steps: Steps[P], rounds: int, out: Path, report: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Up to `rounds` rounds; writes the prior with the best held-out likelihood to `out` and returns the log.

    It ends early after a prior whose likelihood is below that of the one before by more than the standard error of the
    difference. Conditional denoisers draw in another way than priors, so they are compared with each other, and the
    prior that is learned in the end, "final" in the log, with the one that EM started from. Raises MrgenError where no
    slice has a line to withhold, and for a work folder of another run.
    """
    if run.together and not is_first():
        report = silent
    _claim(run)
    held = held_out(run)
    withheld = {case.name for case in held}
    log: list[dict[str, Any]] = []

    def enter(run: Run, number: int, name: int | str, before: list[Score]) -> list[Score]:
        """Scores of the prior before round `number`, also in the log."""
        _expect(run, steps, held, number, withheld, report)
        scores = [Score(**read_safetensors(run.samples(number, case))[1]["score"]) for case in held]
        log.append(_row(name, before, scores))
        _write_whole(file, _json(log))
        report(_words(log[-1]))
        return scores

    file = run.work / "log.json"
    start = enter(run, 1, 0, [])
    before = [] if steps.finish else start
    for number in range(1, rounds + 1):
        _learn(run, steps, steps.maximise, number, run.prior(number - 1), run.prior(number), withheld, report)
        scores = enter(run, number + 1, number, before)
        if before and log[-1]["gain"] < -log[-1]["gain_error"]:
            report(f"the prior of round {number} predicts what was held out worse than the one before: no more rounds")
            break
        before = scores
    best = max(log[1 if steps.finish and rounds else 0 :], key=lambda row: float(row["log_likelihood"]))["round"]
    report(f"the best prior is that of round {best}" if best else "no round has bettered the prior to begin with")
    found = run.prior(best)
    if best and steps.finish:
        last = replace(run, start=run.work / "final" / "prior.safetensors", work=run.work / "final")
        _learn(run, steps, steps.finish, best + 1, run.start, last.start, withheld, report)
        enter(last, 1, "final", start)
        found = last.start if log[-1]["gain"] > 0 else run.start
        report(
            "the final prior "
            + ("is kept" if found == last.start else "is worse than the one to begin with, which is kept")
        )
    _write_whole(out, found.read_bytes())
    return log


def _learn(
    run: Run,
    steps: Steps[P],
    learn: Callable[[list[Path], Path, Path], None],
    number: int,
    before: Path,
    target: Path,
    withheld: set[str],
    report: Callable[[str], None],
) -> None:
    """The E-step of round `number`, and what is learned from its samples, from `before` on."""
    _expect(run, steps, run.cases, number, withheld, report)
    files = [run.samples(number, case) for case in run.cases]
    _maximise(run, learn, files, before, target, report)


def read_samples(file: Path, name: str = "image") -> Tensor:
    """The samples (n, y, x) complex64 of a file in a round's folder, or their conditions. Raises MrgenError."""
    return torch.view_as_complex(read_safetensors(file)[0][name].float())


def _claim(run: Run) -> None:
    """Note in the work folder what the run is made from, or compare. Raises MrgenError where that differs."""
    origin = {
        **run.origin,
        "start": hashlib.sha256(run.start.read_bytes()).hexdigest(),
        "slices": hashlib.sha256("\n".join(case.name for case in run.cases).encode()).hexdigest(),
        "settings": run.settings.model_dump(mode="json"),
        "seed": run.seed,
    }
    file = run.work / "run.json"
    with alone(file, -1):
        if not file.exists():
            _write_whole(file, _json(origin))
    found = json.loads(file.read_text())
    differs = [key for key in origin | found if found.get(key) != origin.get(key)]
    if differs:
        raise MrgenError(f"{run.work} is the folder of another run (other {', '.join(differs)}): name a new one")


def held_out(run: Run) -> list[Case]:
    """The slices that lines are withheld of: the same in every round."""
    able = [case for case in run.cases if len(outside_centre(case.mask))]
    if len(able) < 2:
        raise MrgenError("EM measures a prior by lines that it withholds, but the scans have none outside their centre")
    order = torch.randperm(len(able), generator=run.generator("cpu", "held out")).tolist()
    return [able[i] for i in sorted(order[: run.settings.held_out_slices])]


def _expect(
    run: Run, steps: Steps[P], cases: Sequence[Case], number: int, withheld: set[str], report: Callable[[str], None]
) -> None:
    """The E-step for `cases` under the prior before round `number`, shared with other processes."""
    if all(run.samples(number, case).exists() for case in cases):
        return
    prior, w = steps.load(run.prior(number - 1)), run.settings.extrapolation
    scoring = withheld.issuperset(case.name for case in cases)
    if w and steps.extrapolate and number > 2 and not scoring:
        prior = steps.extrapolate(prior, steps.load(run.prior(number - 2)), w)
    each = run.settings.held_out_samples if scoring else run.settings.samples
    size = max(1, SEVERAL // each) if steps.several else 1
    groups = [cases[i : i + size] for i in range(0, len(cases), size)]  # the same in every process: one lock for each
    begun = spoken = time.monotonic()
    for patience in (0, -1):  # those that nobody is at; then, without end of patience, those of the others
        for count, group in enumerate(groups, 1):
            if all(run.samples(number, case).exists() for case in group):
                continue
            with alone(run.samples(number, group[0]), patience) as nobody_else:
                if nobody_else:
                    _sample(run, steps, prior, group, number, withheld)
            now = time.monotonic()
            if now - spoken > REPORT_SECONDS:
                left = (len(groups) - count) * (now - begun) / count / 60
                report(f"round {number}: at slice {count * size} of {len(cases)}, about {left:.1f} min left")
                spoken = now


def _sample(run: Run, steps: Steps[P], prior: P, group: Sequence[Case], number: int, withheld: set[str]) -> None:
    """Write the samples of those of a group that have none; and their scores, where lines are withheld."""
    missing = [case for case in group if not run.samples(number, case).exists()]
    for held in (False, True):
        if alike := [case for case in missing if (case.name in withheld) == held]:
            _sample_alike(run, steps, prior, alike, number, held)


def _sample_alike(run: Run, steps: Steps[P], prior: P, cases: Sequence[Case], number: int, held: bool) -> None:
    settings, whole = run.settings, [case.read().to(run.device) for case in cases]
    given, n, purpose, lines = whole, settings.samples, str(number), list[Tensor]()
    if held:  # the same noise each round: scores differ less
        chosen = [run.generator("cpu", "lines", case.name) for case in cases]
        pairs = [withhold(slice_, settings.held_out, g) for slice_, g in zip(whole, chosen, strict=True)]
        given, lines = ([pair[i] for pair in pairs] for i in range(2))  # type: ignore[assignment]
        n, purpose = settings.held_out_samples, "held out"
    generators = [run.generator(run.device, purpose, case.name) for case in cases]
    try:
        if steps.several:
            drawn = steps.several(given, prior, generators, n)
        else:
            drawn = [steps.sample(slice_, prior, g, n) for slice_, g in zip(given, generators, strict=True)]
    except MrgenError as error:
        raise MrgenError(f"{cases[0].name}{' and others' * (len(cases) > 1)}: {error}") from error
    for i, (case, samples) in enumerate(zip(cases, drawn, strict=True)):
        metadata = {"score": asdict(score(whole[i], lines[i], samples))} if held else {}
        _store(run, steps, prior, case, number, given[i], samples, generators[i], metadata)


def _store(
    run: Run,
    steps: Steps[P],
    prior: P,
    case: Case,
    number: int,
    given: Slice,
    samples: Tensor,
    generator: torch.Generator,
    metadata: dict[str, Any],
) -> None:
    if steps.transport:
        samples = steps.transport(given, samples, prior, generator)
    images = {"image": samples}
    if steps.condition:
        images["condition"] = torch.stack([steps.condition(measured_again(given, x, generator)) for x in samples])
    tensors = {name: torch.view_as_real(x).half() for name, x in images.items()}
    about = {"sigma0": given.sigma0, "R": given.mask.numel() / float(given.mask.sum()), **metadata}
    write_safetensors(run.samples(number, case), tensors, about)


def measured_again(slice_: Slice, image: Tensor, generator: torch.Generator) -> Slice:
    """The slice as it would be if it were of `image` (y, x): y' = A x + z, with new noise."""
    y = slice_.operator().forward(image)
    return replace(slice_, kspace=y + slice_.sigma0 * slice_.mask * complex_noise(y, generator))


def _maximise(
    run: Run,
    learn: Callable[[list[Path], Path, Path], None],
    files: list[Path],
    before: Path,
    target: Path,
    report: Callable[[str], None],
) -> None:
    """The M-step, by one of the processes or by all together."""
    if run.together:
        if not target.exists():
            learn(files, before, target)
        while not target.exists():
            time.sleep(LOOK_SECONDS)
        return
    with alone(target, -1):
        if not target.exists():
            report(f"{target.parent.name}: learning from the samples of {len(files)} slices")
            learn(files, before, target)


def _row(number: int | str, before: list[Score], scores: list[Score]) -> dict[str, Any]:
    """The log of a prior; `gain` is that of its log-likelihood over the prior before, with its standard error."""
    row: dict[str, Any] = {"round": number, **asdict(mean_score(scores))}
    if before:
        gains = torch.tensor([b.log_likelihood - a.log_likelihood for a, b in zip(before, scores, strict=True)])
        row |= {"gain": float(gains.mean()), "gain_error": float(gains.std() / len(gains) ** 0.5)}
    return row


def _words(row: dict[str, Any]) -> str:
    gain = f" ({row['gain']:+.4f} +- {row['gain_error']:.4f})" if "gain" in row else ""
    name = f"prior of round {row['round']}" if row["round"] != "final" else "final prior"
    return (
        f"{name}: held-out log-likelihood {row['log_likelihood']:.4f}{gain}, NRMSE "
        f"{row['nrmse']:.4f}; data fit {row['data_fit']:.3f}, noise kept {row['noise_kept']:.3f}"
    )


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _write_whole(path: Path, content: bytes) -> None:
    """Write so that no process ever sees a part, also where several write the same at once."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
