import io

import numpy as np
from PIL import Image

from app.api.pictures import explanation_png, unit_png


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_image_in_unit_is_rounded_to_eight_bits_and_kept_inside() -> None:
    image = np.array([[[-0.2], [0.0], [0.5]], [[0.999], [1.0], [7.0]]], np.float32)
    assert pixels(unit_png(image)).tolist() == [[0, 0, 128], [255, 255, 255]]
    assert pixels(unit_png(np.zeros((4, 5, 3), np.float32))).shape == (4, 5, 3)


def test_reasons_for_are_white_against_black_and_none_grey() -> None:
    shares = np.array([[2.0, 0.0], [-1.0, 0.0]], np.float32)
    map_ = pixels(explanation_png(shares, 2, 2))
    assert map_.tolist() == [[255, 128], [64, 128]]
    assert pixels(explanation_png(shares * 0, 28, 20)).tolist() == [[128] * 20] * 28
