"""The mask ensemble against closed forms, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.physics.masks import sampling_probability
from mrgen.prior.ensemble import MaskEnsemble, training_sampling
from mrgen.settings import Sampling

SHAPE = (6, 16)
SAMPLING = Sampling(pattern="random", acceleration=(2.0, 4.0), center_fraction=0.125)
GAIN = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


def diagonal(x_t: Tensor, sigma: Tensor) -> Tensor:
    """A linear denoiser that mixes no two points of k-space."""
    return ifft2c(GAIN / (1 + sigma[:, None, None]) * fft2c(x_t))


def noisy(images: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(images, *SHAPE, dtype=torch.complex64, generator=g), torch.linspace(0.2, 2, images)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_all_lines_sampled_is_the_denoiser_itself() -> None:
    x_t, sigma = noisy(3)
    ensemble = MaskEnsemble(diagonal, Sampling(acceleration=(1.0,)), 4, seeded())
    torch.testing.assert_close(ensemble(x_t, sigma), diagonal(x_t, sigma))
    ensemble = MaskEnsemble(diagonal, Sampling(acceleration=(1.0,)), 4, seeded(), lines="all")
    torch.testing.assert_close(ensemble(x_t, sigma), diagonal(x_t, sigma))


def test_lines_that_a_mask_shows_are_those_of_a_diagonal_denoiser() -> None:
    x_t, sigma = noisy(3)
    count, ensemble = 3, MaskEnsemble(diagonal, SAMPLING, 3, seeded())
    shown = MaskEnsemble(diagonal, SAMPLING, count, seeded()).masks(3, 16).sum(0)[:, 0] > 0  # the same draw
    found, plain = fft2c(ensemble(x_t, sigma)), fft2c(diagonal(x_t, sigma))
    assert 0 < shown.float().mean() < 1
    for item in range(3):
        torch.testing.assert_close(found[item][:, shown[item]], plain[item][:, shown[item]])
        hidden = (found[item] - plain[item])[:, ~shown[item]]
        assert hidden.abs().min() > 1e-3


@pytest.mark.parametrize("lines", ["sampled", "all"])
def test_mean_and_spread_of_a_diagonal_denoiser(lines: str) -> None:
    """k-space is gain * k_t where every shown line counts, gain * E[share] k_t with noise elsewhere, over the masks."""
    n, count, sigma = 4000, 2, 1.5
    x_t = noisy(1)[0].expand(n, -1, -1)
    ensemble = MaskEnsemble(diagonal, SAMPLING, count, seeded(), lines=lines)  # type: ignore[arg-type]
    k = fft2c(ensemble(x_t, torch.full((n,), sigma)))
    gain, k_t = GAIN / (1 + sigma), fft2c(x_t[0])
    hidden = 1 - torch.stack([sampling_probability("random", 16, r, 0.125) for r in (2.0, 4.0)]).mean(0)
    if lines == "all":
        signal, noise, one = 1 - hidden, hidden / count, (1 - hidden) * hidden / count
    else:  # a line keeps the noise of both estimates where both masks hide it
        signal, noise, one = 1 - hidden**count, hidden**count / count, hidden**count * (1 - hidden**count)
    torch.testing.assert_close(k.mean(0), gain * signal * k_t, rtol=0, atol=0.08)
    variance = gain**2 * (one * k_t.abs().square() + noise * sigma**2)
    found = (k - k.mean(0)).abs().square().mean(0)
    assert float(found.sum()) == pytest.approx(float(variance.sum()), rel=0.03)
    assert (found - variance).abs().max() < 0.12 * variance.max()


def test_a_line_is_averaged_over_the_masks_that_show_it() -> None:
    x_t, sigma = noisy(2)
    count = 3

    def numbered(u: Tensor, sigma: Tensor) -> Tensor:
        number = torch.arange(len(u)) // 2 + 1.0  # of the mask, if the images of one mask follow each other
        return ifft2c(number[:, None, None] * torch.ones(len(u), *SHAPE, dtype=torch.complex64))

    masks = MaskEnsemble(numbered, SAMPLING, count, seeded()).masks(2, 16)
    found = fft2c(MaskEnsemble(numbered, SAMPLING, count, seeded())(x_t, sigma)).real
    for item in range(2):
        for line in range(16):
            numbers = [i + 1.0 for i in range(count) if masks[i, item, 0, line]] or [1.0, 2.0, 3.0]
            expected = torch.full((6,), sum(numbers) / len(numbers))
            torch.testing.assert_close(found[item, :, line], expected, rtol=1e-4, atol=1e-4)


def test_the_denoiser_sees_lines_of_x_t_or_noise_of_sigma() -> None:
    x_t, n = noisy(1)[0].expand(2000, -1, -1), 2000
    seen: list[Tensor] = []

    def spy(u: Tensor, sigma: Tensor) -> Tensor:
        assert torch.equal(sigma, torch.linspace(1, 2, n).repeat(2))
        seen.append(u)
        return u

    MaskEnsemble(spy, SAMPLING, 2, seeded())(x_t, torch.linspace(1, 2, n))
    mask = MaskEnsemble(spy, SAMPLING, 2, seeded()).masks(n, 16)[:, :, 0]
    k = fft2c(seen[0]).reshape(2, n, *SHAPE).movedim(2, 3)  # mask, image, line, row
    shown = (k - fft2c(x_t[0]).mT).abs().amax(-1) < 1e-4
    assert torch.equal(shown, mask > 0)
    hidden = k / torch.linspace(1, 2, n)[:, None, None]
    assert float(hidden[mask == 0].abs().square().mean()) == pytest.approx(1, rel=0.02)
    assert float(shown.float().mean()) == pytest.approx(0.375, rel=0.03)  # of R = 2 and R = 4


def test_each_r_has_its_centre() -> None:
    sampling = Sampling(pattern="random", acceleration=(2.0, 4.0), center_fraction=(0.25, 0.125))
    masks = MaskEnsemble(diagonal, sampling, 40, seeded()).masks(40, 16).reshape(-1, 16)
    assert masks[:, 7:9].min() == 1
    assert 0.5 < masks[:, 6].mean() < 1


def test_same_seed_same_image() -> None:
    x_t, sigma = noisy(2)
    one, two, other = (
        MaskEnsemble(diagonal, SAMPLING, 2, torch.Generator().manual_seed(s))(x_t, sigma) for s in (5, 5, 6)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_only_the_fourier_basis_has_masks_to_draw() -> None:
    protocol = {"sampling": SAMPLING.model_dump(mode="json")}
    for objective in ("gsure", "ambient-tweedie", "ambient"):
        assert training_sampling({"objective": f"{objective}-fourier", "protocol": protocol}) == SAMPLING
        with pytest.raises(MrgenError, match=f"trained by {objective}-sense: set ensemble = 0"):
            training_sampling({"objective": f"{objective}-sense", "protocol": protocol})
    with pytest.raises(MrgenError, match="trained by supervised"):
        training_sampling({"objective": "supervised", "protocol": protocol})
