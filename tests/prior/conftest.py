"""What the tests of training share."""

from collections.abc import Iterator

import pytest

from mrgen.prior import progress


@pytest.fixture(scope="module")
def no_plots() -> Iterator[None]:
    """Without the plots of a training's log, which take longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "_plot", lambda *_: None)
        yield
