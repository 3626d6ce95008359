"""The denoiser D(x_t, sigma) = E[x | x_t], x_t = x + sigma n, on complex images.

Preconditioned as in EDM (Karras et al., arXiv 2206.00364, table 1), for complex noise of total std sigma and
images of total rms sigma_d; a real channel carries half of each variance:

    D = c_skip x_t + c_out net(c_in x_t, c_noise)
    c_skip = sigma_d^2 / (sigma^2 + sigma_d^2)
    c_out  = sigma sigma_d / sqrt(2 (sigma^2 + sigma_d^2))
    c_in   = sqrt(2 / (sigma^2 + sigma_d^2)),    c_noise = log(sigma) / 4

so that the network's input and its target have unit variance in each real channel at every sigma.

A conditional denoiser D(x_t, u, sigma) = E[x | x_t, u] also sees another image u, which is scaled as x is at sigma = 0.
It takes the two images as one tensor (batch, 2, y, x), so that it too is a `Denoise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mrgen.prior.unet import UNet
from mrgen.settings import Network

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (batch, y, x) complex, sigma (batch,)) -> E[x | x_t] (batch, y, x) complex."""


class Denoiser(nn.Module):
    """A learned `Denoise` with its U-Net, conditional if that is; `amp` runs it in bfloat16 (CUDA only)."""

    def __init__(self, network: Network, sigma_data: float, amp: bool = False) -> None:
        super().__init__()
        self.network = UNet(network.widths, network.blocks, network.patch, channels=4 if network.condition else 2)
        self.condition = network.condition
        self.sigma_data, self.amp = sigma_data, amp
        self.run: Callable[[Tensor, Tensor], Tensor] | None = None  # the network in another way: graphs.py

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        total = s.square() + self.sigma_data**2
        seen = x_t if self.condition else x_t.unsqueeze(1)
        channels, *condition = torch.view_as_real(seen).permute(1, 0, 4, 2, 3)
        run = self.run or self.network
        # no weight is used twice in a call, so there is nothing to cache
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=self.amp, cache_enabled=False):
            scaled = [(2 / total).sqrt() * channels, *(math.sqrt(2) / self.sigma_data * c for c in condition)]
            out = run(torch.cat(scaled, dim=1), sigma.log() / 4)
        c_skip = self.sigma_data**2 / total
        c_out = s * self.sigma_data / (2 * total).sqrt()
        x = c_skip * channels + c_out * out.float()
        return torch.view_as_complex(x.permute(0, 2, 3, 1).contiguous())


def risk_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's loss weight (sigma^2 + sigma_d^2) / (sigma sigma_d)^2: a unit loss on the network's output."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
