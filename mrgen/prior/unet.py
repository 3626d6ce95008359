"""The network: a U-Net on two real channels for images of any size, cheap on a CPU.

Pixel-unshuffle folds `patch` x `patch` pixels into channels, so the widest layers see a quarter of the pixels
(patch = 2). Each level has residual blocks with the noise level as scale and shift of the second normalisation;
skips are added, not concatenated. Images are zero-padded to a multiple of patch * 2^(levels - 1) and cropped.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mrgen.prior.draws import TRITON
from mrgen.settings import GROUPS

EMBEDDING = 128  # width of the noise-level embedding


def norm_silu(x: Tensor, norm: nn.GroupNorm, modulation: Tensor | None = None) -> Tensor:
    """silu(norm(x) (1 + scale) + shift), (batch, width, y, x), for `modulation` (batch, 2 width): scale and shift.

    On a GPU by kernels of our own where there is Triton: the same in fewer passes over memory.
    """
    if x.is_cuda and TRITON:
        from mrgen.prior import fused  # here, as nothing else needs Triton

        return fused.norm_silu(x, norm, modulation)
    h = norm(x)
    if modulation is not None:
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, h, 1 + scale)  # one pass over memory
    return functional.silu(h)


class NoiseEmbedding(nn.Module):
    """Fourier features of c_noise, (batch,) to (batch, EMBEDDING)."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-2, 4, EMBEDDING // 2), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU())

    def forward(self, c_noise: Tensor) -> Tensor:
        phase = math.pi * c_noise[:, None] * self.frequencies
        out: Tensor = self.mlp(torch.cat([phase.cos(), phase.sin()], dim=1))
        return out


class Block(nn.Module):
    """Residual block (batch, width, y, x) whose second normalisation is modulated by the noise level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, width), nn.GroupNorm(GROUPS, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(EMBEDDING, 2 * width)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(norm_silu(x, self.norm1))
        h = self.conv2(norm_silu(h, self.norm2, self.modulation(embedding)))
        out: Tensor = x + h
        return out


class UNet(nn.Module):
    """(batch, channels, y, x), such as real and imaginary part, and c_noise (batch,), to (batch, 2, y, x)."""

    def __init__(self, widths: tuple[int, ...], blocks: int, patch: int, channels: int = 2) -> None:
        super().__init__()
        self.patch, self.multiple = patch, patch * 2 ** (len(widths) - 1)
        self.embedding = NoiseEmbedding()
        self.enter = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(nn.ModuleList(Block(w) for _ in range(blocks)) for w in widths)
        self.decoder = nn.ModuleList(nn.ModuleList(Block(w) for _ in range(blocks)) for w in widths)
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairs)
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairs)
        self.leave = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 2 * patch**2, 3, padding=1)
        )
        nn.init.zeros_(self.leave[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        n_y, n_x = x.shape[-2:]
        x = functional.pad(x, (0, -n_x % self.multiple, 0, -n_y % self.multiple))
        embedding = self.embedding(c_noise)
        h = self.enter(functional.pixel_unshuffle(x, self.patch))
        skips = []
        for level, blocks in enumerate(self.encoder):
            if level > 0:
                h = self.down[level - 1](functional.avg_pool2d(h, 2))
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
            skips.append(h)
        for level in reversed(range(len(self.decoder))):
            if level < len(self.decoder) - 1:
                h = functional.interpolate(self.up[level](h), scale_factor=2.0, mode="nearest") + skips[level]
            for block in self.decoder[level]:  # type: ignore[attr-defined]
                h = block(h, embedding)
        norm, _, last = self.leave  # the SiLU is part of norm_silu
        return functional.pixel_shuffle(last(norm_silu(h, norm)), self.patch)[..., :n_y, :n_x]  # type: ignore[arg-type]
