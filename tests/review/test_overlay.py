"""The overlay: colours and places of its pixels, its label, and what its header says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import oblique
import pytest
from exporting import DICOM, export, series

from mrgen.review.geometry import towards
from mrgen.scans.geometry import Geometry

OVERLAY = replace(DICOM, overlay=True)


def hot_iron(share: np.ndarray) -> np.ndarray:
    """The palette of PS3.6 B.1.1 in closed form: red, then green, then blue, each rising to 255."""
    level = np.rint(255 * share)
    ends = [2 * level, 2 * (level - 128), 4 * (level - 192)]
    return np.stack([np.clip(channel, 0, 255) for channel in ends], axis=-1)


def body(pixels: np.ndarray, above: int) -> np.ndarray:
    """The enlarged image, in the middle of each of its blocks (1.5 / 0.8 x 31 rows, 31 columns) a pixel."""
    rows = above + np.floor((np.arange(oblique.ROWS) + 0.5) * 1.5 / 0.8 * 31).astype(int)
    return pixels[np.ix_(rows, 31 * np.arange(oblique.COLUMNS) + 15)]


def test_colours_and_places_of_the_pixels(exported):
    images = oblique.images()
    grey = np.clip(images["reconstruction"] / np.percentile(images["reconstruction"], 99), 0, 1)
    warm = np.clip(images["std"] / np.percentile(images["std"], 99.9), 0, 1)
    expected = 0.6 * 255 * grey[..., None] + 0.4 * hot_iron(warm)
    for i, ds in enumerate(series(exported(), "1005_overlay")):
        assert ds.InstanceNumber == i + 1
        assert (ds.Columns, ds.Rows) == (31 * 17, 32 + 1395 + 98)  # 24 rows of 1.5 mm in steps of 0.8 / 31 mm
        assert (
            np.abs(body(ds.pixel_array, 32) - expected[i]).max() < 2.2
        )  # rounding, and 0.4 x a step of the palette, of 4


def test_the_label_is_above_and_below_and_whole(exported, tmp_path):
    plain = series(exported(), "1005_overlay")
    nominal = series(export(tmp_path / "out", Geometry(), OVERLAY), "1005_overlay")
    for ds, lines in ((plain[0], 1), (nominal[0], 2)):
        above = ds.pixel_array[: 8 + 24 * lines]
        assert (ds.pixel_array.shape[0] - 98 - len(above)) / ds.Columns == pytest.approx(
            24 * ds.PixelSpacing[0] / ds.PixelSpacing[1] / 17 * (1.5 / 0.8 if lines == 1 else 1), abs=0.01
        )
        for i in range(lines):  # every line has letters, yellow ones
            letters = above[4 + 24 * i : 28 + 24 * i].reshape(-1, 3)
            assert (letters == (255, 220, 0)).all(axis=1).sum() > 500
        below = ds.pixel_array[-98:]
        for line in ((4, 24), (62, 78), (79, 96)):
            assert (below[slice(*line)] == 255).all(axis=2).sum() > 100
        assert not below[60:, -8:].any()  # nothing is cut off
        assert not above[:, -8:].any()
        bar = below[34, 8:-8].astype(int)
        assert np.abs(bar - hot_iron(np.linspace(0, 1, len(bar)))).max() <= 4
    assert not np.array_equal(plain[0].pixel_array[-98:], plain[1].pixel_array[-98:])  # the slice's number


@pytest.mark.parametrize(("shape", "width"), [((224, 224), 672), ((320, 320), 640), ((640, 368), 736), ((5, 512), 512)])
def test_images_are_enlarged_by_a_whole_number(tmp_path, monkeypatch, shape, width):
    images = {name: np.ones((1, *shape), np.float32) for name in ("reconstruction", "std", "zero_filled")}
    images["reconstruction"][0, 1, 2] = 0.5
    monkeypatch.setattr(oblique, "images", lambda _: images)
    (ds,) = series(export(tmp_path / "out", Geometry(positions=((0.0, 0.0, 0.0),)), OVERLAY), "1005_overlay")
    times = width // shape[1]
    assert (ds.Columns, ds.Rows) == (width, 56 + times * shape[0] + 98)
    dark = np.argwhere((ds.pixel_array[56:-98] == ds.pixel_array[56 + times, 2 * times]).all(axis=2))
    assert np.array_equal(dark, np.argwhere(np.ones((times, times))) + times * np.array([1, 2]))
    assert np.array(ds.PixelSpacing, float) == pytest.approx(1 / times)


def test_the_header_tells_of_the_label_and_of_nobody(exported):
    mean, std = (series(exported(), folder) for folder in ("1001_mean", "1002_std"))
    for ds, one, other in zip(series(exported(), "1005_overlay"), mean, std, strict=True):
        assert (ds.SeriesNumber, ds.Modality, ds.ConversionType, ds.BurnedInAnnotation) == (1005, "MR", "WSD", "NO")
        assert (ds.PhotometricInterpretation, ds.SamplesPerPixel) == ("RGB", 3)
        assert "it holds no patient data" in ds.DerivationDescription
        assert (ds.PatientName, ds.PatientIdentityRemoved) == ("Anonymous^", "YES")
        sources = [item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence]
        assert sources == [one.SOPInstanceUID, other.SOPInstanceUID]
        assert np.array(ds.PixelSpacing, float) == pytest.approx([24 * 1.5 / 1395, 0.8 / 31])
        assert "FrameOfReferenceUID" not in ds


def test_orientation_is_told_where_it_is_known(exported, tmp_path):
    # columns run along (-0.68, 0.64, -0.35) and rows along (0.35, 0.71, 0.62)
    assert list(series(exported(), "1005_overlay")[0].PatientOrientation) == ["RPF", "PHL"]
    nominal = series(export(tmp_path / "out", Geometry(), OVERLAY), "1005_overlay")
    assert not nominal[0].PatientOrientation
    assert [towards(np.array(v)) for v in ((1, 0, 0), (0, -1, 0), (0, 0.97, 0.25), (0, 0.6, -0.8))] == [
        "L",
        "A",
        "P",
        "FP",
    ]
