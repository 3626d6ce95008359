from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mrgen.errors import MrgenError
from mrgen.physics.fourier import fft2c, ifft2c
from mrgen.scans.doctor import Findings, examine, find_scans, orientation
from mrgen.scans.geometry import Geometry

SHAPE = (96, 80)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """save(kspace=..., mask=...) writes tensors as an .npz scan."""

    def write(name: str = "scan.npz", **arrays: Tensor) -> Path:
        np.savez(tmp_path / name, **{key: array.numpy() for key, array in arrays.items()})
        return tmp_path / name

    return write


@pytest.fixture
def kspace(phantom) -> Tensor:
    """Its phase puts the peak of k-space 1 row and 1 column from n // 2."""
    return phantom(coils=4, shape=SHAPE, noise=0.01)[0]


def noise_like(kspace: Tensor, std: float, seed: int = 3) -> Tensor:
    return std * torch.randn(kspace.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def warned(findings: Findings, text: str) -> bool:
    return any(text in warning for warning in findings.warnings)


def test_a_good_scan_has_nothing_to_warn_of(save, kspace):
    found = examine(save(kspace=kspace))
    assert found.usable
    assert (found.warnings, found.reasons) == ((), ())
    assert (found.format, found.slices, found.coils, found.matrix) == ("NumPy npz", 1, 4, SHAPE)
    assert found.noise.source == "image background"
    assert found.maps_explain > 0.99
    assert found.command == "mrgen recon scan.npz --R 4 -o out/"
    assert "undersample" in found.plan


def test_the_snr_of_a_uniform_disc_is_its_intensity_over_the_noise(save):
    y, x = torch.meshgrid(*((torch.arange(n) - n // 2) / (n / 2) for n in (128, 128)), indexing="ij")
    disc = 0.7 * (y**2 + x**2 < 0.5).float()
    clean = fft2c(disc + 0j)[None]
    found = examine(save(kspace=clean + noise_like(clean, 0.02), noise=noise_like(torch.empty(1, 5000), 0.02, 4)))
    assert found.noise.source == "noise scan"
    assert found.snr == pytest.approx(0.7 / 0.02, rel=0.03)
    assert found.noise.sigma0 == pytest.approx(0.02 / 0.75, rel=0.1)  # the 99th percentile, Gibbs ringing and all
    assert warned(found, "one coil")


def test_coils_are_described_as_they_are(save, kspace):
    samples = noise_like(torch.empty(4, 40000), 0.01)
    samples[1] *= 1.5
    samples[3] = 0.6 * samples[2] + 0.8 * samples[3]
    found = examine(save(kspace=kspace, noise=samples))
    assert found.noise.coil_std == pytest.approx((1, 1.5, 1, 1), rel=0.03)
    assert found.noise.correlation == pytest.approx(0.6, abs=0.02)
    # eigenvalues 1, 2.25, 1 - 0.6, 1 + 0.6
    assert found.noise.condition == pytest.approx(2.25 / 0.4, rel=0.05)


def test_an_undersampled_scan_is_told_with_its_noise_bound(save, kspace):
    mask = (torch.arange(80) % 4 == 1).float()
    mask[32:48] = 1
    found = examine(save(kspace=kspace * mask))
    assert (found.sampling.spacing, found.sampling.offset, found.sampling.acs) == (4, 1, (96, 16))
    assert "readout beside" in found.noise.source
    assert found.command == "mrgen recon scan.npz -o out/"
    assert "central 16 lines" in found.plan


def test_points_are_told_with_their_noise_bound(save, kspace):
    y, x = torch.meshgrid(torch.arange(96) - 48, torch.arange(80) - 40, indexing="ij")
    points = (torch.rand(96, 80, generator=torch.Generator().manual_seed(0)) < 0.4) | ((y.abs() < 8) & (x.abs() < 8))
    assert warned(examine(save(kspace=kspace * points)), "upper bound")


@pytest.mark.parametrize("flaw", ["images", "corner", "noise", "no centre"])
def test_reasons_not_to_use_a_scan(save, kspace, flaw):
    no_centre = (torch.arange(80) % 3 == 2).float()
    bad, match = {
        "images": (ifft2c(kspace), "these are images, not k-space"),
        "corner": (kspace.roll(20, 2), "k-space peaks at (49, 61), expected (48, 40): apply fftshift, or roll"),
        "noise": (noise_like(kspace, 1), "no part of k-space is louder than noise"),
        "no centre": (kspace * no_centre, "at least 4 fully sampled lines"),
    }[flaw]
    found = examine(save(kspace=bad))
    assert not found.usable
    assert (found.plan, found.command) == (None, None)
    assert any(match in reason for reason in found.reasons), found.reasons


def _filtered(kspace: Tensor) -> Tensor:
    y, x = (torch.hamming_window(n) for n in kspace.shape[-2:])
    return kspace * (y[:, None] * x)


def _spiked(kspace: Tensor) -> Tensor:
    bad = kspace.clone()
    bad[2, 10, 15] += 2
    return bad


def _clipped(kspace: Tensor) -> Tensor:
    bad = torch.view_as_real(kspace).clone()
    limit = float(bad[1].abs().max()) / 3
    bad[1] = bad[1].clamp(-limit, limit)
    return torch.view_as_complex(bad)


def _dead(kspace: Tensor) -> Tensor:
    return torch.cat([kspace, noise_like(kspace[:1], 0.01)])


def _disconnected(kspace: Tensor) -> Tensor:
    return torch.cat([kspace, 0.01 * kspace[:1] + noise_like(kspace[:1], 1e-4)])


def _loud(kspace: Tensor) -> Tensor:
    return torch.cat([kspace[:3], kspace[3:] + noise_like(kspace[:1], 0.05)])


def _copied(kspace: Tensor) -> Tensor:
    return torch.cat([kspace, 2 * kspace[1:2] + noise_like(kspace[:1], 1e-3)])


def _real(kspace: Tensor) -> Tensor:
    return fft2c(ifft2c(kspace).abs() + 0j)


def _wrapped(kspace: Tensor) -> Tensor:
    """Half the field of view along phase encoding: every other line, as many coils."""
    return kspace[..., ::2].contiguous()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda k: k.roll(5, 1), "k-space peaks 6 rows and 1 columns from its centre"),
        (_filtered, "quieter than noise"),
        (_filtered, "neighbouring background pixels is correlated"),
        (_spiked, "1 spike(s) in k-space, the strongest at (10, 15)"),
        (_clipped, "share the largest value of coil 1: the receiver was saturated"),
        (_dead, "coil 4 is dead"),
        (_disconnected, "coil 4 is dead"),
        (_loud, "coil 3 has more than 3 times the noise"),
        (_copied, "coils 1 and 4 are the same signal"),
        (_real, "conjugate symmetric"),
        (_wrapped, "does the body wrap around"),
        (lambda k: k[:1], "one coil"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_flaws_are_warned_of(save, kspace, spoil, text):
    found = examine(save(kspace=spoil(kspace)))
    assert warned(found, text), found.warnings


def test_a_scan_without_noise_is_too_clean(save, phantom):
    assert warned(
        examine(save(kspace=phantom(coils=4, shape=SHAPE, noise=1e-7)[0], noise=noise_like(torch.empty(4, 500), 1e-7))),
        "more than any scan's",
    )


def test_a_noise_scan_of_another_scale_is_noticed(save, kspace):
    loud, right = (examine(save(kspace=kspace, noise=noise_like(torch.empty(4, 2000), s))) for s in (0.05, 0.01))
    assert warned(loud, "its scale is another")
    assert not warned(right, "its scale is another")


def test_slices_that_cannot_be_read_are_named_on_request(save, kspace):
    stack = torch.stack([kspace, kspace, kspace])
    stack[0, 0, 0, 0] = torch.nan
    stack[2] = 0
    path = save(kspace=stack)
    assert examine(path).warnings == ()
    found = examine(path, all_slices=True)
    assert found.usable
    assert [text[:7] for text in found.warnings] == ["slice 0", "slice 2"]
    assert "NaN" in found.warnings[0]
    assert "all zeros" in found.warnings[1]
    assert all("--slices" in text for text in found.warnings)


def test_what_cannot_be_opened_still_has_findings(tmp_path):
    path = tmp_path / "scan.h5"
    path.write_text("no scan")
    found = examine(path)
    assert (found.file, found.usable, found.format) == ("scan.h5", False, None)
    assert "unknown kind" in found.reasons[0]
    assert str(tmp_path) not in json.dumps(found.record())


def test_a_folder_is_searched_by_suffix(tmp_path):
    for name in ("b.h5", "a.npz", "c.hdr", "c.cfl", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in find_scans(tmp_path)] == ["a.npz", "b.h5", "c.cfl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MrgenError, match=r"empty: no file ends with \.h5"):
        find_scans(tmp_path / "empty")


@pytest.mark.parametrize(
    ("readout", "phase", "normal", "text"),
    [
        ((0, 1, 0), (1, 0, 0), (0, 0, 1), "axial; readout front to back, phase right to left"),
        ((0, 0, -1), (0, 1, 0), (1, 0, 0), "sagittal; readout head to feet, phase front to back"),
        ((0, 0, 1), (-1, 0, 0), (0, 0.966, 0.259), "oblique, 15 degrees from coronal; readout feet to head"),
    ],
)
def test_orientations_in_words(readout, phase, normal, text):
    assert orientation(Geometry(readout=readout, phase=phase, normal=normal)).startswith(text)
    assert orientation(Geometry(readout=readout)) is None


def test_measured_scans(scans):
    head, wrapped = (examine(next(scans.glob(name))) for name in ("brain_vfa_fa05*", "brain_wrapped*"))
    assert head.warnings == ()
    assert head.maps_explain > 0.995
    assert warned(wrapped, "wrap around")
    assert wrapped.usable
    three = examine(scans / "phantom_14ch_prospective_R3_ismrmrd.h5")
    assert three.warnings == ()
    assert (three.sampling.spacing, three.sampling.padding, three.readout) == (3, (18, 20), 384)
    assert three.orientation == "axial; readout left to right, phase front to back"
    assert three.noise.source == "noise scan"


def test_noise_is_not_taken_for_what_the_maps_leave_over(save, phantom):
    found = examine(save(kspace=phantom(coils=4, shape=SHAPE, noise=0.08)[0]))
    assert found.maps_explain > 0.98
    assert found.two_signals_area < 0.02
