from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mrgen.review.figure import save_figure


@pytest.mark.parametrize("shape", [(320, 120), (320, 290), (256, 256), (120, 320)])
def test_no_title_lies_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    image = np.random.default_rng(0).random(shape)
    images = dict.fromkeys(("zero_filled", "l1_wavelet", "reconstruction"), image)
    scores = {name: {"psnr_fit": 30.0, "ssim_fit": 0.9} for name in images}
    known = {"std": image, "samples": 8, "reference": image, "mask": np.ones(shape[1])}
    save_figure(tmp_path / "figure.png", images=images, scores=scores, title="mrgen posterior, slice 3", **known)
    (figure,) = drawn
    figure.set_dpi(50)
    figure.draw_without_rendering()
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert len(titles) == 7  # of the images and the mask
    assert not [pair for pair in combinations(titles, 2) if pair[0].overlaps(pair[1])]
