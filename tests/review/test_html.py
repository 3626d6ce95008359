"""The report as a file: what is in it, and what must not be. test_report_browser.py opens it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oblique
import pytest
from test_output import make_result

from mrgen.errors import MrgenError
from mrgen.review import html
from mrgen.review.export import Exports
from mrgen.review.geometry import NOMINAL_NOTICE, place
from mrgen.review.held import NEAR, Held, hold
from mrgen.review.output import Result, write_result
from mrgen.review.pack import levels, pack, step_of
from mrgen.review.stored import Stored, read_stored
from mrgen.scans.geometry import Geometry

pytestmark = pytest.mark.usefixtures("no_plots")


class Page(HTMLParser):
    """Elements with their attributes, texts by the id of scripts, and all that a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: tuple[str, dict[str, str | None]] = ("", {})
        self.scripts: dict[str, str] = {}
        self.styles: list[str] = []
        self.shown = ""
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.open = (name, dict(attributes))
        self.elements.append(self.open)

    def handle_endtag(self, name: str) -> None:
        self.open = ("", {})

    def handle_data(self, text: str) -> None:
        name, attributes = self.open
        if name == "script":
            key = attributes.get("id") or "code"
            self.scripts[key] = self.scripts.get(key, "") + text
        elif name == "style":
            self.styles.append(text)
        else:
            self.shown += text

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.scripts["facts"])

    def image(self, name: str, i: int) -> np.ndarray:
        """The image as the formulas of mrgen.review.pack give it back, written out once more."""
        facts = self.facts
        shape = facts["rows"], facts["columns"]

        def differences(key: str) -> np.ndarray:
            low, high = np.frombuffer(zlib.decompress(base64.b64decode(self.scripts[key])), np.uint8).reshape(2, -1)
            z = low.astype(int) + 256 * high.astype(int)
            return np.where(z % 2, -(z + 1) // 2, z // 2)

        if name == "samples":
            about = facts["samples"]
            (mean,) = (layer for layer in facts["layers"] if layer["id"] == "reconstruction")
            base = np.rint(self.image("reconstruction", i) / mean["step"]) // about["ratio"]
            return (differences(f"samples-{i}").reshape(-1, *shape) + base) % 65536 * about["step"]
        (layer,) = (layer for layer in facts["layers"] if layer["id"] == name)
        return np.cumsum(differences(f"{name}-{i}")).reshape(shape) % 65536 * layer["step"]


def with_samples(result: Result, kept: range) -> tuple[Result, np.ndarray]:
    """The result with noisy samples of the slices `kept`."""
    rng = np.random.default_rng(1)
    mean = result.images["reconstruction"]
    shape = (len(mean), result.samples, *mean.shape[1:])
    samples = (mean[:, None] + 0.1 * rng.random(shape)).astype(np.float32)
    fields = {"sampled": kept, "read_samples": samples.__getitem__}
    return Result(**{**vars(result), **fields}), samples


def write(out: Path, result: Result, stem: str = "scan") -> Page:
    path = write_result(out, stem, result)[0]
    assert Exports(("html",)).write(out, path, print) == [out / "report.html"]
    return Page(out / "report.html")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Result, np.ndarray]:
    result, samples = with_samples(make_result(), range(1, 3))
    interval = {"coverage": 0.9, "factor": 2.5, "sha256": "ef" * 32}
    result = Result(**{**vars(result), "null_space": 0.3 * result.std, "calibration": interval})
    return write(tmp_path_factory.mktemp("html"), result), result, samples


def test_every_value_comes_back_within_half_a_step(made):
    page, result, samples = made
    volumes = {**result.images, "std": result.std, "null_space": result.null_space, "reference": result.reference}
    for name, volume in volumes.items():
        half = 0.501 * volume.max() / (1023.5 if name in ("std", "null_space") else 2047)
        for i, image in enumerate(volume):
            np.testing.assert_allclose(page.image(name, i), image, atol=half)
    assert page.facts["samples"]["count"] == 8
    assert [key for key in page.scripts if key.startswith("samples")] == ["samples-1", "samples-2"]
    largest = result.images["reconstruction"].max()
    for i in (1, 2):
        np.testing.assert_allclose(page.image("samples", i), samples[i], atol=1e-3 * largest)


def test_all_samples_are_taken_where_they_were_kept(tmp_path):
    result, samples = with_samples(make_result(), range(3))
    page = write(tmp_path, Result(**{**vars(result), "all_samples": True}))
    half = 0.501 * result.images["reconstruction"].max() / 1023.5
    for i in range(3):
        np.testing.assert_allclose(page.image("samples", i), samples[i], atol=half)


def test_differences_of_any_size_come_back():
    image = np.array([[0, 65535, 0], [32768, 1, 32767]], np.uint16)
    mean = np.array([[65535, 0, 1], [0, 32769, 65535]], np.uint16)
    for base in (None, mean):
        low, high = np.frombuffer(zlib.decompress(base64.b64decode(pack(image, base))), np.uint8).reshape(2, -1)
        z = low.astype(int) + 256 * high.astype(int)
        d = np.where(z % 2, -(z + 1) // 2, z // 2)
        found = np.cumsum(d) if base is None else d + base.reshape(-1).astype(int)
        assert np.array_equal(found % 65536, image.reshape(-1))
    assert step_of(np.zeros((2, 2))) == 1
    assert levels(np.array([1e9, 0.6]), 1.0).tolist() == [65535, 1]


def test_the_page_can_ask_for_nothing(made):
    page, _, _ = made
    assert page.elements[3][1].get("http-equiv") == "Content-Security-Policy"  # after html, head, charset
    policy = page.elements[3][1]["content"]
    hashes = [
        "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (page.styles[0], page.scripts["code"])
    ]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src '{hashes[0]}'; script-src '{hashes[1]}'; base-uri 'none'; "
        "form-action 'none'"
    )
    for name, attributes in page.elements:
        assert name not in ("iframe", "object", "embed", "a", "base")
        for key in ("src", "href", "srcset", "action"):
            assert (attributes.get(key) or "data:").startswith("data:"), (name, attributes)
        assert not [key for key in attributes if key == "style" or key.startswith("on")], name
    own = page.scripts["code"] + page.styles[0]
    assert not re.search(r"//\w|url\(|@import|fetch|XMLHttp|localStorage|cookie", own)


def test_what_a_reader_has_to_be_told(made):
    page, result, _ = made
    assert page.shown.count("Research use only. Not for diagnostic use.") == 2
    assert NOMINAL_NOTICE in page.shown
    for text in (
        "posterior mean, n = 8, R = 1.9, 3 slices of 24 × 20",
        "Low std does not mean correct.",
        "off by about 27 % of itself",
        "The 90 % interval is marginal and in-distribution",
        "mean ± 2.50 std",
        "abababababababab",
        "10 of 20 phase-encode lines, 1 left out by the scanner",
        "A slice is listed where one of these figures is above its limit",
    ):
        assert text in page.shown
    std = next(layer for layer in page.facts["layers"] if layer["id"] == "std")
    assert std["label"] == "std map, n = 8 (± 27 %)"
    cells = re.findall(r"<td>([^<]*)</td>", page.text)
    for i in range(3):
        score = result.slice_scores[i]["reconstruction"]
        assert f"{score['psnr_fit']:.2f}" in cells
        mean = result.images["reconstruction"]
        inside = mean[i] > 0.1 * np.percentile(mean, 99)
        assert f"{100 * result.std[i][inside].sum() / mean[i][inside].sum():.1f} %" in cells


def test_values_keep_their_unit(made):
    page, result, _ = made
    facts = page.facts
    assert facts["unit"] == {"factor": pytest.approx(1e3), "label": "10⁻³ a.u."}  # the reference is below 1
    assert facts["largest"] == pytest.approx(np.percentile(result.reference, 99.8))
    assert (facts["spacing"], facts["area"], facts["edges"]) == ([1.0, 2.0], 2.0, None)
    assert html._unit(4.1e-5) == {"factor": pytest.approx(1e6), "label": "10⁻⁶ a.u."}
    assert html._unit(999.0) == {"factor": 1.0, "label": "a.u."}
    assert html._unit(1000.0) == {"factor": pytest.approx(1e-3), "label": "10³ a.u."}


def test_edges_are_named_by_where_they_lie():
    """Columns to the left and 40 degrees down, rows to the back: the right edge is L, then F."""
    geometry = Geometry((1.0, 1.0), 3.0, ((0.0, 0.0, 0.0),), (0.0, 1.0, 0.0), (0.766, 0.0, -0.643), (0.643, 0.0, 0.766))
    found = html.edges(place(geometry, 1, (4, 4)))
    assert found == {"right": "LF", "left": "RH", "bottom": "P", "top": "A"}


def test_foreign_text_is_harmless(tmp_path):
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(1)">&"\''
    result = make_result()
    recipe = {"name": evil, "description": evil, "steps": evil}
    result = Result(**{**vars(result), "recipe": recipe, "prior": {evil: evil}, "noise_from": evil})
    clean = write(tmp_path, make_result())
    page = write(tmp_path, result, "<script>alert(1)<script>")
    assert page.shown.count(evil) == 6  # two of them are name and text of a row on the prior
    assert [name for name, _ in page.elements if name in ("script", "img")] == [
        name for name, _ in clean.elements if name in ("script", "img")
    ]
    assert page.scripts["code"] == clean.scripts["code"]
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file.attrs["mrgen_version"] = evil
    Exports(("html",)).write(tmp_path, tmp_path / "scan.h5", print)
    versioned = Page(tmp_path / "report.html")
    assert [name for name, _ in versioned.elements] == [name for name, _ in clean.elements]
    assert html._harmless(json.dumps(["</script>&"])) == '["\\u003c/script\\u003e\\u0026"]'


def test_neither_header_nor_file_name_is_in_it(tmp_path):
    page = write(tmp_path, make_result(), "Doe_Jane")
    for secret in ("Doe", "Jane", str(tmp_path)):
        assert secret not in page.shown + page.scripts["facts"] + page.scripts["code"]
        assert not [a for _, attributes in page.elements for a in attributes.values() if secret in (a or "")[:200]]


def test_a_recipe_without_samples_and_a_scan_without_reference(tmp_path):
    result = make_result(reference=False)
    plain = {"std": None, "samples": None, "prior_sha256": None}
    page = write(tmp_path, Result(**{**vars(result), **plain, "recipe": {"name": "sense"}}))
    assert [layer["id"] for layer in page.facts["layers"]] == ["reconstruction", "zero_filled", "l1_wavelet"]
    assert (page.facts["samples"], page.facts["fit"], page.facts["interval"]) == (None, None, None)
    assert "Low std" not in page.shown
    assert "there is nothing to score by" in page.shown


def test_an_empty_image_and_points_in_two_directions(tmp_path):
    result = make_result(reference=False)
    zeros = {name: np.zeros_like(image) for name, image in result.images.items()}
    mask = np.eye(24, 20, dtype=np.float32)
    page = write(tmp_path, Result(**{**vars(result), "images": zeros, "std": zeros["zero_filled"], "mask": mask}))
    assert not page.image("reconstruction", 1).any()
    assert "20 of 480 points" in page.shown


def test_what_is_missed_least_is_left_out_first(tmp_path):
    """With ever less room; the middle of slices 4 to 6 is 5, and samples of 5 and 6 were kept."""
    result, _ = with_samples(make_result(), range(1, 3))
    path = write_result(tmp_path, "scan", Result(**{**vars(result), "null_space": 0.3 * result.std}))[0]
    stored = read_stored(path)
    whole = hold(stored, np.inf)
    assert (whole.wider, whole.rounding, whole.left_out) == (1, 1e-3, {})
    sizes = {key: len(text) for key, text in whole.blocks.items()}
    order = ["reconstruction", "std", "samples", "reference", "zero_filled", "null_space", "l1_wavelet"]
    slices = {name: [1, 2] if name == "samples" else [1, 0, 2] for name in order}
    assert [*sizes] == [f"{name}-{i}" for name in order for i in slices[name]]
    doubled = hold(stored, sum(sizes.values()) - 1)
    assert (doubled.wider, doubled.rounding, doubled.left_out) == (2, 2e-3, {})
    assert doubled.steps == {name: 2 * step for name, step in whole.steps.items()}
    keys = [*doubled.blocks]
    for count in range(len(keys)):
        room = sum(len(doubled.blocks[key]) for key in keys[: count + 1]) - 1
        held = hold(stored, room)
        assert [*held.blocks] == keys[:count]
        for name in order:
            there = sorted(i for i in slices[name] if f"{name}-{i}" in held.blocks)
            left = len(there) < len(slices[name])
            assert (name in held.left_out) == left
            assert not left or list(held.left_out[name]) == there


def test_a_page_tells_what_it_had_no_room_for(tmp_path, monkeypatch):
    result, _ = with_samples(make_result(), range(3))
    page = write(tmp_path, result)
    assert "rounded by less than 0.1 % of the largest of their kind." in page.shown
    assert "too large for one file" not in page.shown

    def part(stored: Stored, _: float) -> Held:
        held = hold(stored, np.inf)
        gone = {"samples-0", "samples-2", "l1_wavelet-0", "l1_wavelet-1", "l1_wavelet-2"}
        blocks = {key: text for key, text in held.blocks.items() if key not in gone}
        return Held(blocks, 2, held.steps, held.tops, {"samples": range(1, 2), "l1_wavelet": range(0)})

    monkeypatch.setattr(html, "hold", part)
    page = write(tmp_path, result)
    assert "rounded by less than 0.2 % of the largest of their kind." in page.shown
    text = "so it is without L1-wavelet; samples, but of slices 5 to 5. The HDF5 file has them."
    assert text in page.shown
    names = ["reconstruction", "sample", "zero_filled", "reference", "std", "error"]
    assert [layer["id"] for layer in page.facts["layers"]] == names


@pytest.mark.parametrize(
    ("count", "side", "samples", "l1_wavelet"), [(16, 320, 16, 16), (48, 320, NEAR, 0), (320, 96, 16, 320)]
)
def test_it_stays_under_20_mb(tmp_path, count, side, samples, l1_wavelet):
    """Half of the pixels are an object whose std is 4 % of it, which no coding makes smaller; the rest is 0."""
    rng = np.random.default_rng(0)
    inside = np.hypot(*np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]) < 0.8
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        texture = rng.standard_normal((4, side, side), dtype=np.float32)
        mean = inside * np.abs(1 + 0.1 * texture)
        for name in ("reconstruction", "std", "zero_filled", "l1_wavelet", "reference", "null_space"):
            file[name] = np.concatenate([np.roll(mean * (1 + 0.04 * texture), k, 0) for k in range(count // 4)])
        exact = mean[:, None] * (1 + 0.04 * rng.standard_normal((4, 8, side, side), dtype=np.float32))
        step = step_of(file["reconstruction"][()])
        file["report_samples"] = np.concatenate([levels(exact, step)] * 4)
        file["report_samples"].attrs.update({"step": step, "first": count // 2 - 8})
        file["mask"] = np.ones(side)
        file["report"] = json.dumps(oblique.report(count))
        file["geometry"] = "{}"
        file.attrs.update({"R": 8.0, "seed": 0, "recipe": "posterior", "first_slice": 0, "scan_slices": count})
        file.attrs.update({"n_samples": 8, "mrgen_version": "0.1.0"})
    Exports(("html",)).write(tmp_path, path, print)
    assert 10e6 < (tmp_path / "report.html").stat().st_size < 20e6
    page = Page(tmp_path / "report.html")
    held = Counter(key.rpartition("-")[0] for key in page.scripts)
    assert {held[name] for name in ("reconstruction", "std", "reference", "zero_filled")} == {count}
    assert (held["samples"], held["l1_wavelet"]) == (samples, l1_wavelet)
    assert ("too large for one file" in page.shown) == (samples < 16)


def test_a_result_of_an_older_version_is_refused(tmp_path):
    path = oblique.write_result(tmp_path / "scan.h5", oblique.oblique())
    with h5py.File(path, "r+") as file:
        del file["report"]
    with pytest.raises(MrgenError, match=r"scan.h5: it lacks the report: an older mrgen wrote it"):
        read_stored(path)
    with h5py.File(path, "r+") as file:
        file["report"] = "[1"
    with pytest.raises(MrgenError, match=r"scan.h5: its report is not what mrgen writes"):
        read_stored(path)


@pytest.mark.parametrize(
    ("damage", "lacks"),
    [
        ({"seed": None}, "seed"),
        ({"recipe": {}, "identity": None}, "recipe.name, identity"),
        ({"flagged": {"rule": "", "figures": [{"slice": 0}, {}], "slices": []}}, "flagged.figures.slice"),
        ({"lines": None}, "lines"),
        ({"lines": {"sampled": 9}}, "lines.all"),
        ({"interval": {"coverage": 0.9, "sha256": "0"}}, "interval.factor"),
        ({"metrics": {"slices": 3}}, "metrics.slices.reconstruction, metrics.volume"),
    ],
)
def test_a_report_that_lacks_something_is_refused(mrgen, tmp_path, damage, lacks):
    path = oblique.write_result(tmp_path / "scan.h5", oblique.oblique())
    with h5py.File(path, "r+") as file:
        report = json.loads(file["report"][()]) | damage
        del file["report"]
        file["report"] = json.dumps({name: value for name, value in report.items() if value is not None})
    code, _, error = mrgen("export", path, "-o", tmp_path / "out")
    assert code == 1
    assert error == f"mrgen: error: scan.h5: its report lacks {lacks}: reconstruct the scan again\n"
    assert not list((tmp_path / "out").iterdir())
