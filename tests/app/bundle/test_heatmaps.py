import io

import numpy as np
import pytest
from hostile import DRAWN
from PIL import Image
from support import spec

from app.bundle.decode import upright_size
from app.bundle.encode import png
from app.bundle.header import read_header
from app.bundle.heatmaps import decoding_spec, grey_of_distances, grey_of_errors, overlay
from app.bundle.manifest import InputSpec
from app.bundle.regions import Size
from app.errors import TooManyPixels

ORANGE, BLUE = np.array([230, 159, 0]), np.array([86, 180, 233])


def pixels(data: bytes) -> np.ndarray:
    """(H, W, 3)"""
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def coloured(drawn: np.ndarray) -> np.ndarray:
    """(H, W) bool: what is not grey."""
    return np.asarray(np.ptp(drawn, axis=2) > 20)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def heatmap_with(place: tuple[slice, slice], input_spec: InputSpec) -> np.ndarray:
    heatmap = np.zeros((input_spec.height, input_spec.width), np.uint8)
    heatmap[place] = 255
    return heatmap


def test_errors_are_white_where_they_are_most() -> None:
    assert grey_of_errors(np.array([[0, 0.2], [0.1, 0]], np.float32)).tolist() == [[0, 255], [128, 0]]
    assert grey_of_errors(np.zeros((2, 3), np.float32)).tolist() == [[0] * 3] * 2


def test_distances_are_white_from_where_few_normal_images_reach() -> None:
    distances = np.full((4, 6), 0.1, np.float32)
    distances[1:3, 2:4] = 0.3
    faint, strong = (grey_of_distances(distances, 8, 12, white) for white in (0.9, 0.2))
    assert faint.shape == strong.shape == (8, 12)
    assert (faint[0, 0], strong[0, 0]) == (0, 0)
    assert faint.max() < 80
    assert strong.max() > 180


@pytest.mark.parametrize("kind", sorted(DRAWN))
def test_a_picture_of_every_format_is_drawn_upright_and_small(kind: str) -> None:
    for longer, shorter in ((60, 40), (1280, 320)):
        data = DRAWN[kind](longer, shorter)
        size = Size(*upright_size(data))
        drawn = pixels(overlay(data, size, np.zeros((28, 28), np.uint8), [], spec()))
        scale = min(1, 1024 / longer)
        assert drawn.shape == (size.height * scale, size.width * scale, 3)
        assert not coloured(drawn).any()


@pytest.mark.parametrize(
    ("resize", "size", "place"),
    [
        ("stretch", (400, 240), (200, 120, 300, 180)),
        ("pad", (400, 120), (200, 30, 300, 90)),  # bars above and below: rows 8 to 16 of 24 are the picture
        ("crop", (800, 240), (400, 120, 500, 180)),  # columns 200 to 600 of the picture are the input
    ],
)
def test_the_map_lies_where_the_encoder_saw_it(
    resize: str, size: tuple[int, int], place: tuple[int, int, int, int]
) -> None:
    input_spec = spec(height=24, width=40, resize=resize)
    heatmap = heatmap_with((slice(12, 18), slice(20, 30)), input_spec)
    if resize == "pad":
        heatmap[9:15] = np.roll(heatmap, -3, axis=0)[9:15]
        heatmap[15:] = 0
    drawn = pixels(overlay(png(Image.new("L", size, 128)), Size(*size), heatmap, [], input_spec))
    assert drawn.shape[:2] == size[::-1]
    found = extent(coloured(drawn))
    assert np.abs(np.array(found) - place).max() <= 11, "a cell of the input is ten pixels, and edges are soft"
    middle = drawn[(found[1] + found[3]) // 2, (found[0] + found[2]) // 2]
    assert np.abs(middle - ORANGE).max() <= 20


def test_a_picture_on_its_side_is_drawn_upright() -> None:
    """A photograph of 2,400 × 1,600 pixels with a bright corner, lying."""
    upright = np.zeros((2400, 1600), np.uint8)
    upright[:600, :400] = 255
    lying, exif = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    lying.save(buffer, "JPEG", exif=exif)
    drawn = pixels(overlay(buffer.getvalue(), Size(1600, 2400), np.zeros((28, 28), np.uint8), [], spec()))
    assert drawn.shape == (1024, 683, 3)
    assert drawn[100, 80].tolist() == [255] * 3
    assert drawn[400, 80].tolist() == drawn[100, 400].tolist() == [0] * 3


def test_boxes_frame_their_regions_and_stay_inside() -> None:
    boxes = [(500.0, 500.0, 700.0, 900.0), (0.0, 0.0, 20.0, 10.0), (1990.0, 3.0, 2000.0, 1000.0)]
    data = png(Image.new("L", (2000, 1000), 200))
    drawn = pixels(overlay(data, Size(2000, 1000), np.zeros((28, 28), np.uint8), boxes, spec()))
    assert drawn.shape == (512, 1024, 3)
    blue = (drawn == BLUE).all(axis=2)
    assert extent(blue[200:, 200:600]) == (256 - 3 - 200, 256 - 3 - 200, 358 + 3 - 200, 461 + 3 - 200)
    assert (drawn[256:461, 256:358] == 200).all(), "what it frames stays visible"
    assert blue[:12, :20].any()
    assert blue[:, 1000:].any()


@pytest.mark.parametrize("blindness", ["protanopia", "deuteranopia", "tritanopia"])
def test_colour_blind_people_tell_map_box_and_picture_apart(blindness: str) -> None:
    """Simulated after Viénot, Brettel and Mollon (1999), and Machado (2009) for tritanopia; of linear RGB."""
    matrix = {
        "protanopia": [[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.0040, -0.0040, 1]],
        "deuteranopia": [[0.2928, 0.7072, 0], [0.2928, 0.7072, 0], [-0.0223, 0.0223, 1]],
        "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
    }[blindness]

    def seen(colour: np.ndarray) -> np.ndarray:
        linear = np.array(matrix) @ (colour / 255) ** 2.2
        return np.asarray(255 * np.clip(linear, 0, 1) ** (1 / 2.2))

    def apart(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.linalg.norm(seen(first) - seen(second)))

    greys = [np.full(3, level) for level in range(256)]
    assert min(apart(ORANGE, grey) for grey in greys) > 60
    assert min(apart(BLUE, grey) for grey in greys) > 30
    assert apart(ORANGE, BLUE) > 60


def test_the_limit_of_pixels_holds() -> None:
    data = DRAWN["JPEG RGB"](600, 600)
    with pytest.raises(TooManyPixels):
        overlay(data, Size(600, 600), np.zeros((28, 28), np.uint8), [], spec(), max_pixels=1000)


def test_a_photograph_is_decoded_no_larger_than_needed() -> None:
    header = read_header(DRAWN["JPEG RGB"](4000, 3000))
    assert header.scale(decoding_spec(spec())) == 2
