"""The denoiser D(x_t, sigma) = E[x | x_t], x_t = x + sigma n, on complex images.

Preconditioned as in EDM (Karras et al., arXiv 2206.00364, table 1), for complex noise of total std sigma and
images of total rms sigma_d; a real channel carries half of each variance:

    D = c_skip x_t + c_out net(c_in x_t, c_noise)
    c_skip = sigma_d^2 / (sigma^2 + sigma_d^2)
    c_out  = sigma sigma_d / sqrt(2 (sigma^2 + sigma_d^2))
    c_in   = sqrt(2 / (sigma^2 + sigma_d^2)),    c_noise = log(sigma) / 4

so that the network's input and its target have unit variance in each real channel at every sigma.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mrgen.prior.unet import UNet
from mrgen.settings import Network

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (batch, y, x) complex, sigma (batch,)) -> E[x | x_t] (batch, y, x) complex."""


class Denoiser(nn.Module):
    """A learned `Denoise` with its U-Net; `amp` runs the network in bfloat16 (CUDA only)."""

    def __init__(self, network: Network, sigma_data: float, amp: bool = False) -> None:
        super().__init__()
        self.network = UNet(network.widths, network.blocks, network.patch)
        self.sigma_data, self.amp = sigma_data, amp

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        total = s.square() + self.sigma_data**2
        channels = torch.view_as_real(x_t).permute(0, 3, 1, 2)
        with torch.autocast(x_t.device.type, dtype=torch.bfloat16, enabled=self.amp):
            out = self.network((2 / total).sqrt() * channels, sigma.log() / 4)
        c_skip = self.sigma_data**2 / total
        c_out = s * self.sigma_data / (2 * total).sqrt()
        x = c_skip * channels + c_out * out.float()
        return torch.view_as_complex(x.permute(0, 2, 3, 1).contiguous())


def risk_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """EDM's loss weight (sigma^2 + sigma_d^2) / (sigma sigma_d)^2: a unit loss on the network's output."""
    return (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
