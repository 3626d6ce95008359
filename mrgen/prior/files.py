"""Prior files: safetensors with half-precision weights and JSON metadata; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.prior.denoiser import Denoise, Denoiser
from mrgen.prior.gaussian import Gaussian
from mrgen.prior.graphs import Frozen
from mrgen.settings import Network

FORMAT = "mrgen-prior-1"
GAUSSIAN_FORMAT = "mrgen-gaussian-1"


@dataclass(frozen=True)
class Prior:
    """A trained denoiser, or a fitted Gaussian's, with where it came from; call it as D(x_t, sigma)."""

    denoiser: Denoise
    metadata: dict[str, Any]
    sha256: str

    @property
    def sigma_min(self) -> float:
        """Smallest noise level the prior was trained on, in scaled image units."""
        return float(self.metadata["sigma_min"])

    @property
    def sigma_max(self) -> float:
        """Largest noise level the prior was trained on, in scaled image units."""
        return float(self.metadata["sigma_max"])

    @property
    def conditional(self) -> bool:
        """Whether the denoiser also sees a simple reconstruction of the scan, and so is no prior by itself."""
        return bool(self.metadata.get("network", {}).get("condition"))

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.denoiser(x_t, sigma)


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write through a temporary file, so that an interruption leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, partial, {"mrgen": json.dumps(metadata)})
    os.replace(partial, path)


def read_safetensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file written by `write_safetensors`. Raises MrgenError."""
    if not path.is_file():
        raise MrgenError(f"no such file: {path.name}")
    try:
        with safe_open(path, "pt", device=device) as file:
            metadata = json.loads((file.metadata() or {})["mrgen"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError):
        expected = "expected safetensors with mrgen metadata"
        raise MrgenError(f"{path.name} is not a file that mrgen wrote; {expected}") from None


def save_prior(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a prior: `weights` in float16, `metadata` with network, sigma_data, sigma_min and sigma_max."""
    write_safetensors(path, {k: v.half() for k, v in weights.items()}, {"format": FORMAT, **metadata})


def save_gaussian(path: Path, gaussian: Gaussian, metadata: dict[str, Any]) -> None:
    """Write a Gaussian prior in float32, `metadata` with sigma_data, sigma_min and sigma_max."""
    write_safetensors(path, {"profile": gaussian.profile}, {"format": GAUSSIAN_FORMAT, **metadata})


def load_prior(path: Path, device: str = "cpu", amp: bool = False) -> Prior:
    """The prior of a file, a network's in float32 and evaluation mode, or a Gaussian's. Raises MrgenError."""
    weights, metadata = read_safetensors(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        if metadata.get("format") == GAUSSIAN_FORMAT:
            return Prior(Gaussian(weights["profile"].to(device)), metadata, digest)
        if metadata.get("format") != FORMAT:
            raise MrgenError(f"{path.name} is not a prior ({metadata.get('format')!r} instead of {FORMAT!r})")
        denoiser = Denoiser(Network(**metadata["network"]), float(metadata["sigma_data"]), amp)
        denoiser.load_state_dict({k: v.float() for k, v in weights.items()})
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise MrgenError(f"{path.name}: the prior's metadata and weights do not belong together ({reason})") from None
    denoiser = denoiser.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if torch.device(device).type == "cuda":
        denoiser.run = Frozen(denoiser.network)
    return Prior(denoiser, metadata, digest)


def bundled_prior() -> Path:
    """The prior that ships with mrgen."""
    return Path(__file__).with_name("head.safetensors")
