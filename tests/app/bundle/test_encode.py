import numpy as np
import pytest
from support import spec

from app.bundle.encode import png_of
from app.bundle.preprocess import preprocess

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_as_they_were(channels: int) -> None:
    pixels = RNG.integers(0, 256, (7, 5, channels), dtype=np.uint8)
    np.testing.assert_array_equal(preprocess(png_of(pixels), spec(7, 5, channels)), pixels)


def test_the_longer_side_is_brought_down_and_nothing_is_enlarged() -> None:
    wide = RNG.integers(0, 256, (50, 100, 3), dtype=np.uint8)
    assert png_of(wide, 20)[16:24] == (20).to_bytes(4, "big") + (10).to_bytes(4, "big")
    assert png_of(wide[:5, :4], 20)[16:24] == (4).to_bytes(4, "big") + (5).to_bytes(4, "big")
