"""The report in real browsers: what its canvases show and what keys, sliders and the mouse do."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_html import with_samples
from test_output import make_result

from mrgen.posterior.antithetic import moments
from mrgen.review import html
from mrgen.review.export import Exports
from mrgen.review.held import Held, hold
from mrgen.review.output import Result, write_result
from mrgen.review.stored import Stored

pytest.importorskip("selenium.webdriver", reason="selenium is not installed: it comes with mrgen[test]")
from browsers import BROWSERS, SIZE, missing
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

pytestmark = [
    pytest.mark.usefixtures("no_plots"),
    pytest.mark.filterwarnings("ignore:setting remote_server_addr:DeprecationWarning"),  # selenium's own, of WebKit
]
FACTOR = 2.5  # of the calibrated interval
INTERVAL = "The interval is that of a pixel, on average over scans like those of the calibration."


def result_with_all() -> tuple[Result, np.ndarray]:
    """Three slices of 24 x 20 pixels of 1 x 2 mm; samples of the last two, of which the first is flagged."""
    plain = make_result()
    withheld = {"ratio": 1.8, "standard_error": 0.1, "lines": 2}
    check = {"residual": 1.0, "null_space_share": 0.1, "measured_share": 0.9, "withheld": withheld}
    fields = {
        "null_space": 0.3 * plain.std,
        "calibration": {"coverage": 0.9, "factor": FACTOR, "sha256": "ef" * 32},
        "checks": [{"slice": 4 + i, **check, "withheld": withheld if i == 1 else None} for i in range(3)],
    }
    return with_samples(Result(**{**vars(plain), **fields}), range(1, 3))


class Report:
    """An open report."""

    def __init__(self, browser: Any, result: Result, samples: np.ndarray) -> None:
        self.browser, self.driver, self.result, self.samples = browser, browser.driver, result, samples
        self.settle()

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def settle(self) -> None:
        """Wait for what is being drawn."""
        end = time.monotonic() + 10
        while self.find("#viewer").get_attribute("aria-busy") != "false":
            assert time.monotonic() < end, self.browser.console()
            time.sleep(0.01)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()
        self.settle()

    def slide(self, name: str, value: float) -> None:
        """Move a slider as its mouse would."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.driver.execute_script(script, self.find(f"#{name}"), value)
        self.settle()

    def said(self, name: str) -> str:
        return self.find(f"output[for={name}]").text

    def chosen(self, pane: int) -> str:
        return self.driver.find_elements("css selector", ".pane select")[pane].get_attribute("value")

    def canvas(self, pane: int) -> Any:
        return self.driver.find_elements("css selector", ".stage canvas")[pane]

    def size(self, pane: int) -> tuple[int, int]:
        """Of the canvas, which has a pixel of its own for every one of the screen."""
        canvas = self.canvas(pane)
        return int(canvas.get_property("width")), int(canvas.get_property("height"))

    def places(self, pane: int, points: list[tuple[float, float]], zoom: float = 1) -> np.ndarray:
        """The canvas's (u, v) of (row, column) in the image: pixels are 1 mm high and 2 mm wide."""
        width, height = self.size(pane)
        fit = zoom * min(width / (20 * 2), height / 24)
        return np.array([(width / 2 + 2 * fit * (c - 10), height / 2 + fit * (r - 12)) for r, c in points])

    def pixels(self, pane: int, zoom: float = 1) -> np.ndarray:
        """(y, x, rgb) at the centres of the image's pixels, as the canvas shows them; -1 outside."""
        centres = self.places(pane, [(row + 0.5, column + 0.5) for row in range(24) for column in range(20)], zoom)
        script = """const canvas = arguments[0];
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
            copy.drawImage(canvas, 0, 0);
            const all = copy.getImageData(0, 0, canvas.width, canvas.height).data;
            const there = ([u, v]) => u >= 0 && v >= 0 && u < canvas.width && v < canvas.height;
            const at = ([u, v]) => 4 * (canvas.width * v + u);
            const colour = (p) => there(p) ? [...all.slice(at(p), at(p) + 3)] : [-1, -1, -1];
            return JSON.stringify(JSON.parse(arguments[1]).map(colour));"""
        found = self.driver.execute_script(script, self.canvas(pane), json.dumps(centres.astype(int).tolist()))
        return np.array(json.loads(found)).reshape(24, 20, 3)

    @property
    def top(self) -> float:
        return float(np.percentile(self.result.reference, 99.8))

    def shows(self, pane: int, image: np.ndarray, low: float = 0.0, high: float | None = None) -> None:
        """The pane shows this image in this window of greys, to a grey level."""
        expected = np.clip(255 * (image - low) / ((high or self.top) - low), 0, 255)
        found = self.pixels(pane)
        assert np.abs(found - expected[..., None]).max() < 1.5

    def drag(self, start: tuple[float, float], end: tuple[float, float], pane: int = 0, key: str | None = None) -> None:
        """From one (row, column) to another."""
        begin, finish = np.rint(self.places(pane, [start, end]) - np.array(self.size(pane)) / 2).astype(int).tolist()
        chain = ActionChains(self.driver, duration=20).move_to_element_with_offset(self.canvas(pane), *begin)
        chain = chain.key_down(key) if key else chain
        chain = chain.click_and_hold().move_by_offset(finish[0] - begin[0], finish[1] - begin[1]).release()
        (chain.key_up(key) if key else chain).perform()
        self.settle()

    def roi(self) -> dict[str, list[float]]:
        """The numbers of every row of the region's table, exact."""
        script = """return Object.fromEntries([...document.querySelectorAll("#roi-result tbody tr")].map((row) =>
            [row.dataset.row, [...row.querySelectorAll("td[title]")].map((cell) => parseFloat(cell.title))]))"""
        return self.driver.execute_script(script)


@pytest.fixture(scope="module", params=BROWSERS)
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    kind = BROWSERS[request.param]
    if lacks := missing(kind):
        pytest.skip(f"{', '.join(lacks)} not installed: Debian's {kind.packages}")
    browser = kind(tmp_path_factory.mktemp(request.param))
    browser.driver.set_window_size(*SIZE)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Result], Path]:
    def write(result: Result) -> Path:
        out = tmp_path_factory.mktemp("report")
        Exports(("html",)).write(out, write_result(out, "scan", result)[0], print)
        return out / "report.html"

    return write


@pytest.fixture(scope="module")
def full(written: Callable[[Result], Path]) -> tuple[Path, Result, np.ndarray]:
    result, samples = result_with_all()
    return written(result), result, samples


@pytest.fixture
def page(browser: Any, full: tuple[Path, Result, np.ndarray]) -> Iterator[Report]:
    """The report, just opened; afterwards nothing was asked for but itself, and the console is empty."""
    path, result, samples = full
    browser.requests(), browser.console()
    browser.driver.get(path.as_uri())
    assert browser.console() == []
    yield Report(browser, result, samples)
    assert browser.requests() == [path.as_uri()]
    assert browser.console() == []


def test_requests_and_errors_of_a_page_are_heard(browser, tmp_path):
    """So that it means something that the report has none."""
    page = tmp_path / "page.html"
    browser.requests(), browser.console()
    with socket.socket() as nobody:  # who refuses connections
        nobody.bind(("127.0.0.1", 0))
        picture = f"http://127.0.0.1:{nobody.getsockname()[1]}/x.png"
        script = f"<script>new Image().src = '{picture}'</script>"
        page.write_text(f'<!DOCTYPE html><p onclick="setTimeout(() => nothing())">here {script}')
        browser.driver.get(page.as_uri())
        browser.console()
        browser.driver.find_element("css selector", "p").click()
        end, asked, said = time.monotonic() + 10, browser.requests(), browser.console()
        while not (picture in asked and said):
            assert time.monotonic() < end, (asked, said)
            asked, said = asked + browser.requests(), said + browser.console()


def test_it_opens_with_the_mean_the_std_and_the_banner(page):
    assert page.find(".banner").text == "Research use only. Not for diagnostic use."
    assert page.find(".warning").text == "NOMINAL GEOMETRY, L/R NOT VERIFIED."
    assert (page.said("slice"), page.said("opacity")) == ("5 (2 of 3)", "off")
    assert (page.chosen(0), page.chosen(1)) == ("reconstruction", "std")
    page.shows(0, page.result.images["reconstruction"][1])
    high = np.percentile(page.result.std, 99.8)
    i = np.rint(np.clip(255 * page.result.std[1] / high, 0, 255))
    hot = np.stack([2 * i, 2 * (i - 128), 4 * (i - 192)], -1).clip(0, 255)  # DICOM's hot iron
    assert np.abs(page.pixels(1) - hot).max() <= 4
    bars = [span.text for span in page.driver.find_elements("css selector", ".bars span")]
    assert bars[:3] == ["posterior mean, n = 8, 10⁻³ a.u.", "0", f"{1e3 * page.top:.0f}"]
    assert bars[3:] == ["std map, n = 8 (± 27 %), 10⁻³ a.u.", "0", f"{1e3 * high:.3g}"]


def test_slices_by_slider_and_keys(page):
    mean = page.result.images["reconstruction"]
    page.slide("slice", 2)
    page.shows(0, mean[2])
    page.press(Keys.ARROW_LEFT, Keys.ARROW_UP)
    page.shows(0, mean[0])
    page.press(Keys.ARROW_UP)  # there is none before the first
    assert page.said("slice") == "4 (1 of 3)"
    page.press(Keys.END)
    page.shows(0, mean[2])
    page.press(Keys.HOME, Keys.ARROW_DOWN)
    page.shows(0, mean[1])
    page.find("#slice").send_keys(Keys.ARROW_RIGHT)  # the slider's own step, once
    page.settle()
    assert page.said("slice") == "6 (3 of 3)"
    page.find("#opacity").send_keys(Keys.ARROW_LEFT, Keys.ARROW_RIGHT)  # another slider's
    page.settle()
    assert (page.said("slice"), page.said("opacity")) == ("6 (3 of 3)", "5 %")
    page.press("r")
    page.driver.find_elements("css selector", "#strip button")[0].click()
    page.settle()
    page.shows(0, mean[0])
    origin = ScrollOrigin.from_element(page.canvas(1))
    ActionChains(page.driver).scroll_from_origin(origin, 0, 100).perform()  # the wheel
    page.settle()
    page.shows(0, mean[1])
    page.press(Keys.HOME)
    listed = page.find(".paper li button")
    assert listed.text == "Slice 5"  # whose error at withheld lines is 1.8 of what its spread predicts
    listed.click()
    page.settle()
    page.shows(0, mean[1])


def test_samples_flip_by_keys_and_slider(page):
    page.press("s")
    assert (page.chosen(1), page.said("sample")) == ("sample", "1 of 8")
    page.shows(1, page.samples[1, 0])
    page.press("s", Keys.SPACE)
    page.shows(1, page.samples[1, 2])
    page.press("S")
    page.shows(1, page.samples[1, 1])
    page.slide("sample", 7)
    page.shows(1, page.samples[1, 7])
    page.press("s")
    page.shows(1, page.samples[1, 0])
    page.press(Keys.END)
    page.shows(1, page.samples[2, 0])
    page.press(Keys.HOME)
    assert page.said("sample") == "none of this slice in this file"
    assert not page.pixels(1).any()


def test_images_by_number_and_menu(page):
    images = page.result.images
    page.press("3")
    assert page.chosen(1) == "zero_filled"
    page.shows(1, images["zero_filled"][1])
    page.press("p", "4")
    page.shows(0, images["l1_wavelet"][1])
    Select(page.driver.find_elements("css selector", ".pane select")[1]).select_by_value("reference")
    page.settle()
    page.shows(1, page.result.reference[1])
    page.driver.find_elements("css selector", ".pane select")[1].send_keys("s")  # the menu keeps its keys
    page.settle()
    assert page.chosen(0) == "l1_wavelet"


def test_the_error_is_that_of_the_fitted_mean(page):
    mean, truth = page.result.images["reconstruction"][1], page.result.reference[1]
    error = np.abs((mean * truth).sum() / (mean * mean).sum() * mean - truth)
    page.press("p", "8")
    assert page.chosen(0) == "error"
    i = np.rint(np.clip(255 * error / (page.top / 4), 0, 255))
    assert np.abs(page.pixels(0)[..., 0] - np.minimum(2 * i, 255)).max() <= 6  # red is steep
    assert np.abs(page.pixels(0)[..., 2] - (4 * (i - 192)).clip(0, 255)).max() <= 12


def test_the_window_by_sliders_keys_and_drag(page):
    mean, top = page.result.images["reconstruction"][1], page.top
    page.slide("width", 0.4 * top)
    page.slide("centre", 0.6 * top)
    page.shows(0, mean, 0.4 * top, 0.8 * top)
    page.press("r")
    page.shows(0, mean)
    page.press("w", "l")
    centre, width = top / 2 - top / 40, top / 1.1
    page.shows(0, mean, centre - width / 2, centre + width / 2)
    page.press("W", "L")
    page.shows(0, mean)
    before = page.pixels(0)
    page.drag((12, 6), (12, 14), key=Keys.SHIFT)
    assert float(page.said("width").split()[0]) > 1.2e3 * top
    assert page.pixels(0).std() < before.std()
    assert page.roi() == {}  # no region


def test_the_std_over_the_image(page):
    page.press("o")
    assert page.said("opacity") == "50 %"
    high = np.percentile(page.result.std, 99.8)
    i = np.rint(np.clip(255 * page.result.std[1] / high, 0, 255))
    hot = np.stack([2 * i, 2 * (i - 128), 4 * (i - 192)], -1).clip(0, 255)
    grey = np.clip(255 * page.result.images["reconstruction"][1] / page.top, 0, 255)[..., None]
    assert np.abs(page.pixels(0) - (hot + grey) / 2).max() < 4
    page.slide("opacity", 1)
    assert np.abs(page.pixels(0) - hot).max() <= 4
    page.slide("range", 0.5)  # half as much is white
    i = np.rint(np.clip(255 * page.result.std[1] / (high / 2), 0, 255))
    assert np.abs(page.pixels(0)[..., 0] - np.minimum(2 * i, 255)).max() <= 4


def expected_roi(page: Report, i: int, rows: slice, columns: slice) -> dict[str, list[float]]:
    def both(image: np.ndarray) -> list[float]:
        part = image[rows, columns].astype(np.float64)
        return [part.mean(), part.std()]

    result = page.result
    mean, truth = result.images["reconstruction"][i], result.reference[i]
    error = np.abs((mean * truth).sum() / (mean * mean).sum() * mean - truth)
    means = page.samples[i, :, rows, columns].mean((1, 2))
    return {
        "reconstruction": both(mean),
        "sample": both(page.samples[i, 0]),
        "zero_filled": both(result.images["zero_filled"][i]),
        "l1_wavelet": both(result.images["l1_wavelet"][i]),
        "reference": both(truth),
        "std": both(result.std[i]),
        "interval": [FACTOR * result.std[i, rows, columns].mean()],
        "null_space": both(result.null_space[i]),
        "error": both(error),
        "spread": [means.std(ddof=1)],
    }


def test_a_drag_measures_what_numpy_does(page):
    page.drag((3.5, 5.5), (10.5, 8.5))
    fields = [page.find(f"#roi-{name}").get_attribute("value") for name in ("x", "y", "width", "height")]
    assert fields == ["5", "3", "4", "8"]
    found, expected = page.roi(), expected_roi(page, 1, slice(3, 11), slice(5, 9))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=2e-4 * page.top, err_msg=name)  # rounding averages out
    assert f"From x = 5, y = 3, 4 × 8: 32 pixels, 64 mm². {INTERVAL}" in page.find("#roi-result").text
    page.drag((23.5, 19.5), (20.5, 16.5), pane=1)  # backwards, to the corner
    np.testing.assert_allclose(
        page.roi()["std"], expected_roi(page, 1, slice(20, 24), slice(16, 20))["std"], atol=1e-3 * page.top
    )
    page.press("c")
    assert page.roi() == {}


def test_the_spread_of_antithetic_samples_is_that_of_pairs(page):
    values = np.random.default_rng(0).random(6)
    found = page.driver.execute_script(f"return [variance({values.tolist()}), varianceOfPairs({values.tolist()})]")
    expected = [moments(torch.from_numpy(values), antithetic)[1].item() for antithetic in (False, True)]
    np.testing.assert_allclose(found, expected)


def test_a_region_by_keys_alone(page):
    for name, value in (("x", 2), ("y", 7), ("width", 30), ("height", 5)):
        field = page.find(f"#roi-{name}")
        field.send_keys(Keys.CONTROL, "a", Keys.CONTROL, str(value), Keys.TAB)
        page.settle()
    expected = expected_roi(page, 1, slice(7, 12), slice(2, 20))  # what lies in the image
    np.testing.assert_allclose(page.roi()["reconstruction"], expected["reconstruction"], atol=1e-3 * page.top)


def test_the_pointer_reads_values_in_both_panes(page):
    (offset,) = np.rint(page.places(0, [(7.5, 13.5)]) - np.array(page.size(0)) / 2).astype(int).tolist()
    ActionChains(page.driver, duration=20).move_to_element_with_offset(page.canvas(0), *offset).perform()
    for pane, image in ((0, page.result.images["reconstruction"]), (1, page.result.std)):
        text = page.driver.find_elements("css selector", ".pane output")[pane].get_property("textContent")
        where, value = text.split(": ")
        assert where == "(13, 7)"
        assert float(value.split()[0]) == pytest.approx(1e3 * image[1, 7, 13], abs=2)
    page.press("+", "+")
    assert page.said("zoom") == "1.5625 ×"
    zoomed = page.pixels(0, zoom=1.5625)
    assert (zoomed[12, 6:14] >= 0).all()
    assert (zoomed < 0).any()
    expected = np.clip(255 * page.result.images["reconstruction"][1] / page.top, 0, 255)[..., None]
    assert np.abs(zoomed - expected)[zoomed >= 0].max() < 1.5


def test_a_small_window_stays_where_it_is_scrolled(page):
    page.driver.set_window_size(800, 500)
    try:
        page.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )
        page.settle()  # what the new size has made it draw
        page.driver.execute_script("document.querySelector('#slice').scrollIntoView()")
        before = page.driver.execute_script("return scrollY")
        page.slide("slice", 2)
        assert page.driver.execute_script("return scrollY") == before > 200
        page.shows(0, page.result.images["reconstruction"][2])
    finally:
        page.driver.set_window_size(*SIZE)


def test_help_opens_and_closes_by_keys(page):
    page.press("?")
    assert page.find("#help").is_displayed()
    page.press("s")  # belongs to the dialogue
    assert page.chosen(1) == "std"
    page.press(Keys.ESCAPE)
    assert not page.find("#help").is_displayed()


def test_its_policy_lets_nothing_out(page):
    script = """const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (e) => done(e.effectiveDirective), { once: true });
        fetch("http://127.0.0.1:9/").catch(() => {});"""
    assert page.driver.execute_async_script(script) == "connect-src"
    assert re.search("Content.Security.Policy|connect-src", page.browser.console()[0])


@pytest.mark.parametrize("browser", ["chromium", "firefox"], indirect=True)  # WebKit's driver prints nothing
def test_the_printed_pages(page, tmp_path):
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed: Debian's poppler-utils")
    page.drag((3.5, 5.5), (10.5, 8.5))
    (tmp_path / "report.pdf").write_bytes(base64.b64decode(page.driver.print_page()))
    sheets = []  # of each page its words and where they begin and end
    for sheet in poppler("pdftotext", "-bbox", tmp_path / "report.pdf", "-").split("<page")[1:]:
        found = re.findall(r'yMin="([\d.]+)" xMax="[\d.]+" yMax="([\d.]+)">([^<]+)<', sheet)
        sheets.append([(float(top), float(bottom), word) for top, bottom, word in found])
    texts = [" ".join(word for _, _, word in words) for words in sheets]
    for words, text in zip(sheets, texts, strict=True):
        assert text.startswith("Research use only. Not for diagnostic use.")
        assert min(top for top, _, _ in words[7:]) > max(bottom for _, bottom, _ in words[:7])  # nothing lies under it
    assert len(texts) == 2
    region = f"From x = 5, y = 3, 4 × 8: 32 pixels, 64 mm². {INTERVAL}"
    for text in ("NOMINAL GEOMETRY", "slice 5 · posterior mean, n = 8", region, "Slices worth a second look", "Scores"):
        assert text in texts[0]
    for text in ("How it was made", "Sampling mask", "Calibration", "What these images do not tell", "Low std"):
        assert text in texts[1]
    assert "Reset view" not in "".join(texts)
    assert poppler("pdfimages", "-list", tmp_path / "report.pdf").count("image") >= 5  # three slices and two panes


def poppler(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("browser", ["chromium"], indirect=True)
def test_an_old_browser_says_so(page):
    script = {"source": "delete window.DecompressionStream"}
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        page.driver.refresh()
        assert "it takes Chrome or Edge 88, Firefox 113" in page.find("#problem").text
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        page.browser.requests()
        page.driver.refresh()


def test_a_result_without_samples_or_reference(browser, written):
    result = make_result(reference=False)
    result = Result(**{**vars(result), "std": None, "samples": None, "prior_sha256": None})
    browser.console()
    browser.driver.get(written(result).as_uri())
    page = Report(browser, result, np.empty(0))
    assert (page.chosen(0), page.chosen(1)) == ("reconstruction", "zero_filled")
    high = np.percentile(result.images["reconstruction"], 99.8)
    page.shows(0, result.images["reconstruction"][1], 0, high)
    page.shows(1, result.images["zero_filled"][1], 0, high)
    page.press("s", "o")
    assert page.chosen(1) == "zero_filled"
    assert not page.find("#sample").is_displayed()
    page.drag((3.5, 5.5), (10.5, 8.5))
    assert page.roi().keys() == {"reconstruction", "zero_filled", "l1_wavelet"}
    assert browser.console() == []


def test_what_the_page_had_no_room_for_is_missed_by_nothing(browser, written, monkeypatch):
    """The std map, all images but the mean, and the mean of the last slice."""
    result, samples = result_with_all()

    def part(stored: Stored, _: float) -> Held:
        held = hold(stored, np.inf)
        keys = ("reconstruction-0", "reconstruction-1", "std-1", "reference-1")
        return Held({key: held.blocks[key] for key in keys}, 2, held.steps, held.tops, {"std": range(1, 2)})

    monkeypatch.setattr(html, "hold", part)
    browser.driver.get(written(result).as_uri())
    assert browser.console() == []
    page = Report(browser, result, samples)
    page.press("o")
    page.drag((3.5, 5.5), (10.5, 8.5))
    assert page.roi().keys() == {"reconstruction", "reference", "std", "interval", "error"}
    page.press("s", Keys.HOME)  # there are no samples
    page.shows(0, result.images["reconstruction"][0])
    assert page.roi().keys() == {"reconstruction"}
    page.press("p", "4")
    assert page.chosen(1) == "error"
    assert not page.pixels(1).any()
    figure = page.driver.find_elements("css selector", ".pane")[1]
    assert figure.get_property("dataset")["text"] == "slice 4 · absolute error: not in this file"
    panes = page.driver.find_elements("css selector", ".pane")
    assert ["missing" in pane.get_attribute("class") for pane in panes] == [False, True]
    page.press(Keys.END)
    assert not page.pixels(0).any()
    assert page.roi() == {}
    assert browser.console() == []
