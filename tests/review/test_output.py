from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from mrgen import __version__
from mrgen.errors import MrgenError
from mrgen.review import output
from mrgen.review.folder import prepare_output_dir
from mrgen.review.geometry import read_geometry
from mrgen.review.metrics import psnr, psnr_fit, scores, ssim
from mrgen.scans.geometry import Geometry


def make_result(reference: bool = True, slices: int = 3) -> output.Result:
    rng = np.random.default_rng(0)
    truth = rng.random((slices, 24, 20)).astype(np.float32)
    names = ("zero_filled", "l1_wavelet", "reconstruction")
    noisy = {
        n: (truth + s * rng.random(truth.shape)).astype(np.float32) for n, s in zip(names, (0.5, 0.3, 0.1), strict=True)
    }
    return output.Result(
        images=noisy,
        std=0.1 * truth,
        reference=truth if reference else None,
        rss=truth + 0.1 if reference else None,
        mask=(np.arange(20) % 2).astype(np.float32),
        zero_filled=1,
        first_slice=4,
        sigma0=[0.01] * slices,
        noise_from="image background",
        coils=8,
        virtual_coils=None,
        coil_energy=[],
        facts=[{"slice": 4, "regularisation": 0.01, "chosen_by": "discrepancy"}],
        seed=5,
        samples=8,
        prior_sha256="ab" * 32,
        recipe={"name": "posterior", "steps": 30},
        header="<ismrmrdHeader><subjectInformation><patientName>Doe</patientName></subjectInformation></ismrmrdHeader>",
        seconds=[1.0, 2.5, 1.25][:slices],
        resumed=1,
        identity="cd" * 32,
        geometry=Geometry(spacing=(1.0, 2.0)),
        scan_slices=9,
    )


def test_the_volume_file_holds_images_mask_and_provenance(tmp_path):
    result = make_result()
    paths = output.write_result(tmp_path, "scan", result)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    with h5py.File(tmp_path / "scan.h5") as file:
        for name, image in {**result.images, "std": result.std, "mask": result.mask}.items():
            assert np.array_equal(file[name][()], image)
            assert file[name].dtype == np.float32
        assert {**file.attrs} == {
            "R": 1.9,  # of the 19 lines that are not zero-filled
            "zero_filled_lines": 1,
            "seed": 5,
            "n_samples": 8,
            "prior_sha256": "ab" * 32,
            "recipe": "posterior",
            "first_slice": 4,
            "scan_slices": 9,
            "mrgen_version": __version__,
            "notice": "Research use only. Not for diagnostic use.",
        }
        assert b"Doe" not in file["ismrmrd_header"][()]
        assert read_geometry(file) == result.geometry


def test_the_report_gives_every_figure_per_slice_and_volume(tmp_path):
    result = make_result()
    output.write_result(tmp_path, "scan", result)
    report = json.loads((tmp_path / "report.json").read_text())
    truth, peak = result.reference, float(result.reference.max())
    for name, image in result.images.items():
        volume = report["metrics"]["volume"][name]
        assert volume["psnr_fit"] == psnr_fit(image, truth)
        assert volume["ssim"] == ssim(image, truth)
        second = report["metrics"]["slices"][1]
        assert second["slice"] == 5
        assert second[name]["psnr"] == psnr(image[1], truth[1], peak)
    assert (report["R"], report["R_of_all_lines"], report["zero_filled_lines"]) == (1.9, 2.0, 1)
    assert report["seconds"] == {"reconstruction": 4.75, "slices": [1.0, 2.5, 1.25]}
    assert (report["resumed_slices"], report["identity"], report["geometry"]) == (1, "cd" * 32, "nominal")
    assert report["std_relative_sampling_error"] == pytest.approx(0.267, abs=1e-3)
    assert (
        report["metrics"]["volume_rss"]["reconstruction"]["psnr"]
        == scores(result.images["reconstruction"], result.rss)["psnr"]
    )
    assert "scalar fit" in report["metrics"]["definitions"]


def test_a_perfect_image_leaves_valid_json(tmp_path):
    result = make_result()
    result.images["zero_filled"] = result.reference
    output.write_result(tmp_path, "scan", result)
    report = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["metrics"]["volume"]["zero_filled"]["psnr"] is None


def test_without_a_reference_there_are_no_metrics(tmp_path):
    output.write_result(tmp_path, "scan", make_result(reference=False))
    assert "metrics" not in json.loads((tmp_path / "report.json").read_text())


@pytest.mark.parametrize("step", ["_write_volume", "_report", "_write_figure"])
def test_a_failure_leaves_no_file_behind(tmp_path, monkeypatch, step):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        output.write_result(tmp_path, "scan", make_result())
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MrgenError, match="cannot write to the output folder"):
        prepare_output_dir(tmp_path / "file" / "out")
    prepare_output_dir(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_the_figure_says_what_it_shows(tmp_path, monkeypatch):
    seen: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k))[1])
    result = make_result()
    output.write_result(tmp_path, "scan", result)
    axes = [a for a in seen[0].axes if a.get_title()]
    titles = [a.get_title() for a in axes]
    score = result.slice_scores[1]["reconstruction"]
    assert [t.split("\n")[0] for t in titles[:3]] == ["reference: coil combination", "zero-filled", "L1-wavelet"]
    assert titles[3] == f"posterior mean, n = 8\nPSNR {score['psnr_fit']:.1f} dB, SSIM {score['ssim_fit']:.3f}"
    assert titles[4] == "std of n = 8 samples\n(± 27 % sampling error)"
    assert titles[5].startswith("absolute error")
    assert titles[6] == "10 of 20 phase-encode lines sampled"
    assert len({a.images[0].get_clim() for a in axes[:4]}) == 1  # one grey window
    assert {a.images[0].get_cmap().name for a in axes} == {"gray", "inferno"}
    assert "Not for diagnostic use" in seen[0].get_supxlabel()
    assert imread(tmp_path / "figure.png").std() > 0
