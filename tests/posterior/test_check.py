"""Withheld lines and shares against a Gaussian whose posterior is exact, and against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import gaussian
import numpy as np
import pytest
import torch

from mrgen.physics.fourier import ifft2c
from mrgen.physics.operators import sense
from mrgen.posterior.check import audit, check_withheld, measured_part, withheld_ratio
from mrgen.posterior.draws import DrawPerSample
from mrgen.posterior.splitting import gaussian_posterior
from mrgen.scans.scan import Slice

SHAPE, SIGMA0 = (32, 40), 0.05


def power() -> torch.Tensor:
    y, x = ((torch.arange(n) - n // 2) / (n / 2) for n in SHAPE)
    return 4 * (1 + 20 * (y[:, None].square() + x[None].square())).pow(-1.5)


def scan(g: torch.Generator) -> tuple[Slice, torch.Tensor]:
    """A draw of the Gaussian behind four smooth coils, every second line and the centre sampled; and the truth."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    angle = torch.arange(4)[:, None, None] * torch.pi / 2
    maps = torch.exp(-((y - angle.sin()) ** 2 + (x - angle.cos()) ** 2) / 2 + 1j * (angle + x))
    maps = maps / maps.abs().square().sum(0).sqrt()
    mask = torch.zeros(SHAPE[1])
    mask[::2] = mask[18:23] = 1
    image = ifft2c(power().sqrt() * torch.randn(SHAPE, dtype=torch.complex64, generator=g))
    noise = torch.randn(4, *SHAPE, dtype=torch.complex64, generator=g)
    kspace = sense(maps, mask).forward(image) + SIGMA0 * mask * noise
    return Slice(kspace, mask, maps, SIGMA0, 1.0, None), image


def ratios(belief: float, repetitions: int = 30, antithetic: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """ratio^2 and its standard error for samples that take the power of the image for `belief` times what it is."""
    g, found = torch.Generator().manual_seed(3), []

    def draw(given: Slice, n: int) -> torch.Tensor:
        source = DrawPerSample(g, antithetic=True) if antithetic else g
        return gaussian_posterior(given, n, 60, source, belief * power())

    for _ in range(repetitions):
        check = check_withheld(scan(g)[0], draw, g, antithetic)
        assert check is not None
        assert check["lines"] == 2
        found.append((check["ratio"] ** 2, 2 * check["ratio"] * check["standard_error"]))
    squares, errors = np.array(found).T
    return squares, errors


@pytest.mark.parametrize("antithetic", [False, True])
def test_an_exact_posterior_has_the_ratio_one_and_its_standard_error(antithetic):
    squares, errors = ratios(1.0, antithetic=antithetic)
    assert squares.mean() == pytest.approx(1, abs=2.5 * squares.std() / np.sqrt(len(squares)))
    assert np.median(errors) == pytest.approx(squares.std(), rel=0.5)
    assert squares.std() < 0.5


@pytest.mark.parametrize(("belief", "low", "high"), [(0.25, 1.3, 4.5), (4.0, 0.2, 0.8)])
def test_a_spectrum_off_by_four_shows(belief, low, high):
    squares, _ = ratios(belief, 12)
    assert low < squares.mean() < high


def test_the_ratio_is_that_of_its_definition():
    g = torch.Generator().manual_seed(0)
    slice_, _ = scan(g)
    withheld = torch.zeros(SHAPE[1])
    withheld[4] = withheld[34] = 1
    samples = torch.randn(3, *SHAPE, dtype=torch.complex64, generator=g)
    predicted = sense(slice_.maps, withheld).forward(samples).numpy()[..., withheld.numpy() > 0]
    y = slice_.kspace.numpy()[..., withheld.numpy() > 0]
    error = (abs(y - predicted.mean(0)) ** 2).sum()
    expected = (4 / 3 * predicted.var(0, ddof=1) + SIGMA0**2).sum()
    found = withheld_ratio(slice_, withheld, samples, antithetic=False)
    assert found.ratio == pytest.approx(np.sqrt(error / expected), rel=1e-4)
    assert found.lines == 2
    points = withheld.expand(SHAPE).clone()
    points[::2] = 0
    in_2d = withheld_ratio(replace(slice_, mask=slice_.mask.expand(SHAPE)), points, samples, antithetic=False)
    assert in_2d.lines == 2 * SHAPE[0] // 2


def test_a_scan_of_the_centre_alone_has_nothing_to_withhold():
    slice_, _ = scan(torch.Generator().manual_seed(0))
    mask = torch.zeros(SHAPE[1])
    mask[15:26] = 1
    assert check_withheld(replace(slice_, mask=mask), lambda s, n: torch.empty(0), torch.Generator(), True) is None


def test_the_projection_is_the_dense_one_and_the_shares_add_up():
    case = gaussian.case()
    a = case.slice_.operator().dense()
    m = case.mean
    weight = gaussian.SIGMA0**2 / m.abs().square().mean()  # the support is everywhere
    expected = torch.linalg.solve(a.mH @ a + weight * torch.eye(m.numel()), a.mH @ a @ m.flatten()).reshape(m.shape)
    torch.testing.assert_close(measured_part(case.slice_, m), expected, rtol=1e-3, atol=1e-4)
    null, facts = audit(case.slice_, torch.stack([m, m]))
    torch.testing.assert_close(null, (m - expected).abs(), rtol=1e-3, atol=1e-4)
    share = float((m.conj() * expected).real.sum() / m.abs().square().sum())
    assert facts["measured_share"] == pytest.approx(share, abs=1e-4)
    assert facts["measured_share"] + facts["null_space_share"] == pytest.approx(1)


def test_a_sampled_image_is_measured_and_one_of_the_null_space_is_not():
    slice_, image = scan(torch.Generator().manual_seed(1))
    full = replace(slice_, mask=torch.ones(SHAPE[1]))
    assert audit(full, image[None].repeat(2, 1, 1))[1]["measured_share"] > 0.98
    single = replace(slice_, maps=torch.ones(1, *SHAPE, dtype=torch.complex64), kspace=slice_.kspace[:1])
    unseen = sense(single.maps, 1 - single.mask)
    null, facts = audit(single, unseen.adjoint(unseen.forward(image))[None].repeat(2, 1, 1))
    assert facts["null_space_share"] == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(null, unseen.normal(image).abs(), rtol=1e-3, atol=1e-4)


def test_exact_samples_leave_the_residual_of_the_noise_and_blank_ones_all():
    g = torch.Generator().manual_seed(5)
    residuals = []
    for _ in range(5):
        slice_, _ = scan(g)
        residuals.append(audit(slice_, gaussian_posterior(slice_, 4, 60, g, power()))[1]["residual"])
    assert np.mean(residuals) == pytest.approx(1, abs=0.03)
    null, facts = audit(slice_, torch.zeros(2, *SHAPE, dtype=torch.complex64))
    assert not null.any()
    assert facts["measured_share"] == 0
    assert facts["residual"] > 10
