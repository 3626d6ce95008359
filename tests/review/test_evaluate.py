"""Results and references written as small files and compared; the figures themselves are held in test_metrics.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from mrgen.errors import MrgenError
from mrgen.review.evaluate import evaluate_pair, find_pairs, open_pair, summarise
from mrgen.review.metrics import best_scale, scores, spread_scores

ATTRIBUTES = {"recipe": "posterior", "seed": 3, "n_samples": 8, "prior_sha256": "ab" * 32, "first_slice": 0}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path) -> Write:
    """write("out/head.h5", reconstruction=..., first_slice=...): arrays become datasets, the rest attributes."""

    def write_file(name: str, **content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for key, value in content.items():
                if isinstance(value, np.ndarray):
                    file[key] = value
                else:
                    file.attrs[key] = value
        return path

    return write_file


def truth(shape: tuple[int, ...] = (4, 24, 20), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def noisy(reference: np.ndarray, std: float = 0.1, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(reference.shape)
    return np.abs(reference + std * noise).astype(np.float32)


def refused(match: str, out: Path, reference: Path | None) -> None:
    with pytest.raises(MrgenError, match=match) as caught:
        list(map(evaluate_pair, starmap(open_pair, find_pairs(out, reference))))
    assert "\n" not in str(caught.value)


def test_folders_give_the_means_of_fastmris_own_evaluation(write, tmp_path):
    evaluate = pytest.importorskip("fastmri.evaluate", reason="fastmri is not installed")
    for k in range(5):
        reference = (1 + k) * 1e-4 * truth((3, 32, 32), seed=k)
        wide = np.pad(noisy(reference, (1 + k) * 1e-5), ((0, 0), (6, 6), (3, 3)), constant_values=1)
        write(f"out/scan{k}.h5", reconstruction=wide, **ATTRIBUTES)
        write(f"ref/scan{k}.h5", reconstruction_rss=reference)
    pairs = find_pairs(tmp_path / "out", tmp_path / "ref")
    images = summarise([evaluate_pair(open_pair(*pair)) for pair in pairs])["images"]["reconstruction"]
    options = SimpleNamespace(
        target_path=tmp_path / "ref", predictions_path=tmp_path / "out", acquisition=None, acceleration=None
    )
    theirs = evaluate.evaluate(options, "reconstruction_rss")
    for name in ("PSNR", "SSIM", "NMSE"):
        assert images[name.lower()]["mean"] == pytest.approx(theirs.means()[name], abs=1e-6)
        assert images[name.lower()]["std"] == pytest.approx(theirs.stddevs()[name], abs=1e-6)


def test_some_slices_are_compared_with_those_slices_and_the_whole_volumes_maximum(write):
    evaluate = pytest.importorskip("fastmri.evaluate", reason="fastmri is not installed")
    reference = truth((6, 24, 20))
    reference[5] *= 3  # the maximum lies in a slice that was not reconstructed
    image = noisy(reference[2:4])
    result = write("head.h5", reconstruction=image, **ATTRIBUTES | {"first_slice": 2})
    record = evaluate_pair(open_pair(result, write("ref/head.h5", reconstruction_rss=reference)))
    peak = reference.max()
    figures = record["volume"]["reconstruction"]
    assert figures["psnr"] == pytest.approx(evaluate.psnr(reference[2:4], image, peak), abs=1e-6)
    assert figures["ssim"] == pytest.approx(evaluate.ssim(reference[2:4], image, peak).item(), abs=1e-6)
    assert figures["nmse"] == pytest.approx(evaluate.nmse(reference[2:4], image).item(), abs=1e-6)
    assert [row["slice"] for row in record["slices"]] == [2, 3]
    assert record["slices"][1]["reconstruction"]["psnr"] == pytest.approx(
        evaluate.psnr(reference[3], image[1], peak), abs=1e-6
    )
    assert record["protocol"]["data_range"] == peak
    assert record["protocol"]["data_range_from"] == "maximum of slices 0:6 of the reference"

    part = write("part/head.h5", reference=reference[1:], first_slice=1)  # an mrgen result as the reference
    assert evaluate_pair(open_pair(result, part))["volume"] == record["volume"]
    whole = write("whole/head.h5", reconstruction=noisy(reference))  # of another program: no attribute needed
    assert open_pair(whole, part.parents[1] / "ref/head.h5").protocol["slices"] == [0, 6]


def test_the_figures_of_every_image_and_of_the_stored_reference(write):
    reference = truth()
    images = {n: noisy(reference, s) for n, s in (("l1_wavelet", 0.2), ("reconstruction", 0.1), ("zero_filled", 0.3))}
    mask = (np.arange(20) % 4 == 0).astype(np.float32)
    path = write("head.h5", **images, reference=reference, mask=mask, **ATTRIBUTES)
    record = evaluate_pair(open_pair(path, path))
    peak = float(reference.max())
    assert list(record["volume"]) == ["zero_filled", "l1_wavelet", "reconstruction"]
    for name, image in images.items():
        assert record["volume"][name] == pytest.approx(scores(image, reference))
        each = [scores(x, r, peak) for x, r in zip(image, reference, strict=True)]
        assert [row[name] for row in record["slices"]] == [pytest.approx(figures) for figures in each]
        for figure in ("psnr", "ssim_fit", "nmse"):
            values = [figures[figure] for figures in each]
            expected = {"mean": np.mean(values), "std": np.std(values, ddof=1)}
            assert record["over_slices"][name][figure] == pytest.approx(expected)
    psnrs = [row["reconstruction"]["psnr"] for row in record["slices"]]
    assert record["worst_slices"] == list(np.argsort(psnrs)[:3])
    protocol = record["protocol"]
    assert protocol["reference"] == "reference, stored in the result"
    assert (protocol["R"], protocol["sampled"], protocol["unit"]) == (4, [5, 20], "lines")
    assert {key: protocol[key] for key in ("recipe", "seed", "n_samples")} == {
        "recipe": "posterior",
        "seed": 3,
        "n_samples": 8,
    }
    assert protocol["cropped"] is None


def test_each_slice_has_its_own_fit_and_the_volume_one(write):
    reference = truth((3, 16, 16))
    image = reference * np.array([1, 2, 4], dtype=np.float32)[:, None, None]
    path = write("head.h5", reconstruction=image, reference=reference, **ATTRIBUTES)
    record = evaluate_pair(open_pair(path, path))
    assert all(row["reconstruction"]["nmse_fit"] < 1e-12 for row in record["slices"])
    assert record["volume"]["reconstruction"] == pytest.approx(scores(image, reference))
    assert record["volume"]["reconstruction"]["nmse_fit"] > 0.1


def test_a_single_coil_file_is_compared_with_its_emulated_single_coil_image(write):
    rss, esc = truth(seed=0), truth(seed=1)
    result = write("head.h5", reconstruction=noisy(esc), **ATTRIBUTES)
    pair = open_pair(result, write("ref/head.h5", reconstruction_rss=rss, reconstruction_esc=esc))
    assert np.array_equal(pair.reference, esc)
    assert pair.protocol["reference"] == "reconstruction_esc of head.h5"


@pytest.mark.parametrize("larger", ["result", "reference"])
def test_the_larger_matrix_is_cropped_around_its_centre(write, larger):
    big, small = np.zeros((1, 41, 44), np.float32), np.zeros((1, 40, 33), np.float32)
    for image in (big, small):
        image[0, image.shape[1] // 2, image.shape[2] // 2] = 1  # the centre of the image, as of k-space: N // 2
    big[0, 0, 0] = 9  # cropped away, and so no part of the data range
    image, reference = (big, small) if larger == "result" else (small, big)
    result = write("head.h5", reconstruction=image, std=image, **ATTRIBUTES)
    pair = open_pair(result, write("ref/head.h5", reconstruction_rss=reference))
    assert np.array_equal(pair.images["reconstruction"], small)
    assert np.array_equal(pair.std, small)
    assert np.array_equal(pair.reference, small)
    protocol = pair.protocol
    assert (protocol["cropped"], protocol["matrix"]) == (larger, [40, 33])
    assert (protocol["result_matrix"], protocol["reference_matrix"]) == (list(image.shape[1:]), [*reference.shape[1:]])
    assert protocol["data_range"] == 1


def test_the_spread_is_held_against_the_error_as_it_is_and_after_the_fit(write):
    reference = 1 + truth()
    mean = 0.5 * noisy(reference)
    std = np.random.default_rng(4).random(reference.shape).astype(np.float32) / 5
    path = write("head.h5", reconstruction=mean, std=std, reference=reference, **ATTRIBUTES)
    spread = evaluate_pair(open_pair(path, path))["spread"]
    s = best_scale(mean, reference)
    plain, fitted = spread_scores(mean, std, reference), spread_scores(s * mean, s * std, reference)
    assert spread == pytest.approx({**plain, **{f"{name}_fit": v for name, v in fitted.items() if name != "body"}})
    assert spread.keys() == {*plain, "coverage_fit", "rank_correlation_fit", "ause_fit"}
    assert spread["coverage"] < 0.05 < 0.5 < spread["coverage_fit"], "half the scale is no error after the fit"


def test_slices_without_a_reference_are_named_and_left_out(write):
    reference = truth()
    reference[1] = 0
    reference[:, :3] = 0  # as where the background was masked: no empty slice
    image = noisy(reference)
    path = write("head.h5", reconstruction=image, reference=reference, **ATTRIBUTES)
    record = evaluate_pair(open_pair(path, path))
    assert record["empty_slices"] == [1]
    assert [row["slice"] for row in record["slices"]] == [0, 2, 3]
    assert record["volume"]["reconstruction"] == pytest.approx(scores(image, reference)), "as fastMRI counts it"
    assert np.isfinite(record["over_slices"]["reconstruction"]["nmse"]["mean"])


def test_results_in_folders_of_their_own_are_found(write, tmp_path):
    for name in ("a", "b"):
        write(f"{name}/{name}.h5", reconstruction=truth(), **ATTRIBUTES)
        write(f"{name}/figure.png")
    assert [p.name for p, _ in find_pairs(tmp_path, None)] == ["a.h5", "b.h5"]


def test_what_cannot_be_compared(write, tmp_path):
    image = truth()
    good = write("good/head.h5", reconstruction=image, **ATTRIBUTES)
    ref = write("ref/head.h5", reconstruction_rss=image)
    refused("none: there is no such file or folder", tmp_path / "none", None)
    refused("none: there is no such file or folder", good, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused("no .h5 file in this folder", tmp_path / "empty", None)
    refused("head.h5: it holds no reference; name one with --reference", good, None)
    refused(r"no reference for 1 of 1 results \(head.h5\)", good, write("ref/knee.h5", reconstruction_rss=image))
    refused("no reference for 1 of 1 results", good.parent, tmp_path / "empty")
    refused("holds no reference; expected one of reconstruction_esc", good, write("x/head.h5", kspace=image))
    refused(r"no dataset 'reconstruction' \(found: reconstruction_rss\)", ref, None)
    (tmp_path / "garbage.h5").write_bytes(b"garbage" * 99)
    refused("garbage.h5: not a readable HDF5 file", tmp_path / "garbage.h5", None)
    for k in (1, 2):
        write(f"runs/{k}/head.h5", reconstruction=image, reference=image)
    refused("are of one scan, expected one result", tmp_path / "runs", None)


def test_shapes_that_cannot_be_compared(write, tmp_path):
    ref = write("ref/head.h5", reconstruction_rss=truth())

    def result(**content: Any) -> Path:
        return write("out/head.h5", **ATTRIBUTES | content)

    refused(
        "result is 20 x 24, its reference 24 x 20, expected one to hold", result(reconstruction=truth((4, 20, 24))), ref
    )
    refused("holds slices 3:7, its reference 0:4", result(reconstruction=truth(), first_slice=3), ref)
    refused(
        "holds slices 0:4, its reference 1:5",
        result(reconstruction=truth()),
        write("r/head.h5", reference=truth(), first_slice=1),
    )
    refused(
        "holds 2 of 4 slices, expected an attribute first_slice",
        write("other/head.h5", reconstruction=truth()[:2]),
        ref,
    )
    refused(r"reconstruction is complex64 \(4, 24, 20\), expected real", result(reconstruction=1j * truth()), ref)
    refused(r"reconstruction is float32 \(24, 20\)", result(reconstruction=truth()[0]), ref)
    refused("its images have shapes", result(reconstruction=truth(), zero_filled=truth()[:3]), ref)
    small = truth((4, 6, 20))
    refused(
        "head: the image is 6 x 20, expected 7 x 7 or more",
        result(reconstruction=small),
        write("s/head.h5", reference=small),
    )


@pytest.mark.parametrize("name", ["reconstruction", "zero_filled", "std"])
def test_nan_is_named_by_scan_image_and_slice(write, name):
    content = {key: truth((2, 24, 20)) for key in ("reconstruction", "zero_filled", "std")}
    content[name][1, 3, 3] = np.nan
    ref = write("ref/head.h5", reconstruction_rss=truth((12, 24, 20)))
    refused(f"head: slice 10 of {name} holds NaN", write("head.h5", **content, **ATTRIBUTES | {"first_slice": 9}), ref)


def test_a_reference_of_zeros_or_with_nan_is_refused(write):
    result = write("head.h5", reconstruction=truth(), **ATTRIBUTES)
    refused("head: the data range is 0", result, write("ref/head.h5", reconstruction_rss=0 * truth()))
    some = np.concatenate([0 * truth(), truth()])
    refused("head: the reference is all zeros", result, write("ref/head.h5", reconstruction_rss=some))
    some[6, 0, 0] = np.inf
    refused(
        "reference head.h5: slice 6 of reconstruction_rss holds NaN",
        result,
        write("ref/head.h5", reconstruction_rss=some),
    )


def scan_record(psnr: float, acceleration: float = 4.0, **protocol: Any) -> dict[str, Any]:
    common = {"R": acceleration, "recipe": "posterior", "n_samples": 8, "prior_sha256": "ab"}
    return {"volume": {"reconstruction": {"psnr": psnr}}, "spread": None, "protocol": {**common, **protocol}}


def test_the_interval_over_scans_is_a_seeded_bootstrap_of_their_mean():
    values = 30 + np.random.default_rng(0).standard_normal(60)
    figures = summarise([scan_record(v) for v in values])["images"]["reconstruction"]["psnr"]
    half = 1.96 * values.std() / np.sqrt(60)
    assert figures["mean"] == pytest.approx(values.mean())
    assert figures["std"] == pytest.approx(values.std(ddof=1))
    assert figures["interval_95"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)
    assert summarise([scan_record(v) for v in values])["images"]["reconstruction"]["psnr"] == figures
    for n, some in ((5, True), (4, False)):
        few = summarise([scan_record(v) for v in values[:n]])["images"]["reconstruction"]["psnr"]
        assert (few["interval_95"] is not None) is some
    one = summarise([scan_record(30)])["images"]["reconstruction"]["psnr"]
    assert (one["mean"], np.isnan(one["std"])) == (30, True)


def test_a_perfect_scan_leaves_no_interval_and_no_warning():
    figures = summarise([scan_record(v) for v in (np.inf, 30, 31, 32, 33)])["images"]["reconstruction"]["psnr"]
    assert figures["mean"] == np.inf
    assert figures["interval_95"] is None


def test_a_summary_says_what_its_scans_differ_in():
    summary = summarise([scan_record(30, 3.9), scan_record(31, 4.1)])
    assert (summary["scans"], summary["R"], summary["differ_in"]) == (2, [3.9, 4.1], [])
    assert summarise([scan_record(30), scan_record(31, n_samples=4, recipe="dps")])["differ_in"] == [
        "recipe",
        "n_samples",
    ]
    without = scan_record(30)
    without["protocol"]["R"] = None
    assert summarise([without])["R"] is None
    bare = scan_record(30)
    bare["volume"]["l1_wavelet"] = {"psnr": 20.0}
    images = summarise([bare, scan_record(32)])["images"]
    assert (images["l1_wavelet"]["psnr"]["scans"], images["reconstruction"]["psnr"]["scans"]) == (1, 2)
