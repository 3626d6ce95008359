"""The training loop: one function, read top to bottom; it runs the same on a CPU, on a GPU and under torchrun on many.

All randomness of step k comes from generators seeded with (seed, k), so a resumed run equals an uninterrupted one, on a
CPU to the bit, and several processes make the update that one would make of the same batch, up to rounding.
"""

from __future__ import annotations

import cmath
import math
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.prior.checkpoint import restore_checkpoint, save_checkpoint, stop_signals
from mrgen.prior.data import TrainingSet
from mrgen.prior.denoiser import Denoise, Denoiser, risk_weight
from mrgen.prior.distributed import join, silent
from mrgen.prior.draws import draws_of_step, stream
from mrgen.prior.files import save_prior
from mrgen.prior.graphs import Graphs
from mrgen.prior.objectives import OBJECTIVES, CleanBatch, MeasuredBatch, Objective, beside
from mrgen.prior.progress import Log, Recent
from mrgen.prior.update import Update
from mrgen.settings import Protocol, Training

NOTICE = "Research use only. Not for diagnostic use."
CHECKPOINT_SECONDS = 120.0
REPORT_SECONDS = 5.0
SHEETS, SHEET_SECONDS = 20, 60.0  # at most so many in a whole training; at least so long between them


def draw_sigma(floor: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    """Noise levels (batch,): log-normal about sigma_median, one from each of `batch` equal-probability strata.

    The law of each item is truncated below at its `floor` (batch,), which is 0 for an item that serves all levels.
    """
    batch, median, spread = len(floor), training.sigma_median, training.sigma_spread
    quantile = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    lowest = torch.special.ndtr((floor / median).log() / spread)
    quantile = lowest + (1 - lowest) * quantile
    z = math.sqrt(2) * torch.erfinv((2 * quantile - 1).clamp(-0.9999, 0.9999))
    return (median * torch.exp(spread * z)).maximum(floor).clamp(training.sigma_min, training.sigma_max)


def any_pose(denoise: Denoise, generator: torch.Generator) -> Denoise:
    """The denoiser seen through a random flip, transpose and global phase: T^-1 D(T x).

    These maps are unitary, so white noise stays white and every objective stays valid.
    """
    flip_y, flip_x, swap = (torch.rand(3, generator=generator) < 0.5).tolist()
    axes = [a for a, f in ((-2, flip_y), (-1, flip_x)) if f]
    phase = cmath.rect(1, 2 * math.pi * float(torch.rand((), generator=generator)))

    def posed(x: Tensor, sigma: Tensor) -> Tensor:
        x = (phase * x).flip(axes)
        x = denoise(x.mT if swap else x, sigma)
        return phase.conjugate() * (x.mT if swap else x).flip(axes)

    return posed


def loss_weight(sigma_t: Tensor, batch: MeasuredBatch | CleanBatch, sigma_data: float) -> Tensor:
    """Weight of each item's risk (batch,): EDM's, levelled off where GSURE's own noise, about 2 sigma0, rules."""
    if isinstance(batch, CleanBatch):
        return risk_weight(sigma_t, sigma_data)
    return risk_weight(torch.hypot(sigma_t, 2 * batch.sigma0), sigma_data)


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Linear warm-up, constant, then a cosine to zero over the last `decay` of the steps."""
    warm = min(1.0, (step + 1) / max(1, training.warmup))
    left = (steps - step) / max(1.0, training.decay * steps)
    return training.learning_rate * warm * 0.5 * (1 - math.cos(math.pi * min(1.0, left)))


def train(
    data: TrainingSet,
    protocol: Protocol,
    out: Path,
    *,
    device: str = "cpu",
    resume: bool = True,
    steps: int | None = None,
    start: dict[str, Tensor] | None = None,
    objective: Objective | None = None,
    seconds: float = math.inf,
    report: Callable[[str], None] = print,
    sheet: Callable[[Denoise, Path], None] | None = None,
) -> Path:
    """Train a prior and write it to `out` (.safetensors), with its loss by noise level and checkpoint beside it.

    `start` are weights to begin from; `objective` replaces the one that the protocol names; `seconds` ends the call
    early, leaving a checkpoint to resume from and the prior as it stands; `sheet` is given the averaged denoiser, and
    where to draw its samples, at the end and now and then before. Under torchrun every process calls this with the same
    arguments and the first one writes and reports. Raises MrgenError when the checkpoint belongs to other data or
    settings, on NaN, when SIGTERM or Ctrl-C ended the training (a checkpoint is left), or when another process was
    lost.
    """
    training, begun = protocol.training, time.monotonic()
    processes = join(device)
    device, first_process = processes.device, processes.rank == 0
    report = report if first_process else silent
    steps = steps or training.steps
    objective = objective or OBJECTIVES[training.objective]
    name = training.objective if training.objective == "supervised" else f"{training.objective}-{training.basis}"
    torch.manual_seed(training.seed)
    denoiser = Denoiser(protocol.network, training.sigma_data, amp=device != "cpu")
    if start is not None:
        denoiser.load_state_dict(start)
    denoiser = denoiser.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device != "cpu" and training.accumulate == 1:  # several parts are for a memory that recordings would fill
        denoiser.run = Graphs(denoiser.network)
    parameters = dict(denoiser.named_parameters())
    update = Update(parameters, training.ema)
    average, optimiser = update.average, update.optimiser
    no_matter = {"accumulate"}  # to the result, beyond rounding
    settings = protocol.model_dump(mode="json", exclude={"training": no_matter})
    identity = {"protocol": settings, "data": data.fingerprint, "steps": steps}

    checkpoint = out.with_suffix(".checkpoint.safetensors")
    step, log = 0, Log.empty(training, steps)
    if resume and checkpoint.exists():
        step = restore_checkpoint(checkpoint, identity, parameters, average, optimiser, log.sums)
        report(f"resuming {out.name} at step {step} of {steps}")
    if not processes.agree(step, data.fingerprint):
        raise MrgenError(
            "the processes do not see the same data and checkpoint: put scans, cache and output where all can read them"
        )

    report(f"training {name}: {len(data.shapes)} slices, {sum(p.numel() for p in parameters.values()):,} weights, "
           f"{steps} updates of {training.batch} on {processes.count} x {device.partition(':')[0]}")  # fmt: skip
    model, recent = processes.parallel(denoiser), Recent([], [])
    mine = data.shares(
        step,
        training.batch,
        training.seed,
        device,
        processes.rank,
        processes.count,
        training.accumulate,
        combined=training.basis == "fourier",
    )
    first, spoken, drawn = step, time.monotonic(), begun
    saved = -math.inf  # the first report brings a checkpoint, so that a disk without room is found at once
    (late,), stop = processes.any(spoken - begun >= seconds), False
    with stop_signals() as signals, closing(mine) as shares:
        while step < steps and not (late or stop):
            optimiser.zero_grad(set_to_none=True)
            for part in range(training.accumulate):
                share = next(shares)
                common = stream(training.seed, step)
                levels = draw_sigma(share.floors, training, common)
                denoise = any_pose(model, common)
                draws = draws_of_step(training.seed, step, share.positions or range(1), device)
                places = torch.tensor(share.positions or range(1))
                sigma_t, counted = levels[places], len(share.positions) > 0
                with processes.averaging(model, part == training.accumulate - 1):
                    risk = objective(denoise, share.items, sigma_t, draws, training)
                    weighted = beside(loss_weight(sigma_t, share.items, training.sigma_data), risk) * risk
                    loss = counted * processes.count / len(levels) * weighted.sum()  # the processes are averaged over
                    loss.backward()  # type: ignore[no-untyped-call]
                recent.add(part == 0, levels, places, counted * risk.detach())
            update(step, learning_rate(step, steps, training))
            step += 1

            now = time.monotonic()
            mark = step * SHEETS // steps > (step - 1) * SHEETS // steps and now - drawn >= SHEET_SECONDS
            if sheet is not None and first_process and (mark or step == steps):
                averaged = Denoiser(protocol.network, training.sigma_data, amp=device != "cpu").to(device)
                averaged.load_state_dict(average)
                with torch.no_grad():
                    sheet(averaged, out.with_suffix(".samples.png"))
                drawn = now
            due, late, stop = processes.any(now - spoken > REPORT_SECONDS, now - begun >= seconds, bool(signals))
            if due or late or stop or step == steps:
                level, rate = recent.move(log, step, processes, out.name), (step - first) / (now - begun)
                left, spoken = (steps - step) / rate / 60, now
                ended = late or stop or step == steps
                if first_process and (ended or now - saved > CHECKPOINT_SECONDS):  # after NaN has been ruled out
                    save_checkpoint(checkpoint, identity, step, parameters, average, optimiser, log.sums)
                    if not ended:
                        log.write(out)
                    saved = now
                report(f"step {step}/{steps}  risk {level:.5f}  {rate:.1f} steps/s  {left:.1f} min left")
    if first_process:
        log.write(out)
    if stop:
        cause = signals[0] if signals else "a signal to another process"
        raise MrgenError(
            f"{cause} stopped the training at step {step} of {steps}; "
            f"{checkpoint.name} is saved, and the same command goes on from there"
        )
    if first_process:
        metadata: dict[str, Any] = {
            "mrgen": __version__,
            "network": protocol.network.model_dump(mode="json"),
            "sigma_data": training.sigma_data,
            "sigma_min": training.sigma_min,
            "sigma_max": training.sigma_max,
            "matrix": list(data.matrix),
            "scaling": "99th percentile of the RSS of the ACS-only image is 1",
            "objective": name,
            "steps_done": step,
            "notice": NOTICE,
            **identity,
        }
        save_prior(out, average, metadata)
    processes.any(True)  # nobody looks for what the first has not written yet
    return out
