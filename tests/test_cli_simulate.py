"""`mrgen simulate` from end to end: what it writes is read, prepared and reconstructed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from mrgen.cli.simulate import CoilArray, _generator, simulate
from mrgen.errors import MrgenError
from mrgen.physics.fourier import ifft2c
from mrgen.posterior.baselines import cg_sense, zero_filled
from mrgen.scans.acquire import phantom_volume
from mrgen.scans.doctor import examine
from mrgen.scans.fastmri import open_fastmri
from mrgen.scans.phantom import head_phantom, phantom_kspace
from mrgen.scans.prepare import noise_covariance, prepare_slice
from mrgen.scans.simulate import ARRAYS, ring

PHANTOM = ("phantom", "--matrix", 112, 96, "--slices", "4:6", "--snr", 50)


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Path]:
    """call(*arguments, to=name) -> the folder that `mrgen simulate` filled; MrgenError comes through."""
    app = typer.Typer()
    app.command()(simulate)

    def run(*arguments: object, to: str = "out") -> Path:
        result = CliRunner().invoke(app, [str(a) for a in (*arguments, "-o", tmp_path / to)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        assert "Not for diagnostic use" in result.output
        accelerations = [scan["R"] for scan in manifest(tmp_path / to)["scans"]]
        assert f"R = {min(accelerations):.2f}" in result.output
        return tmp_path / to

    return run


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def covariance_of(scan: dict[str, Any]) -> Tensor:
    parts = scan["noise_covariance"]
    return torch.complex(torch.tensor(parts["real"]), torch.tensor(parts["imag"]))


def nmse(image: Tensor, truth: Tensor) -> float:
    """Squared error over squared norm, after the best factor."""
    factor = (image * truth).sum() / image.square().sum()
    return float((factor * image - truth).square().sum() / truth.square().sum())


def test_a_full_scan_has_the_noise_that_its_manifest_states(call: Callable[..., Path]) -> None:
    folder = call(*PHANTOM)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "scan.h5"]
    record = manifest(folder)
    assert record["source"] == "phantom"
    assert (record["slices"], record["oversampling"], record["coils"]) == ([4, 6], 2, 8)
    (stated,) = record["scans"]
    assert stated["sigma"] == pytest.approx(1 / 50)
    assert (stated["R"], stated["sampled_lines"]) == (1.0, None)

    scan = open_fastmri(folder / "scan.h5")
    assert (scan.shape, scan.mask, scan.padding, scan.crop) == ((2, 8, 112, 96), None, (0, 0), None)
    with h5py.File(folder / "scan.h5") as file:
        assert file["kspace"].shape == (2, 8, 224, 96)
        stored = torch.from_numpy(file["kspace"][()])
        rss = torch.from_numpy(file["reconstruction_rss"][()])
    # noise alone, far outside the object along the oversampled readout: 2 x 2 x 30 x 96 samples
    outer = torch.cat([ifft2c(stored)[:, :, :30], ifft2c(stored)[:, :, -30:]], dim=2).transpose(0, 1).flatten(1)
    true = covariance_of(stated)
    whitener = torch.linalg.inv(torch.linalg.cholesky(true))
    white = whitener @ (outer @ outer.mH / outer.shape[1]) @ whitener.mH
    assert (white - torch.eye(8)).abs().max() < 0.08
    # and as a reader finds it
    found = torch.stack([noise_covariance(scan.read_slice(i), None)[0] for i in range(2)]).mean(0)
    assert float(found.diagonal().real.mean().sqrt() / stated["sigma"]) == pytest.approx(1, abs=0.05)
    assert (whitener @ found @ whitener.mH - torch.eye(8)).abs().max() < 0.2  # 2 x 4 x 7 x 6 samples
    assert (true - torch.diag(true.diagonal())).abs().max() > 0.05 / 50**2
    tissue = phantom_volume((56, 48), range(4, 6)).images > 0.1
    assert float(rss[tissue].mean()) == pytest.approx(1, rel=0.05)


def test_an_undersampled_scan_is_reconstructed_to_the_phantom(call: Callable[..., Path]) -> None:
    full, under = call(*PHANTOM), call(*PHANTOM, "--undersample", "equispaced/2", to="under")
    (stated,) = manifest(under)["scans"]
    scan, whole = open_fastmri(under / "scan.h5"), open_fastmri(full / "scan.h5")
    assert scan.mask.nonzero().flatten().tolist() == stated["sampled_lines"]
    assert stated["R"] == pytest.approx(96 / len(stated["sampled_lines"])) == pytest.approx(2, rel=0.05)
    for i in range(2):  # the same noise, line by line
        torch.testing.assert_close(scan.read_slice(i), whole.read_slice(i) * scan.mask, atol=1e-5, rtol=0)

    head = phantom_volume((112, 96), range(4, 5))
    loops = ring(8, _generator(0, 0))  # the coils of this seed
    maps = loops.maps((112, 96), head.height_in_fields(head.heights[0]))
    whitener = torch.linalg.inv(torch.linalg.cholesky(covariance_of(stated)))
    shading = torch.einsum("dc,cyx->dyx", whitener, maps).norm(dim=0)  # of whitened coils, whose maps have unit norm
    truth = ifft2c(phantom_kspace(head_phantom(), head.heights[0] / 120, (112, 96))).abs() * shading
    tissue = truth > 0.1 * truth.max()
    with h5py.File(under / "scan.h5") as file:  # the readout's outer parts hold noise alone
        stored = torch.from_numpy(file["kspace"][0])[..., scan.mask > 0]
    rows = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(stored, dim=1), dim=1, norm="ortho"), dim=1)
    noise = torch.cat([rows[:, :30], rows[:, -30:]], dim=1).flatten(1)
    slice_ = prepare_slice(scan.read_slice(0), scan.mask, noise=noise, keep_reference=False)
    errors = [nmse(image.abs()[tissue], truth[tissue]) for image in (zero_filled(slice_), cg_sense(slice_, 1e-3, 60))]
    assert errors[0] > 0.02
    assert errors[1] < 0.005


def test_points_are_undersampled_along_both_axes(call: Callable[..., Path]) -> None:
    options = (*PHANTOM, "--oversampling", 1)
    full, under = call(*options), call(*options, "--undersample", "poisson-disc/4", to="under")
    (stated,) = manifest(under)["scans"]
    scan, whole = open_fastmri(under / "scan.h5"), open_fastmri(full / "scan.h5")
    assert scan.mask.shape == (112, 96)
    assert stated["sampled_lines"] is None
    assert stated["R"] == pytest.approx(112 * 96 / float(scan.mask.sum())) == pytest.approx(4, rel=0.05)
    for i in range(2):
        torch.testing.assert_close(scan.read_slice(i), whole.read_slice(i) * scan.mask, atol=1e-5, rtol=0)
    found = examine(under / "scan.h5")
    assert found.usable
    assert found.sampling.pattern.startswith("points that keep apart (Poisson disc)")


def test_the_same_seed_gives_the_same_bytes(call: Callable[..., Path]) -> None:
    one, same, other = (call(*PHANTOM, "--seed", n, to=name) for n, name in ((3, "one"), (3, "same"), (4, "other")))
    for name in ("scan.h5", "manifest.json"):
        assert (one / name).read_bytes() == (same / name).read_bytes()
    assert (one / "scan.h5").read_bytes() != (other / "scan.h5").read_bytes()


def test_files_are_written_over_on_request_only(call: Callable[..., Path]) -> None:
    folder = call(*PHANTOM)
    before = (folder / "scan.h5").read_bytes()
    with pytest.raises(MrgenError, match=r"holds scan\.h5 already: .* --force"):
        call(*PHANTOM, "--seed", 1)
    assert (folder / "scan.h5").read_bytes() == before
    call(*PHANTOM, "--seed", 1, "--force")
    assert (folder / "scan.h5").read_bytes() != before
    assert manifest(folder)["seed"] == 1


def test_many_scans_are_of_different_heads(call: Callable[..., Path]) -> None:
    folder = call(*PHANTOM, "--count", 3, "--coils", 5, "--array", "helmet", "--undersample", "tiny/2")
    record = manifest(folder)
    names = ["scan_000.h5", "scan_001.h5", "scan_002.h5"]
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", *names]
    assert [scan["file"] for scan in record["scans"]] == names
    assert (record["varied"], record["array"], record["coils"]) == (True, "helmet", 5)
    assert record["undersampling"] == {"pattern": "equispaced-any-offset", "acceleration": 2.0, "fraction": 0.16}
    images, masks, factors = [], [], []
    for scan in record["scans"]:
        with h5py.File(folder / scan["file"]) as file:
            rss = file["reconstruction_rss"][0]
            images.append(rss > 0.1 * rss.max())  # the outline, whatever the coils
            masks.append(file["mask"][()].tolist())
        factors.append(covariance_of(scan))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (images[i] != images[j]).sum() > 0.1 * images[i].sum()
        assert masks[i] != masks[j]
        assert not torch.equal(factors[i], factors[j])


def test_images_of_a_file_are_scanned_and_nothing_else_of_it_is_kept(call: Callable[..., Path], tmp_path: Path) -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 52), indexing="ij")
    body = (y**2 + x**2 < 0.5) * (1 + 0.5 * (y > 0))
    np.savez(tmp_path / "Doe_Jane.npz", slices=np.stack([body, body[:, ::-1]]).astype(np.float32))
    folder = call(tmp_path / "Doe_Jane.npz", "--oversampling", 1, "--matrix", 48, 40, "--phase", 0)
    with h5py.File(folder / "scan.h5") as file:
        assert file["kspace"].shape == (2, 8, 48, 40)
        rss = file["reconstruction_rss"][0]
    assert rss[34:38, 18:22].mean() > rss[10:14, 18:22].mean() * 1.1  # the lower half is brighter, whatever the coils
    for path in folder.iterdir():
        assert b"Doe" not in path.read_bytes()
    assert manifest(folder)["fov_mm"] == [60.0, 52.0]
    varied = call(tmp_path / "Doe_Jane.npz", "--count", 1, "--matrix", 48, 40, to="varied")
    with h5py.File(varied / "scan_000.h5") as file:
        assert np.corrcoef(file["reconstruction_rss"][0].ravel(), rss.ravel())[0, 1] < 0.99


def test_coils_of_another_scan_are_taken(call: Callable[..., Path]) -> None:
    first = call(*PHANTOM, "--coils", 6)
    second = call(*PHANTOM, "--maps-from", first / "scan.h5", "--seed", 1, to="second")
    record = manifest(second)
    assert (record["coils"], record["array"], record["correlation"]) == (6, "measured", None)
    a, b = (covariance_of(manifest(folder)["scans"][0]) for folder in (first, second))
    assert float((a - b).abs().max() / a.diagonal().abs().max()) < 0.2  # 168 corner samples: 8 % each
    both = [open_fastmri(folder / "scan.h5").read_slice(0) for folder in (first, second)]
    one, other = (ifft2c(kspace).abs() / ifft2c(kspace).norm(dim=0) for kspace in both)
    tissue = phantom_volume((56, 48), range(4, 5)).images[0] > 0.5  # coarse: 112 x 96 samples
    assert float((one - other).abs()[:, tissue].mean()) < 0.03  # the share of each coil


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("phantom", "--snr", 0), "--snr 0: expected"),
        (("phantom", "--snr", "inf"), "--snr inf: expected"),
        (("phantom", "--correlation", -1), "--correlation -1: expected"),
        (("phantom", "--phase", "nan"), "--phase nan: expected"),
        (("phantom", "--axis", "axial"), "phantom has axial slices only"),
        (("phantom", "--matrix", 8, 64), "at least 16 16"),
        (("phantom", "--slices", "5:50"), "0 <= A < B <= 10"),
        (("phantom", "--undersample", "equispaced"), "equispaced/4"),
        (("phantom", "--undersample", "equispaced/0.5"), "at least 1"),
        (("phantom", "--undersample", "nothing/4"), "unknown protocol 'nothing'"),
        (("phantom", "--undersample", "poisson-disc/4"), "two phase encodes: add --oversampling 1"),
        (("phantom", "--undersample", "poisson-disc/1.5", "--oversampling", 1), "R is at least 2"),
        (("phantom", "--coils", 4, "--maps-from", "scan.h5"), "leave out --coils"),
        (("phantom", "--maps-from", "absent.h5"), "absent.h5: there is no such file"),
        (("phantom", "--matrix", 16384, 16384, "--coils", 256), "GB to write"),
        (("absent.nii",), "no such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    call: Callable[..., Path], tmp_path: Path, arguments: tuple[object, ...], match: str
) -> None:
    with pytest.raises(MrgenError, match=match) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


def test_every_array_can_be_named() -> None:
    assert [a.value for a in CoilArray] == list(ARRAYS)
