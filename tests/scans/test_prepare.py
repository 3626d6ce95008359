from __future__ import annotations

import pytest
import torch

from mrgen.errors import MrgenError
from mrgen.physics.espirit import second_share
from mrgen.physics.fourier import ifft2c
from mrgen.physics.masks import achieved_acceleration, fastmri_rng, sampling_mask
from mrgen.physics.noise import whiten, whitening_matrix
from mrgen.posterior.baselines import cg_sense
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.prepare import (
    WRAPS,
    calibration_data,
    default_center_fraction,
    noise_covariance,
    prepare,
    prepare_slice,
    undersampling_mask,
)
from mrgen.settings import Sampling


def correlated_noise(coils: int, shape: tuple[int, int], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (coil, ky, kx) and its covariance, with coils of different loudness."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(coils, coils, dtype=torch.complex64, generator=generator) / 2 + 2 * torch.eye(coils)
    mix = torch.diag(torch.linspace(0.5, 2, coils)).to(mix.dtype) @ mix
    white = torch.randn(coils, *shape, dtype=torch.complex64, generator=generator)
    return torch.einsum("dc,cyx->dyx", mix, white), mix @ mix.mH


def centre_mask(lines: int, spacing: int = 4, centre: int = 6) -> torch.Tensor:
    k = torch.arange(lines)
    return ((k % spacing == 0) | ((k - lines // 2).abs() < centre)).float()


def test_whitening_gives_the_identity_within_2_percent(phantom):
    shape = (1280, 1280)  # large, so that the corners hold enough samples for 2 %
    noise, cov = correlated_noise(3, shape)
    found, _ = noise_covariance(noise + phantom(coils=3, shape=shape, noise=0)[0], None)
    whitener = whitening_matrix(found)
    torch.testing.assert_close(whitener @ cov @ whitener.mH, torch.eye(3) + 0j, rtol=0, atol=0.02)


def test_zero_filled_lines_do_not_lower_the_noise_estimate():
    noise, cov = correlated_noise(2, (1024, 1024))
    noise[..., :256] = 0
    found, _ = noise_covariance(noise, None)
    assert float((found - cov).norm() / cov.norm()) < 0.03


@pytest.mark.parametrize("undersampled", [False, True])
def test_sigma0_is_the_noise_of_the_scaled_kspace_within_2_percent(phantom, undersampled):
    shape = (320, 256)
    noise, _ = correlated_noise(4, shape)
    signal = 40 * phantom(coils=4, shape=shape, noise=0)[0]
    mask = centre_mask(256)
    prepared = prepare_slice(signal + noise, None, undersample=mask if undersampled else None, keep_reference=False)
    whitener = whitening_matrix(noise_covariance(signal + noise, None)[0])
    true = whiten(noise, whitener) * prepared.mask * prepared.sigma0  # sigma0 = 1 / p
    measured = (true.abs().square().sum() / (4 * 320 * prepared.mask.sum())).sqrt()
    assert prepared.sigma0 == pytest.approx(float(measured), rel=0.02)
    clean = whiten(signal, whitener) * prepared.mask * prepared.sigma0
    torch.testing.assert_close(prepared.kspace - clean, true, rtol=0, atol=1e-5)
    assert prepared.noise_from == "image background"


def test_an_undersampled_scan_takes_its_noise_from_its_own_samples(phantom):
    mask = centre_mask(256)
    noise, cov = correlated_noise(3, (320, 256))
    found, source = noise_covariance(noise, mask)
    assert "readout beside" in source
    assert float((found - cov).norm() / cov.norm()) < 0.1
    prepared = prepare_slice(phantom(coils=4, shape=(320, 256))[0], mask, keep_reference=True)
    assert (prepared.noise_from, prepared.reference, prepared.rss) == (source, None, None)
    assert bool((prepared.kspace[..., mask == 0] == 0).all())


def test_intensities_maps_and_reference_fit_together(phantom):
    raw = 1000 * phantom(coils=6, shape=(96, 80), noise=0.003)[0]
    prepared = prepare_slice(raw, None, undersample=centre_mask(80, 2, 12), keep_reference=True)
    rss = ifft2c(raw).abs().square().sum(0).sqrt()
    body = rss > 0.3 * rss.max()
    assert float(prepared.rss.quantile(0.99)) == pytest.approx(1, abs=0.2)
    assert float((prepared.rss * prepared.scale / rss)[body].mean()) == pytest.approx(1, abs=0.02)
    norm = prepared.maps.abs().square().sum(0)
    torch.testing.assert_close(norm, (norm > 0).float())  # 1 in the support, 0 outside
    assert norm[body].min() > 0
    full = prepare_slice(raw, None, keep_reference=True)
    torch.testing.assert_close(full.reference, full.operator().adjoint(full.kspace).abs())
    assert float(((full.reference - full.rss)[body]).norm() / full.rss[body].norm()) < 0.03
    other = prepared.reference * prepared.scale / full.scale  # maps from fewer samples
    assert float((other / full.reference)[body].mean()) == pytest.approx(1, abs=0.02)


def test_scaling_the_input_scales_only_the_scale(phantom):
    raw = phantom()[0]
    one, two = (prepare_slice(f * raw, None, keep_reference=True) for f in (1.0, 1e-4))
    torch.testing.assert_close(one.kspace, two.kspace, rtol=1e-3, atol=1e-4)
    assert two.scale / one.scale == pytest.approx(1e-4, rel=1e-3)


def test_the_input_is_left_alone(phantom):
    raw = phantom()[0]
    before = raw.clone()
    prepare_slice(raw, centre_mask(48), undersample=centre_mask(48, 2), keep_reference=True)
    assert torch.equal(raw, before)


def test_virtual_coils_lose_what_they_say_and_keep_the_noise_white(phantom):
    shape = (160, 128)
    noise, _ = correlated_noise(12, shape)
    raw = 400 * phantom(coils=12, shape=shape, noise=0)[0] + noise
    mask = centre_mask(128, 2, 16)
    whole = prepare_slice(raw, None, undersample=mask, keep_reference=True)
    image = cg_sense(whole, 0.001, 30)
    lost = []
    for coils in (1, 2, 4, 12):
        fewer = prepare_slice(raw, None, undersample=mask, coils=coils, keep_reference=True)
        assert fewer.maps.shape == fewer.kspace.shape == (coils, *shape)
        assert (fewer.sigma0, fewer.scale) == (whole.sigma0, whole.scale)
        assert torch.equal(fewer.rss, whole.rss)
        lost.append(1 - fewer.coil_energy)
        other = cg_sense(fewer, 0.001, 30)  # its phase is that of other coils
        error = float((other.abs() - image.abs()).square().sum() / image.abs().square().sum())
        assert error < lost[-1] + 1e-5, f"{coils} coils"
        # the matrix that takes raw to prepared k-space takes the noise to white noise of std sigma0
        samples, kept = raw[:, :, mask > 0].flatten(1), fewer.kspace[:, :, mask > 0].flatten(1)
        matrix = torch.linalg.lstsq(samples.T, kept.T).solution.T
        whitener = whitening_matrix(noise_covariance(raw, None)[0])
        cov = torch.linalg.inv(whitener) @ torch.linalg.inv(whitener).mH
        white = matrix @ cov @ matrix.mH / fewer.sigma0**2
        torch.testing.assert_close(white, torch.eye(coils) + 0j, rtol=0, atol=1e-3)
    assert whole.coil_energy is None
    assert lost[0] > 0.1 > lost[1] > 0.01 > lost[2] > 1e-4 > lost[3]


def test_the_virtual_coils_are_those_of_the_whitened_calibration_data(phantom):
    noise, _ = correlated_noise(6, (96, 80))
    raw = 40 * phantom(coils=6, shape=(96, 80), noise=0)[0] + noise
    apart = 3 * raw[:, 36:60, 28:52]
    whitener = whitening_matrix(noise_covariance(raw, None)[0])
    for calibration, centre in ((None, raw[:, 24:72, 32:49]), (apart, apart)):  # at most 48 readout samples
        undersample = centre_mask(80, 4, 8) if calibration is None else None
        power = torch.linalg.svdvals(whiten(centre, whitener).flatten(1)).square()
        found = prepare_slice(
            raw, None, undersample=undersample, calibration=calibration, coils=2, keep_reference=False
        )
        assert found.coil_energy == pytest.approx(float(power[:2].sum() / power.sum()), rel=1e-4)


@pytest.mark.parametrize("coils", [0, 5])
def test_virtual_coils_that_cannot_be_are_refused(phantom, coils):
    with pytest.raises(MrgenError, match=f"cannot compress 4 coils to {coils}: expected 1 to 4"):
        prepare_slice(phantom()[0], None, coils=coils, keep_reference=False)


@pytest.mark.parametrize("found", [0, 3])
def test_a_missing_centre_is_an_error_with_a_way_out(phantom, found):
    mask = (torch.arange(48) % 2 == 1).float()
    mask[24] = float(found > 0)  # joins lines 23 and 25
    with pytest.raises(MrgenError, match=rf"at least 4 .* \(ACS\), found {found} lines: .* raise the centre fraction"):
        prepare_slice(phantom()[0], None, undersample=mask, keep_reference=False)


def test_kspace_without_noise_to_measure_is_refused(phantom):
    with pytest.raises(MrgenError, match="noise covariance is zero"):
        prepare_slice(0 * phantom()[0], centre_mask(48), keep_reference=False)


def test_masks_follow_name_seed_and_slice_and_leave_padding_out(write_scan, phantom, header):
    kspace = phantom(shape=(32, 96))
    kspace[..., :3] = kspace[..., 94:] = 0
    xml = header((32, 96), limits=(45, 90))  # 3 lines on the left, 96 - (3 + 90 + 1) = 2 on the right
    scan, other = (open_fastmri(write_scan(n, kspace=kspace, ismrmrd_header=xml)) for n in ("a.h5", "b.h5"))
    sampling = Sampling(pattern="random", center_fraction=0.08)
    mask = undersampling_mask(scan, sampling, 4.0, 0, 0)
    assert torch.equal(mask, undersampling_mask(scan, sampling, 4.0, 0, 0))
    for another in ((other, 0, 0), (scan, 1, 0), (scan, 0, 1)):
        assert not torch.equal(mask, undersampling_mask(another[0], sampling, 4.0, *another[1:]))
    ours = sampling_mask("random", 96, 4.0, 0.08, fastmri_rng("a.h5"))
    ours[:3] = ours[94:] = 0
    assert torch.equal(mask, ours)
    assert undersampling_mask(scan, sampling, 1.0, 0, 0).tolist() == [0.0] * 3 + [1.0] * 91 + [0.0] * 2
    with pytest.raises(MrgenError, match="cannot undersample 96 lines"):
        undersampling_mask(scan, sampling, 0.5, 0, 0)
    with pytest.raises(MrgenError, match="lower the centre fraction or R"):
        undersampling_mask(scan, sampling, 50, 0, 0)


@pytest.mark.parametrize(("acceleration", "fraction"), [(2, 0.08), (4, 0.08), (6, 0.06), (6.5, 0.04), (8, 0.04)])
def test_the_centre_shrinks_with_R_as_in_fastmri(write_scan, phantom, acceleration, fraction):
    assert default_center_fraction(acceleration) == fraction
    scan = open_fastmri(write_scan(kspace=phantom(shape=(16, 320))))
    mask = undersampling_mask(scan, Sampling(center_fraction=fraction), acceleration, 0, 0)
    assert achieved_acceleration(mask) == pytest.approx(acceleration, rel=0.05)


def test_the_scans_say_whether_they_wrap(scans):
    """From the calibration lines that fastMRI keeps at R = 2 to 8."""
    wrapped = open_fastmri(scans / "brain_wrapped_8ch_320x168.h5")
    head = open_fastmri(scans / "brain_vfa_fa05_13ch_224x224.h5")
    for scan, expected in ((wrapped, 2), (head, 1)):
        for acceleration in (2.0, 4.0, 8.0):
            sampling = Sampling(acceleration=(acceleration,), center_fraction=default_center_fraction(acceleration))
            mask = undersampling_mask(scan, sampling, acceleration, 0, 0)
            _, acs = calibration_data(scan.read_slice(0), mask)
            whitener = whitening_matrix(noise_covariance(scan.read_slice(0), None)[0])
            assert (second_share(whiten(acs, whitener), 1.0) > WRAPS) == (expected == 2), acceleration


def test_two_sets_take_the_fold_over_out_of_a_measured_scan(scans):
    """CG-SENSE at R = 2 of a head that wraps, against the RSS of its coil images: half the error where it wraps."""
    scan = open_fastmri(scans / "brain_wrapped_8ch_320x168.h5")
    sampling = Sampling(acceleration=(2.0,), center_fraction=0.08)
    mask = undersampling_mask(scan, sampling, 2.0, 0, 0)
    errors, folded = {}, None
    for sets in (None, 1):
        found = prepare(scan, 0, undersample=mask, map_sets=sets, keep_reference=True)
        folded = found.support[1] & (found.rss > 0.1 * found.rss.quantile(0.99)) if sets is None else folded
        image = found.magnitude(cg_sense(found, 0.03, 30))
        errors[found.sets] = float((image - found.rss)[folded].norm() / found.rss[folded].norm())
    assert errors[2] < 0.06
    assert errors[1] > 1.8 * errors[2]
