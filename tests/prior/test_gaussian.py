"""The fitted Gaussian: a known spectrum from undersampled noisy data, on any matrix, and Wiener's filter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, grid, ifft2c
from mrgen.prior.files import load_prior, read_safetensors, save_gaussian, write_safetensors
from mrgen.prior.gaussian import Gaussian, fit_gaussian
from mrgen.prior.spectrum import BINS, Rings
from mrgen.scans.scan import Slice

SIGMA0 = 0.1
SHAPES = ((48, 40), (40, 56))


def spectrum(shape: tuple[int, int]) -> Tensor:
    """P (ky, kx), falling from 1 in the centre to 0.01 at the edge."""
    y, x = grid(shape)
    return (1 + 20 * (y.square() + x.square()).clamp_max(1)).pow(-1.5)


def slices(count: int) -> Iterator[tuple[Slice, Tensor]]:
    """Stationary images seen by 4 smooth coils of unequal strength: 8 lines in the centre always, others with 1/3."""
    for number in range(count):
        g = torch.Generator().manual_seed(number)
        shape = SHAPES[number % 2]
        n = shape[1]
        y, x = grid(shape)
        maps = torch.stack(
            [torch.exp(-((y - a) ** 2 + (x - b) ** 2) / 4 + 1j * a * x) for a in (-1, 1) for b in (-1, 1)]
        )
        maps = maps / maps.abs().square().sum(0).sqrt()
        centre = (torch.arange(n) - n // 2).abs() < 4
        mask = (centre | (torch.rand(n, generator=g) < 1 / 3)).float()
        x0 = ifft2c(spectrum(shape).sqrt() * torch.randn(shape, dtype=torch.complex64, generator=g))
        noise = SIGMA0 * torch.randn(maps.shape, dtype=torch.complex64, generator=g)
        yield Slice(mask * (fft2c(maps * x0) + noise), mask, maps, SIGMA0, 1.0, None), torch.where(centre, 1.0, 3.0)


def test_it_recovers_a_known_spectrum_from_undersampled_noisy_data() -> None:
    fitted = fit_gaussian(slices(120))
    for shape in (*SHAPES, (64, 64)):
        p = spectrum(shape)
        inner = ((grid(shape)[0].square() + grid(shape)[1].square()) < 0.9) & (p < 0.8)  # centre: a handful of points
        assert (p[inner] < SIGMA0**2 * 2).any()  # down to where a coil's noise is half of the power
        ratio = (fitted.power(shape) / p)[inner]
        assert float(ratio.mean()) == pytest.approx(1, abs=0.05)
        assert float((ratio - 1).abs().mean()) < 0.05
        assert float((ratio - 1).abs().max()) < 0.15


def test_lines_that_are_always_sampled_count_no_more_than_others() -> None:
    """A spectrum along ky, the lines of the centre: the rings have the means over all points, not those over lines."""
    shape, g = (48, 40), torch.Generator().manual_seed(3)
    y, x = grid(shape)
    p = (-20 * x.square()).exp() + 0 * y
    maps, centre = torch.ones(1, *shape) + 0j, (torch.arange(40) - 20).abs() < 3

    def scans() -> Iterator[tuple[Slice, Tensor]]:
        for _ in range(200):
            mask = (centre | (torch.rand(40, generator=g) < 1 / 3)).float()
            kspace = mask * p.sqrt() * torch.randn(1, *shape, dtype=torch.complex64, generator=g)
            yield Slice(kspace, mask, maps, 1e-3, 1.0, None), torch.where(centre, 1.0, 3.0)

    rings = Rings(torch.ones(40), shape)
    exact = (rings.total(p) / rings.count)[rings.known]
    torch.testing.assert_close(fit_gaussian(scans()).profile[rings.known], exact, rtol=0.1, atol=0)


def test_rings_without_a_point_are_filled_from_their_neighbours() -> None:
    fitted = fit_gaussian(slices(1))
    assert fitted.profile.shape == (BINS,)
    assert torch.isfinite(fitted.profile).all()
    assert (fitted.profile > 0).all()


def test_it_denoises_as_wiener_does() -> None:
    g = torch.Generator().manual_seed(1)
    gaussian = Gaussian(torch.linspace(0, -3, BINS).exp())
    shape, sigma = (48, 40), torch.tensor([0.3, 1.0])
    p = gaussian.power(shape)
    x = ifft2c(p.sqrt() * torch.randn(2000, *shape, dtype=torch.complex64, generator=g))
    s = sigma.repeat(1000)
    n = torch.randn(x.shape, dtype=torch.complex64, generator=g)
    error = (gaussian(x + s[:, None, None] * n, s) - x).abs().square().mean((1, 2)).reshape(-1, 2).mean(0)
    bound = torch.stack([(p * t**2 / (p + t**2)).mean() for t in sigma])  # of the best of all denoisers
    torch.testing.assert_close(error, bound, rtol=0.01, atol=0)


def test_a_file_gives_the_same_denoiser(tmp_path: Path) -> None:
    gaussian = fit_gaussian(slices(2))
    metadata = {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 0.4}
    save_gaussian(tmp_path / "g.safetensors", gaussian, metadata)
    prior = load_prior(tmp_path / "g.safetensors")
    x = torch.randn(1, 32, 24, dtype=torch.complex64)
    assert torch.equal(prior(x, torch.tensor([0.5])), gaussian(x, torch.tensor([0.5])))
    assert (prior.sigma_min, prior.sigma_max, len(prior.sha256)) == (0.01, 20.0, 64)
    tensors, metadata = read_safetensors(tmp_path / "g.safetensors")
    write_safetensors(tmp_path / "bad.safetensors", {"profil": tensors["profile"]}, metadata)
    with pytest.raises(MrgenError, match="do not belong together"):
        load_prior(tmp_path / "bad.safetensors")


def test_nothing_to_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slice"):
        fit_gaussian([])
