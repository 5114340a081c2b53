import io

import numpy as np
from PIL import Image

from app.api.pictures import error_png, explanation_png, unit_png


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_image_in_unit_is_rounded_to_eight_bits_and_kept_inside() -> None:
    image = np.array([[[-0.2], [0.0], [0.5]], [[0.999], [1.0], [7.0]]], np.float32)
    assert pixels(unit_png(image)).tolist() == [[0, 0, 128], [255, 255, 255]]
    assert pixels(unit_png(np.zeros((4, 5, 3), np.float32))).shape == (4, 5, 3)


def test_errors_are_white_where_they_are_most_whatever_their_sign() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    drawn = np.full((2, 2, 3), 100 / 255, np.float32)
    drawn[0, 1] += 0.2
    drawn[1, 0] -= 0.1
    map_ = pixels(error_png(image, drawn)).astype(int)
    assert np.abs(map_ - [[0, 255], [127, 0]]).max() <= 1


def test_a_perfect_drawing_is_black() -> None:
    image = np.full((2, 3, 1), 51, np.uint8)
    assert pixels(error_png(image, image / np.float32(255))).max() == 0


def test_reasons_for_are_white_against_black_and_none_grey() -> None:
    shares = np.array([[2.0, 0.0], [-1.0, 0.0]], np.float32)
    map_ = pixels(explanation_png(shares, 2, 2))
    assert map_.tolist() == [[255, 128], [64, 128]]
    assert pixels(explanation_png(shares * 0, 28, 20)).tolist() == [[128] * 20] * 28
