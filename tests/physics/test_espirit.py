"""ESPIRiT maps against known maps and against sigpy, on simulated data and on the measured demo scan."""

from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import sigpy.mri
import torch
from torch import Tensor

from mrgen.physics.espirit import espirit_maps
from mrgen.physics.fourier import centre_crop, fft2c, ifft2c
from mrgen.physics.noise import background_covariance, whiten, whitening_matrix
from mrgen.physics.operators import CoilSets

COILS, SHAPE, SIGMA = 8, (64, 56), 0.01
HEAD = Path(__file__).parents[2] / "examples/data/brain.h5"


@cache
def simulated() -> tuple[Tensor, Tensor, Tensor]:
    """k-space (coil, y, x) with noise SIGMA, the true maps, and the object's support (y, x)."""
    maps = torch.as_tensor(sigpy.mri.birdcage_maps((COILS, *SHAPE))).to(torch.complex128)
    maps = maps / maps.norm(dim=0)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64) for n in SHAPE], indexing="ij")
    body = (y / 0.85) ** 2 + (x / 0.7) ** 2 < 1
    texture = 0.7 + 0.2 * torch.cos(9 * y) * torch.sin(7 * x + 1) - 0.3 * ((y - 0.2) ** 2 + x**2 < 0.05)
    image = body * texture * torch.exp(1j * (0.8 * y - 0.5 * x))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((COILS, *SHAPE), dtype=torch.complex128, generator=generator)
    kspace = fft2c(maps * image) + SIGMA * noise
    return kspace.to(torch.complex64), maps.to(torch.complex64), body


def sigpy_maps(kspace: Tensor, width: int) -> Tensor:
    app = sigpy.mri.app.EspiritCalib(
        kspace.numpy(), calib_width=width, thresh=0.02, kernel_width=6, crop=0, show_pbar=False
    )
    return torch.as_tensor(app.run())


def disagreement(a: Tensor, b: Tensor) -> Tensor:
    """1 - |<a, b>| per pixel: the phase of a pixel's maps is arbitrary."""
    return 1 - (a.conj() * b).sum(-3).abs()


def ours(kspace: Tensor, width: int = 24, sigma: float = SIGMA) -> tuple[Tensor, Tensor]:
    maps, eigenvalue = espirit_maps(centre_crop(kspace, (width, width))[None], tuple(kspace.shape[-2:]), sigma)
    return maps[0], eigenvalue[0]


def test_at_least_as_close_to_the_truth_as_sigpy() -> None:
    kspace, truth, body = simulated()
    error = disagreement(ours(kspace)[0], truth)[body]
    sigpys = disagreement(sigpy_maps(kspace, 24), truth)[body]
    assert float(error.mean()) < 1.1 * float(sigpys.mean()) + 1e-6
    assert float(error.quantile(0.99)) < 1.1 * float(sigpys.quantile(0.99)) + 1e-5
    assert float(error.mean()) < 1e-3


def test_maps_have_unit_norm_and_the_phase_of_the_dominant_virtual_coil() -> None:
    kspace, _, body = simulated()
    maps, _ = ours(kspace)
    norm = maps.norm(dim=0)
    torch.testing.assert_close(norm, (norm > 0).float())
    assert norm[body].min() > 0
    assert float((norm > 0)[~body].float().mean()) < 0.7  # most of the rest has no signal to reach 3 times the noise
    inside = body[1:] & body[:-1]
    assert float((maps[:, 1:] - maps[:, :-1]).norm(dim=0)[inside].max()) < 0.08
    coil = torch.linalg.svd(centre_crop(kspace, (24, 24)).flatten(1), full_matrices=False)[0][:, 0]
    virtual = torch.einsum("c,cyx->yx", coil.conj(), maps)
    phase = (virtual / virtual.abs())[norm > 0]
    assert float((phase - phase[0]).abs().max()) < 1e-2


def test_eigenvalue_tells_the_object_from_the_background() -> None:
    kspace, _, body = simulated()
    eigenvalue = ours(kspace)[1]
    assert float(eigenvalue.max()) < 1.001
    assert float(eigenvalue[body].quantile(0.05)) > 0.95
    assert float(eigenvalue[~body].mean()) < float(eigenvalue[body].quantile(0.05)) - 0.05


def test_maps_explain_the_coil_images() -> None:
    kspace, _, body = simulated()
    images, (maps, _) = ifft2c(kspace), ours(kspace)
    rest = images - maps * (maps.conj() * images).sum(0)
    # COILS - 1 of the noise's dimensions lie outside the maps
    assert float(rest[:, body].norm(dim=0).square().mean().sqrt()) < 1.3 * SIGMA * (COILS - 1) ** 0.5
    assert float((images - maps.conj() * (maps * images).sum(0))[:, body].norm()) > 5 * float(rest[:, body].norm())


def test_a_batch_is_its_items() -> None:
    kspace, _, _ = simulated()
    acs = torch.stack([centre_crop(kspace, (20, 16)), 3 * centre_crop(kspace, (20, 16)).flip(0).conj()])
    maps, eigenvalue = espirit_maps(acs, SHAPE, SIGMA)
    for i in range(2):
        alone, value = espirit_maps(acs[i : i + 1], SHAPE, SIGMA)
        torch.testing.assert_close(maps[i], alone[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(eigenvalue[i], value[0], atol=1e-4, rtol=0)


def test_few_lines_still_give_maps() -> None:
    # 4 % of 224 lines are 9: the kernel shrinks, the error grows but stays small (8e-5).
    kspace, truth, body = simulated()
    maps, _ = espirit_maps(centre_crop(kspace, (48, 9))[None], SHAPE, SIGMA)
    assert float(disagreement(maps[0], truth)[body].mean()) < 1e-3


def test_pure_noise_has_no_support_but_finite_maps() -> None:
    noise = torch.randn(1, COILS, 24, 24, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    assert espirit_maps(noise, SHAPE, 1.0)[0].abs().max() == 0
    maps, _ = espirit_maps(noise, SHAPE, 1.0, least_snr=0)
    torch.testing.assert_close(maps.norm(dim=1), torch.ones(1, *SHAPE))


def test_the_bound_on_the_signal_holds_where_the_signal_is() -> None:
    """A point source s times the noise of an image has an eigenvalue of at least 1 - 1 / s^2, less what noise adds."""
    kspace, _, body = simulated()
    eigenvalue = ours(kspace)[1]
    assert float((1 - eigenvalue).clamp_min(1e-9).rsqrt()[body].min()) > 3
    assert float(eigenvalue.max()) <= 1 + 1e-5


def test_two_sets_of_maps_explain_a_wrapped_object_and_one_does_not() -> None:
    kspace, _, _ = simulated()
    wrapped = kspace[..., ::2].contiguous()  # half the field of view: two places share a pixel
    shape = (wrapped.shape[-2], wrapped.shape[-1])
    acs = centre_crop(wrapped, (24, 24))[None]
    x, left = ifft2c(wrapped), {}
    for sets in (1, 2):
        maps, eigenvalue = espirit_maps(acs, shape, SIGMA, sets=sets)
        assert maps.shape == (1, sets, COILS, *shape)
        operator = CoilSets(maps[0])
        left[sets] = float((x - operator.forward(operator.adjoint(x))).norm() / x.norm())
    assert bool((eigenvalue[:, 0] >= eigenvalue[:, 1]).all())
    inner = (maps[0, 0].conj() * maps[0, 1]).sum(0).abs()
    assert float(inner.max()) < 1e-3  # orthogonal, so that the sum of both projections is one
    noise = SIGMA * x.numel() ** 0.5 / float(x.norm())
    assert left[2] < 1.02 * noise  # nothing but noise
    assert left[1] > 1.1 * noise


def test_more_sets_than_coils_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 to 2 sets of maps"):
        espirit_maps(torch.ones(1, 2, 24, 24, dtype=torch.complex64), SHAPE, SIGMA, sets=3)


@pytest.mark.parametrize("size", [(3, 24), (24, 3), (2, 2)])
def test_a_region_too_small_is_refused(size: tuple[int, int]) -> None:
    acs = torch.ones(1, COILS, *size, dtype=torch.complex64)
    with pytest.raises(ValueError, match=rf"at least 4 x 4 calibration samples, found {size[0]} x {size[1]}"):
        espirit_maps(acs, SHAPE, SIGMA)


def test_agrees_with_sigpy_on_a_measured_head() -> None:
    with h5py.File(HEAD) as file:
        kspace = torch.as_tensor(np.asarray(file["kspace"][0]))
    kspace = whiten(kspace, whitening_matrix(background_covariance(kspace)))
    rss = ifft2c(kspace).norm(dim=0)
    body = rss > 0.1 * rss.quantile(0.99)
    assert float(disagreement(ours(kspace, sigma=1.0)[0], sigpy_maps(kspace, 24))[body].mean()) < 1e-3
