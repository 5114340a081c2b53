import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import SPECS, spec

from app.bundle import InputSpec, NotAnImage, preprocess_pixels
from app.bundle.masks import decode_mask, place_image, place_mask
from app.bundle.preprocess import placement

WHERE = np.zeros((6, 8), bool)
WHERE[2:4, 3:6] = True


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    image = Image.fromarray(WHERE.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(WHERE.astype(np.uint8) * 255),
        Image.fromarray(WHERE.astype(np.uint8)),  # numbers of kinds: nearly black
        Image.fromarray(WHERE),
        Image.fromarray(WHERE.astype(np.uint16)),  # whose high bytes are all zero
        palette(),
        Image.fromarray(np.stack([WHERE * 0, WHERE * 0, WHERE * 1], axis=2).astype(np.uint8)),
        Image.fromarray(np.stack([WHERE * 0 + 255] * 3 + [WHERE * 255], axis=2).astype(np.uint8)),  # white, but clear
    ],
    ids=["white", "numbers", "bits", "16 bits", "palette", "blue", "transparent"],
)
def test_any_pixel_that_is_not_black_is_defect(image: Image.Image) -> None:
    assert np.array_equal(decode_mask(encoded(image), spec()), WHERE)


def test_the_blur_of_a_jpeg_is_no_defect() -> None:
    large = Image.fromarray(np.kron(WHERE, np.ones((13, 13))).astype(np.uint8) * 255)
    blurred = encoded(large, "JPEG", quality=30)
    assert (np.asarray(Image.open(io.BytesIO(blurred))) > 0).mean() > 1.1 * WHERE.mean(), "nothing to be wrong about"
    assert abs(decode_mask(blurred, spec(78, 104)).mean() - WHERE.mean()) < 0.01


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(NotAnImage):
        decode_mask(b"text", spec())


@given(
    shape=SPECS, height=st.integers(1, 60), width=st.integers(1, 60), times=st.integers(1, 3), seed=st.integers(0, 9)
)
def test_each_pixel_takes_the_nearest_of_the_mask(
    shape: InputSpec, height: int, width: int, times: int, seed: int
) -> None:
    """A mask may be larger than its image; by the slow, obvious way."""
    mask = np.random.default_rng(seed).random((height * times, width * times)) < 0.5
    placed, inside = place_mask(mask, height, width, shape), place_image(height, width, shape)
    (left, top, right, bottom), size, _ = placement(width, height, shape)
    assert inside.sum() == size[0] * size[1]
    assert not placed[~inside].any()
    near: list[set[bool]] = []
    for y in range(size[1]):
        for x in range(size[0]):
            row = (top + (y + 0.5) * (bottom - top) / size[1]) * times
            column = (left + (x + 0.5) * (right - left) / size[0]) * times
            # A centre on a border between two pixels falls to either.
            ends = zip((row, column), mask.shape, strict=True)
            rows, columns = ({int(at - 1e-6), min(int(at + 1e-6), most - 1)} for at, most in ends)
            near.append({bool(mask[each, other]) for each in rows for other in columns})
    taken = placed[inside].tolist()  # row by row
    if not all(False in each for each in near):  # else all may fall between the pixels: see the test of thin defects
        assert all(own in each for own, each in zip(taken, near, strict=True))


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_a_mask_lies_where_its_defect_lies_in_the_picture(resize: str) -> None:
    """A white square on black is its own mask: pictures and masks move alike."""
    shape = spec(40, 60, resize=resize, padding="edge" if resize == "pad" else "background")
    for rows, columns, height, width in ((30, 50, 100, 90), (10, 60, 64, 128), (70, 5, 200, 40)):
        where = np.zeros((height, width), bool)
        where[rows : rows + 24, columns : columns + 20] = True
        picture = preprocess_pixels(where.astype(np.uint8) * 255, shape)[..., 0] > 127
        placed = place_mask(where, height, width, shape)
        assert (picture & placed).sum() >= 0.8 * (picture | placed).sum()
        assert picture.any() == placed.any()


def test_a_thin_defect_does_not_fall_between_the_pixels() -> None:
    mask = np.zeros((100, 100), bool)
    mask[3, 20:80] = True  # between rows 2 and 7, which a tenth of the size would take
    placed = place_mask(mask, 100, 100, spec(10, 10))
    assert placed[0, 2:8].all()
    assert placed.sum() == 6
    assert not place_mask(mask, 100, 100, spec(10, 20, resize="crop")).any(), "it was cropped away"


def test_of_several_defects_none_is_lost() -> None:
    numbers = np.zeros((100, 100), np.int32)
    numbers[40:80, 40:80] = 1
    numbers[12, 12] = 2  # between the pixels
    numbers[41, 42] = 3  # within another: the larger keeps the pixel
    placed = place_mask(numbers, 100, 100, spec(10, 10))
    assert placed[1, 1] == 2
    assert (placed == 1).sum() == 16
    assert set(np.unique(placed).tolist()) == {0, 1, 2}
