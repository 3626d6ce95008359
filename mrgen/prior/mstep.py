"""The M-step of EM with a network: supervised learning from posterior samples, warm-started.

With eta > 1 it is over-relaxed. For x_t = x + sigma_t n, x a posterior sample, the target is

    x + (eta - 1) (x - D_old(x_t)),   whose mean given x_t is   D_old + eta (E[x | x_t] - D_old),

eta times the step of plain EM. In the linear case EM's step shrinks the error of D_old by a factor between 0 and 1, so
eta < 2 converges; what shrinks slowest gets there in 1 / eta of the rounds. The target's variance grows with eta^2.

It is gated, as noisy data serve high noise levels only in Ambient Diffusion Omni (Daras et al., arXiv 2506.10038).
While the prior still believes in noise, the samples of a scan keep some: at most that of its SENSE image, whose std per
pixel is s = sqrt(R) sigma0, without the amplification by the coils. A denoiser that takes a variance of s^2 for anatomy
lets s^2 / (s^2 + sigma_t^2) of it through, so a sample is used at sigma_t >= gate s alone, where that is below
1 / (1 + gate^2): 14 % for 2.5. Lower levels are learned from the cleaner scans, whose samples lose their noise in few
rounds. At every level at least a share LEFT of the scans must remain; with q the LEFT-quantile of s over the scans,

    floor = gate sqrt(max(0, s^2 - q^2))

counts only the noise that a scan has beyond the cleanest, so scans that are all alike serve every level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from mrgen.prior.data import TrainingSet
from mrgen.prior.denoiser import Denoise
from mrgen.prior.distributed import is_first, local_device
from mrgen.prior.draws import Source, complex_noise
from mrgen.prior.em import read_samples
from mrgen.prior.files import FORMAT, load_prior, read_safetensors, save_prior
from mrgen.prior.objectives import CleanBatch, Objective, beside
from mrgen.prior.train import train
from mrgen.settings import Network, Protocol, Training

LEFT = 0.15
HELD = 2**32  # bytes of samples that an M-step keeps in memory
WARMUP = 0.1  # share of the updates that warm-up takes at most where a network is trained further


def from_samples(old: Denoise | None, eta: float, condition: bool = False) -> Objective:
    """The supervised risk per pixel (batch,), with the over-relaxed target where the frozen denoiser `old` is given.

    With `condition` items are (2, y, x): an image and what is shown to the denoiser, and to `old`, beside its x_t.
    """

    def objective(
        denoise: Denoise, batch: CleanBatch, sigma_t: Tensor, generator: Source, training: Training
    ) -> Tensor:
        x = batch.image[:, 0] if condition else batch.image
        level = beside(sigma_t, x)
        seen = x + level.reshape(-1, 1, 1) * complex_noise(x, generator)
        if condition:
            seen = torch.stack([seen, batch.image[:, 1]], dim=1)
        target = x
        if old is not None:
            with torch.no_grad():
                target = x + (eta - 1) * (x - old(seen, level))
        return (denoise(seen, level) - target).abs().square().mean((1, 2))

    return objective  # type: ignore[return-value]


def noise_floors(s: Tensor, gate: float) -> Tensor:
    """The lowest noise level that the samples of each scan serve, of the noise std `s` of its image; both (scan,)."""
    cleanest = s.quantile(LEFT, interpolation="higher")
    return gate * (s.square() - cleanest.square()).clamp_min(0).sqrt()


class SampleFiles(Sequence[Tensor]):
    """The first `samples` samples (y, x) of every file of a round, read when they are asked for.

    As many as have room in HELD stay on `device` from then on. With `condition` they are (2, y, x): each with its
    condition.
    """

    def __init__(self, files: list[Path], samples: int, condition: bool, device: str = "cpu") -> None:
        self.files, self.samples, self.condition, self.device = files, samples, condition, device
        self.held: dict[int, Tensor] = {}
        self.room = HELD

    def __len__(self) -> int:
        return len(self.files) * self.samples

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index in self.held:
            return self.held[index]
        file, sample = divmod(index, self.samples)
        names = ("image", "condition") if self.condition else ("image",)
        images = [read_samples(self.files[file], name)[sample] for name in names]
        item = (torch.stack(images) if self.condition else images[0].clone()).to(self.device)
        if item.nbytes <= self.room:
            self.held[index], self.room = item, self.room - item.nbytes
        return item


def learn_from_samples(
    files: list[Path],
    before: Path,
    target: Path,
    protocol: Protocol,
    *,
    device: str,
    report: Callable[[str], None] = print,
) -> None:
    """Train a network on the samples in `files` and write it to `target`, with its loss curve beside it.

    It goes on from the prior `before` where that is the protocol's network; else it is trained from scratch for all of
    the protocol's `training.steps`. A training that was broken off is resumed. Under torchrun the first process writes
    and reports. A conditional network is not gated: it must know every scan, the noisy ones too, at all levels.
    """
    em, first = protocol.em, is_first()
    old, (weights, metadata) = load_prior(before, device, amp=device != "cpu"), read_safetensors(before)
    same = metadata["format"] == FORMAT and Network(**metadata["network"]) == protocol.network
    same = same and metadata["sigma_data"] == protocol.training.sigma_data
    start = {name: weight.float() for name, weight in weights.items()} if same else None
    changes: dict[str, Any] = {"objective": "supervised", "steps": em.updates if same else protocol.training.steps}
    if same:  # a network that has learned needs no more than Adam, whose averages begin anew
        changes["warmup"] = min(protocol.training.warmup, int(WARMUP * em.updates))
    if first:
        report(f"the network {'goes on from the prior before' if same else 'begins from scratch'}")
    condition = protocol.network.condition
    samples = SampleFiles(files, em.samples, condition, local_device(device))
    relaxing = em.relaxation > 1 and old.conditional == condition
    about = [_about(file) for file in files for _ in range(em.samples)]
    shapes, s = [shape for shape, _ in about], torch.tensor([s for _, s in about])
    floors = noise_floors(s, 0 if condition else em.gate)
    trained = train(
        TrainingSet(samples, shapes, f"{before.parent.name}-{old.sha256[:16]}-{len(samples)}", floors),
        protocol.model_copy(update={"training": protocol.training.model_copy(update=changes)}),
        target.with_name("training.safetensors"),
        device=device,
        start=start,
        objective=from_samples(old if relaxing else None, em.relaxation, condition),
        report=report,
    )
    if not first:
        return
    learned, story = read_safetensors(trained)
    stage = {
        "objective": "supervised on posterior samples of the training scans (M-step of EM)",
        "updates": story["steps_done"],
        "batch": protocol.training.batch,
    }
    save_prior(target, learned, {**story, "objective": "em", "stages": [*stages_of(metadata), stage]})
    trained.unlink()
    trained.with_suffix(".checkpoint.safetensors").unlink()


def _about(file: Path) -> tuple[tuple[int, int], float]:
    """Matrix size of the samples in a file, and sqrt(R) sigma0 of the scan that they are of."""
    tensors, metadata = read_safetensors(file)
    _, n_y, n_x, _ = tensors["image"].shape
    return (n_y, n_x), metadata["R"] ** 0.5 * metadata["sigma0"]


def stages_of(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """How a prior came about, one entry a training, each of which used the prior before."""
    if metadata["format"] != FORMAT:
        return [{"objective": "a Gaussian fitted to the data"}]
    own = {
        "objective": metadata["objective"],
        "updates": metadata["steps_done"],
        "batch": metadata["protocol"]["training"]["batch"],
    }
    stages: list[dict[str, Any]] = metadata.get("stages", [own])
    return stages
