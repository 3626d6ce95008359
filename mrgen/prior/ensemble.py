"""A denoiser averaged over masks (measurement-score, arXiv 2505.11853), for priors trained in the Fourier basis.

Such a prior was shown images of which some lines carry x and the others noise alone. Given x_t = x + sigma_t n with
all lines, it is outside what it has seen. So each of K masks M_i of the training protocol hides lines of x_t behind
fresh noise n_i, and of every estimate only the lines that it was shown are kept:

    (F x)_k = sum_i M_ik (F D(u_i))_k / sum_i M_ik,    u_i = F^H (M_i F x_t + (1 - M_i) sigma_t n_i)

the average with weights 1 / Pr(k is sampled), with the share of the K masks in place of the probability. A line that
no mask shows is averaged over all estimates.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.masks import sampling_mask
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import Source, complex_noise, integers
from mrgen.settings import Sampling


class MaskEnsemble:
    """A `Denoise` that averages `denoise` over `count` masks drawn as `sampling` says, anew for each image and call.

    Each R of `sampling` is as likely. With `lines` = "all" the estimates are averaged on all lines, shown or not.
    """

    def __init__(
        self,
        denoise: Denoise,
        sampling: Sampling,
        count: int,
        generator: Source,
        lines: Literal["sampled", "all"] = "sampled",
    ) -> None:
        self.denoise, self.sampling, self.count, self.generator, self.lines = denoise, sampling, count, generator, lines

    def masks(self, images: int, n: int) -> Tensor:
        """(count, images, 1, n) on the CPU."""
        drawn = []
        for seed in integers(2**31, images, self.generator).tolist():
            rng = np.random.RandomState(seed)  # of the image, whose masks do not depend on how many others there are
            for _ in range(self.count):
                r = self.sampling.acceleration[rng.randint(len(self.sampling.acceleration))]
                drawn.append(sampling_mask(self.sampling.pattern, n, r, self.sampling.fraction(r), rng))
        return torch.stack(drawn).reshape(images, self.count, 1, n).transpose(0, 1)

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        mask = self.masks(len(x_t), x_t.shape[-1]).to(sigma)
        k_t = fft2c(x_t).expand(self.count, *x_t.shape)
        noise = complex_noise(k_t.transpose(0, 1), self.generator).transpose(0, 1)  # image by image, as the masks
        hidden = sigma[:, None, None] * noise
        u = ifft2c(mask * k_t + (1 - mask) * hidden)
        xhat = self.denoise(u.flatten(0, 1), sigma.repeat(self.count)).reshape(u.shape)
        if self.lines == "all":
            return xhat.mean(0)
        estimate, shown = fft2c(xhat), mask.sum(0)
        average = (mask * estimate).sum(0) / shown.clamp_min(1)
        return ifft2c(torch.where(shown > 0, average, estimate.mean(0)))


def training_sampling(metadata: dict[str, Any]) -> Sampling:
    """How the lines were drawn that a prior with this `metadata` was trained on.

    Raises MrgenError for a prior that was not trained in the Fourier basis.
    """
    objective = str(metadata.get("objective"))
    if not objective.endswith("-fourier"):
        raise MrgenError(
            f"a mask ensemble needs a prior trained in the Fourier basis, this one was trained by {objective}: "
            'set ensemble = 0 in the recipe, or train with basis = "fourier"'
        )
    return Sampling(**metadata["protocol"]["sampling"])
