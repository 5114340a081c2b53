import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from support import spec

from app.bundle import InputSpec
from app.bundle.decode import decode, upright_size
from app.bundle.regions import MOST, PEAKS, Size, find, label_regions, peaks_of


def slow_regions(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """By filling each from one of its pixels."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while left:
        own, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            own.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(own)
    return found


@given(mask=arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14), elements=st.booleans()))
def test_regions_are_what_touches_at_a_side_or_a_corner(mask: np.ndarray) -> None:
    labels, count = label_regions(mask)
    expected = slow_regions(mask)
    assert count == len(expected)
    assert np.array_equal(labels > 0, mask)
    for region in expected:
        assert len({int(labels[at]) for at in region}) == 1
    assert len({int(labels[next(iter(region))]) for region in expected}) == count


def test_arms_that_meet_far_below_are_one_region() -> None:
    comb = np.zeros((40, 41), bool)
    comb[:, ::2] = True
    assert label_regions(comb)[1] == 21
    comb[-1] = True
    assert label_regions(comb)[1] == 1


PEAKS_OF_NINE = np.linspace(0.1, 0.9, 9).astype(np.float32)


def map_with(height: int, width: int, **blocks: tuple[slice, slice]) -> np.ndarray:
    """Zeros, and blocks of 0.5 (`low`), 1 (`mid`) and 2 (`high`)."""
    made = np.zeros((height, width), np.float32)
    for name, where in blocks.items():
        made[where] = {"low": 0.5, "mid": 1.0, "high": 2.0}[name]
    return made


def test_each_region_has_its_box_area_score_and_p_value_and_the_highest_comes_first() -> None:
    spec = tiny_spec(height=20, width=30, resize="stretch")
    drawn = map_with(20, 30, mid=(slice(2, 4), slice(5, 9)), high=(slice(10, 12), slice(20, 21)))
    high, mid = find(drawn, 0.6, PEAKS_OF_NINE, spec, Size(30, 20))
    assert (high.box, high.area, high.score) == ((20, 10, 21, 12), 2, 2.0)
    assert (mid.box, mid.area, mid.score) == ((5, 2, 9, 4), 8, 1.0)
    assert (high.p_value, find(drawn / 2, 0.4, PEAKS_OF_NINE, spec, Size(30, 20))[1].p_value) == (0.1, 0.6)
    assert find(drawn, 2.0, PEAKS_OF_NINE, spec, Size(30, 20)) == [], "above the threshold, not at it"


@pytest.mark.parametrize(
    ("resize", "size", "box"),
    [
        ("stretch", (600, 200), (100, 20, 180, 40)),
        ("pad", (300, 100), (50, -30, 90, 10)),  # scaled by a tenth to 30 by 10, and put five rows down
        ("crop", (600, 200), (200, 20, 240, 40)),  # 300 by 200 of it, from column 150 on
    ],
)
def test_boxes_are_in_the_pictures_pixels(resize: str, size: tuple[int, int], box: tuple[float, ...]) -> None:
    spec = tiny_spec(height=20, width=30, resize=resize)
    drawn = map_with(20, 30, mid=(slice(2, 4), slice(5, 9)))
    found = find(drawn, 0.6, PEAKS_OF_NINE, spec, Size(*size))
    if resize == "pad":
        assert found == [], "it lies on the bars"
        drawn = map_with(20, 30, mid=(slice(2, 7), slice(5, 9)))
        [region] = find(drawn, 0.6, PEAKS_OF_NINE, spec, Size(*size))
        assert (region.box, region.area) == ((50, 0, 90, 20), 40 * 20), "cut off at the picture's edge"
        return
    [region] = found
    assert region.box == pytest.approx(box)
    assert region.area == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))


def test_a_map_of_a_thousand_regions_gives_the_highest_hundred() -> None:
    drawn = np.zeros((80, 80), np.float32)
    drawn[::2, ::2] = 1 + np.arange(1600).reshape(40, 40)
    found = find(drawn, 0.5, PEAKS_OF_NINE, tiny_spec(height=80, width=80, resize="stretch"), Size(80, 80))
    assert [region.score for region in found] == list(range(1600, 1600 - MOST, -1))


@pytest.mark.parametrize("peaks", [np.zeros(0, np.float32), np.array([2.0, 1.0]), np.array([np.nan]), np.array([1])])
def test_peaks_that_set_no_threshold_are_named(peaks: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"array patches\.peaks: "):
        peaks_of({PEAKS: peaks})
    assert peaks_of({}) is None


def tiny_spec(**settings: object) -> InputSpec:
    return spec(channels=1, **settings)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "late PNG", "plain PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_the_size_of_an_upright_picture_is_that_of_the_decoded_one(kind: str, orientation: int) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    settings = {"exif": exif} if kind in ("PNG", "late PNG", "JPEG", "WEBP", "TIFF") else {}
    Image.new("RGB", (60, 40)).save(buffer, kind.rpartition(" ")[2], **settings)
    data = buffer.getvalue()
    if kind == "late PNG":  # the metadata follow the pixels
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4])
        data = data[:start] + data[end:-12] + data[start:end] + data[-12:]
    found = decode(data, tiny_spec(height=100, width=100))
    expected = found.size if isinstance(found, Image.Image) else found.shape[1::-1]
    assert upright_size(data) == expected
    if settings:
        assert expected == ((40, 60) if orientation > 4 else (60, 40))


def test_metadata_are_not_looked_for_among_a_million_chunks() -> None:
    """Of the chunks of a WebP only the first are visited: millions fit into one file."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(buffer, "WEBP", exif=exif)
    data = buffer.getvalue()
    start = data.index(b"EXIF")
    for chunks, expected in ((10, (40, 60)), (1_000_000, (60, 40))):
        visited = 0
        filled = data[:start] + (b"JUNK" + bytes(4)) * chunks + data[start:]

        class Counted(bytes):
            def __getitem__(self, key: object) -> object:
                nonlocal visited
                visited += 1
                return super().__getitem__(key)  # type: ignore[index]

        assert upright_size(Counted(filled)) == expected
        assert visited < 20_000
