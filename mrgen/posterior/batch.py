"""How many images the network denoises at a time: as many as the memory of the device holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.prior.denoiser import Denoise
from mrgen.prior.distributed import silent

CPU_IMAGES, GPU_IMAGES = 1, 32  # to begin with; on a CPU a batch is no faster than its items


@dataclass
class Batch:
    """At most `images` in a network call: fewer once memory was short, so slices share it."""

    images: int
    report: Callable[[str], None] = silent

    @classmethod
    def on(cls, device: torch.device | str, report: Callable[[str], None] = silent) -> Batch:
        """What to begin with on a device."""
        return cls(CPU_IMAGES if torch.device(device).type == "cpu" else GPU_IMAGES, report)

    def denoise(self, denoise: Denoise, x_t: Tensor, sigma: Tensor, count: Callable[[int], None]) -> Tensor:
        """`denoise` of x_t (n, y, x), telling `count` after each call how many images it had.

        When the device runs out of memory a call is repeated with half of its images, which is told `report`. Raises
        MrgenError where there is not enough for one.
        """
        parts: list[Tensor] = []
        done = 0
        while done < len(x_t):
            now = slice(done, done + self.images)
            try:
                part = denoise(x_t[now], sigma[now])
            except torch.OutOfMemoryError as error:
                if self.images == 1:
                    size = " x ".join(map(str, x_t.shape[1:]))
                    raise MrgenError(
                        f"the device has not enough free memory for the network on one image of {size}: end what else "
                        "runs there, or take a larger device, or --device cpu"
                    ) from error
            else:
                parts.append(part)
                done += len(part)
                count(len(part))
                continue
            self._halve(len(x_t[now]))  # here, where the exception no longer keeps what the call had allocated
        return torch.cat(parts)

    def _halve(self, tried: int) -> None:
        self.images = max(1, tried // 2)
        torch.cuda.empty_cache()
        self.report(f"note    the device has no memory for {tried} images at a time: going on with {self.images}")

    def counted(self, denoise: Denoise, total: int, progress: Callable[[int, int], None] | None) -> Denoise:
        """`denoise` in batches, which tells `progress(done, total)` of the images done."""
        done = 0

        def count(images: int) -> None:
            nonlocal done
            done += images
            if progress is not None:
                progress(done, total)

        return lambda x_t, sigma: self.denoise(denoise, x_t, sigma, count)
