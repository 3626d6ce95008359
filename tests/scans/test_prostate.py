"""The averages of fastMRI prostate files."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import reading
import torch

from mrgen.physics.fourier import centre_crop, ifft2c
from mrgen.scans.averages import average_weights, combine_averages, measured_lines
from mrgen.scans.fastmri import open_fastmri

refuse = partial(reading.refuse, open_fastmri)
ODD = torch.arange(40) % 2 == 1
LINES = torch.stack([ODD, ~ODD, ODD])  # measured by the three averages


@pytest.fixture
def averages(phantom):
    """(average, slice, coil, ky, kx): the same head three times, the noise differs."""
    kspace = phantom(slices=6, coils=3, shape=(64, 40), noise=0.1)
    kspace += 0.1 * torch.randn(kspace.shape, dtype=kspace.dtype, generator=torch.Generator().manual_seed(3))
    return kspace.reshape(3, 2, 3, 64, 40) * LINES[:, None, None, None, :]


@pytest.fixture
def calibration(phantom):
    return phantom(slices=2, coils=3, shape=(64, 24), noise=0.1)


def test_weights_take_as_many_averages_of_each_line_as_the_least_measured_has():
    measured = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 1, 0], [1, 1, 0, 1, 0]], dtype=torch.bool)
    expected = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 1, 0], [1, 1, 0, 0, 0]]) / 2
    assert torch.equal(average_weights(measured), expected)
    measured[2, 0] = False
    assert average_weights(measured).sum(0).tolist() == [1, 1, 1, 1, 0]
    assert set(average_weights(measured).unique().tolist()) == {0, 1}


@pytest.mark.parametrize("together", [False, True])
def test_combined_noise_is_the_same_in_every_line(together):
    noise = torch.randn(3, 2, 512, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    lines = torch.stack([ODD, ODD, ODD]) if together else LINES
    noise *= lines[:, None, None, :]
    assert torch.equal(measured_lines(noise), lines)
    power = combine_averages(noise, average_weights(lines)).abs().square().mean((0, 1))
    # 1024 samples a line: a standard error of 3 %
    assert (power[ODD] * (3 if together else 1) - 1).abs().max() < 0.15
    assert (power[~ODD] - (0 if together else 1)).abs().max() < 0.15


def test_averages_become_one_fully_sampled_scan_on_the_header_s_matrix(write_scan, averages, calibration, header):
    xml = header((64, 56), rec=(32, 28), limits=(19, 39))
    path = write_scan(kspace=averages, calibration_data=calibration, ismrmrd_header=xml)
    scan = open_fastmri(path)
    assert scan.shape == (2, 3, 32, 56)
    assert scan.crop == (32, 28)
    assert (scan.mask, scan.padding) == (None, (9, 7))
    assert scan.geometry.spacing == (1.0, 1.0)
    assert scan.remarks == (
        "3 averages: each phase-encoding line is the mean of the first 1 that measured it, so that all lines have the "
        "same noise; 20 of 60 measured lines are left out.",
    )
    for i in range(2):
        full = torch.zeros(3, 64, 56, dtype=torch.complex64)
        full[..., 9:49] = torch.where(ODD, averages[0, i], averages[1, i])
        torch.testing.assert_close(ifft2c(scan.read_slice(i)), centre_crop(ifft2c(full), (32, 56)))
        expected = centre_crop(ifft2c(calibration[i]), (32, 24))
        torch.testing.assert_close(ifft2c(scan.read_calibration(i)), expected)


def test_a_header_that_asks_for_absurd_filling_is_refused(write_scan, averages, calibration, header):
    xml = header((64, 65535), rec=(32, 28), limits=(19, 39))
    wide = averages.expand(3, 2, 3, 64, 40).repeat(1, 1, 16, 1, 1)
    refuse(
        write_scan(kspace=wide, calibration_data=calibration.repeat(1, 16, 1, 1), ismrmrd_header=xml), "more than 1 GiB"
    )


def test_averages_of_the_same_lines_stay_undersampled(write_scan, averages, calibration):
    same = averages[[0, 2]]
    scan = open_fastmri(write_scan(kspace=same, calibration_data=calibration))
    assert torch.equal(scan.mask, ODD.float())
    torch.testing.assert_close(scan.read_slice(1), same[:, 1].mean(0))
    assert scan.remarks[0].endswith("0 of 40 measured lines are left out.")


def test_other_patterns_in_some_slices_are_refused(write_scan, averages, calibration):
    averages[0, 0, ..., 3] = 0
    refuse(write_scan(kspace=averages, calibration_data=calibration), "averages of slice 0 hold other lines")
    refuse(write_scan(kspace=averages * 0, calibration_data=calibration), "slice 1 of kspace is all zeros")


def test_diffusion_and_trajectories_that_are_not_cartesian_are_refused(write_scan, averages, calibration, header):
    data = {"kspace": averages, "calibration_data": calibration}
    refuse(write_scan(**data, coil_sens_maps=calibration), "only the T2 files")
    xml = header((64, 40))
    for trajectory, match in (("EPI", "only the T2 files"), ("radial", "trajectory is radial, expected cartesian")):
        text = xml.replace("</encoding>", f"<trajectory>{trajectory}</trajectory></encoding>")
        refuse(write_scan(**data, ismrmrd_header=text), match)
    text = xml.replace("</encoding>", "<trajectory>cartesian</trajectory></encoding>")
    assert open_fastmri(write_scan(**data, ismrmrd_header=text)).mask is None


def test_calibration_data_that_does_not_belong_is_refused(write_scan, averages, calibration):
    for bad in (calibration[:1], calibration[:, :2], calibration[:, :, :32], calibration[..., :3], calibration.real):
        refuse(write_scan(kspace=averages, calibration_data=bad), "calibration_data is no complex array of 2 slices")
    calibration[1, 0, 0, 0] = np.nan
    refuse(write_scan(kspace=averages, calibration_data=calibration), "slice 1 of calibration_data holds NaN")
