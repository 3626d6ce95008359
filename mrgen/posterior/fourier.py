"""`fourier` guidance: in closed form, as A is diagonal in Fourier space for one coil whose map is 1 (0 outside).

There y = M F x + z, and V_t = F^H diag(v) F of mrgen.posterior.proximal is diagonal too. Frequency by frequency

    x_k = D_k + v M / (v M + sigma0^2) (y - D)_k,     Var[x_k | x_t, y] = v sigma0^2 / (v M + sigma0^2)

as in DDRM, whose singular vectors these are (Kawar et al., arXiv 2201.11793); the solve of `Proximal` without CG.
"""

from __future__ import annotations

from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.posterior.proximal import Proximal
from mrgen.prior.denoiser import Denoise
from mrgen.prior.draws import Source, complex_noise
from mrgen.scans.scan import Slice


def diagonal_in_fourier(slice_: Slice) -> bool:
    """Whether the scan has one coil whose map is 1 or 0 everywhere: then y = M F x for an x that is 0 where it is."""
    return len(slice_.maps) == 1 and bool(((slice_.maps == 0) | ((slice_.maps - 1).abs() < 1e-5)).all())


class ClosedForm(Proximal):
    """`Proximal` for one coil with unit map, without iterations. Raises MrgenError for any other scan."""

    def __init__(
        self,
        prior: Denoise,
        slice_: Slice,
        power: Tensor | None,
        *,
        draw: Source | None = None,
        draw_above: float = 0.0,
    ) -> None:
        if not diagonal_in_fourier(slice_):
            raise MrgenError(
                "guidance 'fourier' is for one coil whose map is 1 in the object, this scan has "
                f'{len(slice_.kspace)} with maps that vary: take guidance = "proximal" in the recipe'
            )
        super().__init__(prior, slice_, power, iterations=0, draw=draw, draw_above=draw_above)

    def __call__(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        mean = self.support * self.prior(x_t, sigma)
        noise, mask, v = self.slice.sigma0**2, self.slice.mask, self.covariance(mean, sigma[0])
        k = fft2c(mean)
        k = k + v * mask / (v * mask + noise) * (self.slice.kspace[0] - k)
        if self.draw is not None and sigma[0] > self.draw_above:
            k = k + (v * noise / (v * mask + noise)).sqrt() * complex_noise(k, self.draw)
        return self.support * ifft2c(k)
