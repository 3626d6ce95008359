"""The training loop: one function, read top to bottom; it runs the same on a CPU and on a GPU.

All randomness of step k comes from a generator seeded with (seed, k), so a resumed run equals an uninterrupted
one, on a CPU to the bit.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.prior.data import TrainingSet
from mrgen.prior.denoiser import Denoise, Denoiser, risk_weight
from mrgen.prior.files import read_safetensors, save_prior, write_safetensors
from mrgen.prior.objectives import OBJECTIVES, CleanBatch, MeasuredBatch, Objective
from mrgen.settings import Protocol, Training

NOTICE = "Research use only. Not for diagnostic use."
CHECKPOINT_SECONDS = 120.0
REPORT_SECONDS = 5.0


def draw_sigma(batch: int, training: Training, generator: torch.Generator, device: str) -> Tensor:
    """Noise levels (batch,): log-normal about sigma_median, one from each of `batch` equal-probability strata."""
    u = torch.rand(batch, generator=generator, device=device)
    quantile = (torch.arange(batch, device=device) + u) / batch
    z = math.sqrt(2) * torch.erfinv((2 * quantile - 1).clamp(-0.9999, 0.9999))
    return (training.sigma_median * torch.exp(training.sigma_spread * z)).clamp(training.sigma_min, training.sigma_max)


def any_pose(denoise: Denoise, generator: torch.Generator, device: str) -> Denoise:
    """The denoiser seen through a random flip, transpose and global phase: T^-1 D(T x).

    These maps are unitary, so white noise stays white and every objective stays valid.
    """
    flip_y, flip_x, swap = (torch.rand(3, generator=generator, device=device) < 0.5).tolist()
    axes = [a for a, f in ((-2, flip_y), (-1, flip_x)) if f]
    angle = 2 * math.pi * torch.rand((), generator=generator, device=device)
    phase = torch.polar(torch.ones_like(angle), angle)

    def posed(x: Tensor, sigma: Tensor) -> Tensor:
        x = (phase * x).flip(axes)
        x = denoise(x.mT if swap else x, sigma)
        return phase.conj() * (x.mT if swap else x).flip(axes)

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
) -> Path:
    """Train a prior and write it to `out` (.safetensors), with its loss curve and checkpoint beside it.

    `start` are weights to begin from; `objective` replaces the one that the protocol names; `seconds` ends the call
    early, leaving a checkpoint to resume from and the prior as it stands. Raises MrgenError when the checkpoint belongs
    to other data or settings, or on NaN.
    """
    training, begun = protocol.training, time.monotonic()
    steps = steps or training.steps
    name = training.objective if training.objective == "supervised" else f"gsure-{training.basis}"
    objective = objective or OBJECTIVES[name]
    torch.manual_seed(training.seed)
    denoiser = Denoiser(protocol.network, training.sigma_data, amp=device != "cpu")
    if start is not None:
        denoiser.load_state_dict(start)
    denoiser = denoiser.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = dict(denoiser.named_parameters())
    average = {k: p.detach().clone() for k, p in parameters.items()}
    optimiser = torch.optim.Adam(parameters.values(), lr=training.learning_rate, betas=(0.9, 0.99))
    identity = {"protocol": protocol.model_dump(mode="json"), "data": data.fingerprint, "steps": steps}

    checkpoint = out.with_suffix(".checkpoint.safetensors")
    step, log = 0, []
    if resume and checkpoint.exists():
        step = _restore(checkpoint, identity, parameters, average, optimiser)
        log = _read_log(out, step)
        report(f"resuming {out.name} at step {step} of {steps}")

    report(f"training {name}: {len(data.shapes)} slices, {sum(p.numel() for p in parameters.values()):,} weights, "
           f"{steps} updates of {training.batch} on {device}")  # fmt: skip
    recent: list[tuple[int, Tensor, Tensor]] = []
    first, spoken, saved = step, time.monotonic(), time.monotonic()
    batches = data.batches(step, training.batch, training.seed, device)
    while step < steps and time.monotonic() - begun < seconds:
        batch = next(batches)
        generator = torch.Generator(device).manual_seed(training.seed * 1_000_000_007 + step)
        size = len(batch.image if isinstance(batch, CleanBatch) else batch.kspace)
        sigma_t = draw_sigma(size, training, generator, device)
        risk = objective(any_pose(denoiser, generator, device), batch, sigma_t, generator, training)
        loss = (loss_weight(sigma_t, batch, training.sigma_data) * risk).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, training)
        optimiser.step()
        keep = min(training.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - keep)
        step += 1

        recent.append((step, sigma_t, risk.detach()))
        now = time.monotonic()
        if now - spoken > REPORT_SECONDS or step == steps:
            rows = _collect(recent, out.name)
            log += rows
            rate = (step - first) / (now - begun)
            level = sum(row[2] for row in rows) / len(rows)
            left = (steps - step) / rate / 60
            report(f"step {step}/{steps}  risk {level:.5f}  {rate:.1f} steps/s  {left:.1f} min left")
            recent, spoken = [], now
            if now - saved > CHECKPOINT_SECONDS:  # only here, after _collect has ruled out NaN and emptied recent
                _save(checkpoint, identity, step, parameters, average, optimiser)
                _write_log(out, log)
                saved = now

    if step > first:
        log += _collect(recent, out.name)
        _save(checkpoint, identity, step, parameters, average, optimiser)
        _write_log(out, log)
    metadata: dict[str, Any] = {
        "mrgen": __version__,
        "network": protocol.network.model_dump(mode="json"),
        "sigma_data": training.sigma_data,
        "sigma_min": training.sigma_min,
        "sigma_max": training.sigma_max,
        "scaling": "99th percentile of the RSS of the ACS-only image is 1",
        "objective": name,
        "steps_done": step,
        "notice": NOTICE,
        **identity,
    }
    save_prior(out, average, metadata)
    return out


Row = tuple[int, float, float]  # step, geometric mean of its sigma_t, mean risk per pixel


def _collect(recent: list[tuple[int, Tensor, Tensor]], name: str) -> list[Row]:
    """Rows of the steps since the last report; NaN stops here."""
    rows = []
    for number, sigma, risk in recent:
        row = (number, float(sigma.log().mean().exp()), float(risk.mean()))
        if not math.isfinite(row[2]):
            raise MrgenError(f"the loss of {name} is not finite at step {number}; lower the learning rate")
        rows.append(row)
    return rows


def _save(path: Path, identity: dict[str, Any], step: int, parameters: dict[str, Any], average: dict[str, Tensor],
          optimiser: torch.optim.Adam) -> None:  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, p in parameters.items():
        state = optimiser.state[p]
        tensors |= {f"weight/{name}": p, f"average/{name}": average[name]}
        tensors |= {f"mean/{name}": state["exp_avg"], f"square/{name}": state["exp_avg_sq"]}
    write_safetensors(path, tensors, {**identity, "step": step})


def _restore(path: Path, identity: dict[str, Any], parameters: dict[str, Any], average: dict[str, Tensor],
             optimiser: torch.optim.Adam) -> int:  # fmt: skip
    tensors, metadata = read_safetensors(path)
    differs = [k for k in identity if metadata.get(k) != identity[k]]
    if differs:
        raise MrgenError(f"{path.name} is of another run (other {', '.join(differs)}): remove it or use --no-resume")
    step = int(metadata["step"])
    for name, p in parameters.items():
        with torch.no_grad():
            p.copy_(tensors[f"weight/{name}"])
            average[name].copy_(tensors[f"average/{name}"])
        optimiser.state[p] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.empty_like(p).copy_(tensors[f"mean/{name}"]),
            "exp_avg_sq": torch.empty_like(p).copy_(tensors[f"square/{name}"]),
        }
    return step


def _write_log(out: Path, log: list[Row]) -> None:
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "sigma", "risk"])
        writer.writerows(log)

    from matplotlib.figure import Figure  # here, as it is slow to import

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    width = max(1, len(log) // 200)
    means = [sum(r[2] for r in log[i : i + width]) / width for i in range(0, len(log) - width + 1, width)]
    axes.plot([log[i][0] for i in range(0, len(log) - width + 1, width)], means, color="0.2")
    scale = "symlog" if min(means, default=1) <= 0 else "log"
    axes.set(xlabel="update", ylabel="estimated risk per pixel", yscale=scale)
    axes.set_title(f"{out.stem}: mean over noise levels", fontsize=9)
    figure.savefig(out.with_suffix(".png"), dpi=120)


def _read_log(out: Path, step: int) -> list[Row]:
    path = out.with_suffix(".csv")
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [(int(r["step"]), float(r["sigma"]), float(r["risk"])) for r in csv.DictReader(file)]
    return [r for r in rows if r[0] <= step]
