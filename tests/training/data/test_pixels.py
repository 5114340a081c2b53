from pathlib import Path

import numpy as np
from PIL import Image
from support import spec

from app.bundle import preprocess
from app.bundle.encode import png
from training.data.read import read_part


def test_another_size_goes_through_the_servings_preprocessing(named: Path) -> None:
    shape = spec(11, 13, 3)
    small, whole = read_part("mnist", "train", shape), read_part("mnist", "train", spec(28, 28))
    for made, pixels in zip(small.images[:5], whole.images[:5], strict=True):
        assert np.array_equal(made, preprocess(png(Image.fromarray(pixels[..., 0])), shape))
