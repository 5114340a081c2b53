import numpy as np
import pytest

from benchmarks.drawn_defects import KINDS, Sources, draw

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(90, 130, (96, 160, 3), dtype=np.uint8)
SOURCES = Sources(sound=lambda: PICTURE[::-1], foreign=lambda: np.full((50, 40, 3), 220, np.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_is_drawn_where_its_mask_says(kind: str) -> None:
    """Around a mask the change fades; most of the picture stays as it was."""
    for seed in range(5):
        drawn, mask = draw(PICTURE, kind, np.random.default_rng(seed), SOURCES)
        changed = np.abs(drawn.astype(int) - PICTURE).max(axis=2)
        assert drawn.shape == PICTURE.shape
        assert drawn.dtype == np.uint8
        assert 0 < mask.sum() < mask.size / 2
        assert changed[mask].mean() > 10 * changed[~mask].mean()
        again, _ = draw(PICTURE, kind, np.random.default_rng(seed), SOURCES)
        assert np.array_equal(drawn, again)


def test_grey_pictures_stay_grey() -> None:
    grey = np.repeat(PICTURE[..., :1], 3, axis=2)
    for kind in KINDS:
        drawn, _ = draw(grey, kind, np.random.default_rng(1), SOURCES)
        assert (drawn == drawn[..., :1]).all()
