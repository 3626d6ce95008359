"""Each image of a sheet is where it belongs, in one window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from mrgen.review.sheet import save_sheet


def test_images_are_shown_side_by_side_in_one_window(tmp_path: Path) -> None:
    images = np.ones((6, 12, 10)) * np.array([0.0, 0.25, 0.5, 0.75, 1.0, 0.5])[:, None, None]
    save_sheet(tmp_path / "sheet.png", images, "six")
    picture = imread(tmp_path / "sheet.png")[..., 0]
    top, bottom = (picture[round(f * len(picture))] for f in (0.3, 0.7))
    for row, expected in ((top, (0.0, 0.25, 0.5, 0.75)), (bottom, (1.0, 0.5, 1.0, 1.0))):
        seen = [float(row[round((n + 0.5) / 4 * len(row))]) for n in range(4)]
        np.testing.assert_allclose(seen, expected, atol=0.02)
