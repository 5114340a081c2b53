import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import save_tiny, spec, tiled_spec

from app.bundle import load
from app.bundle.encode import enlarged, enlarged_by, png
from app.bundle.heatmaps import overlay
from app.bundle.manifest import ANOMALY_MAP, MAP_STEP, PATCH_DISTANCE, TILE_STEP, InputSpec, Tiles
from app.bundle.masks import place_mask
from app.bundle.preprocess import placement, preprocess
from app.bundle.regions import Size, find
from app.bundle.tiles import cut, distance_of, grid_of, map_shape, owned, scaled_size, stitch

SIDES = st.integers(1, 700)
TILED = st.builds(
    lambda tile, overlap, scale: tiled_spec(TILE_STEP * tile, TILE_STEP * (overlap % tile), scale),
    tile=st.integers(1, 8),
    overlap=st.integers(0, 7),
    scale=st.sampled_from([1.0, 0.5, 0.3]),
)


@given(width=SIDES, height=SIDES, tiled=TILED)
def test_tiles_cover_every_pixel_and_overlap(width: int, height: int, tiled: InputSpec) -> None:
    assert tiled.tiles is not None
    grid = grid_of(width, height, tiled)
    for starts, side in ((grid.lefts, width), (grid.tops, height)):
        assert starts[0] == 0
        assert starts[-1] + tiled.height >= side
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (steps <= tiled.height - tiled.tiles.overlap).all()
        assert not (np.array(starts) % TILE_STEP).any()
        assert len(starts) == 1 or starts[-1] + tiled.height - side < TILE_STEP  # no tile lies beyond the picture


@given(width=SIDES, height=SIDES, tiled=TILED, pitch=st.sampled_from([4, 8, 16, 32]))
def test_every_place_of_a_picture_is_given_by_one_tile_that_has_it(
    width: int, height: int, tiled: InputSpec, pitch: int
) -> None:
    grid, places = grid_of(width, height, tiled), tiled.height // pitch
    given_by = np.zeros(map_shape(grid, places), int)
    assert (pitch * np.array(given_by.shape) >= (height, width)).all()
    assert (pitch * (np.array(given_by.shape) - 1) < (height, width)).all()
    for own, (top, left) in zip(owned(grid, places), grid.corners, strict=True):
        given_by[own.in_map] += 1
        for in_tile, in_map, start in zip(own.in_tile, own.in_map, (top, left), strict=True):
            assert 0 <= in_tile.start < in_tile.stop <= places
            assert (in_map.start - in_tile.start) * pitch == start
    assert (given_by == 1).all()


@given(width=SIDES, height=SIDES, tiled=TILED)
def test_a_stitched_map_has_each_place_where_the_picture_has_it(width: int, height: int, tiled: InputSpec) -> None:
    """Of tiles that are their own maps, a pixel for each place of 4: the picture again, mirrored at its end."""
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 1), dtype=np.uint8)
    grid, pitch = grid_of(width, height, tiled), 4
    tiles = np.concatenate(list(cut(picture, grid, 3)))
    assert tiles.shape == (len(grid), tiled.height, tiled.width, 1)
    stitched = stitch(tiles[:, ::pitch, ::pitch, 0], grid)
    assert np.array_equal(stitched, picture[::pitch, ::pitch, 0])


def test_a_place_is_given_by_the_tile_from_whose_edge_it_is_further() -> None:
    grid = grid_of(160, 64, tiled_spec(64, 32))
    assert grid.lefts == (0, 32, 64, 96)
    maps = np.arange(4.0).reshape(4, 1, 1) * np.ones((1, 8, 8))
    assert stitch(maps, grid)[0].tolist() == [0] * 6 + [1] * 4 + [2] * 4 + [3] * 6


def test_a_picture_smaller_than_a_tile_is_mirrored_and_its_map_has_its_own_places() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    grid = grid_of(3, 2, tiled_spec(32, 0))
    [[tile]] = cut(picture, grid, 8)
    assert tile[:4, :7, 0].tolist() == [
        [0, 1, 2, 2, 1, 0, 0],
        [3, 4, 5, 5, 4, 3, 3],
        [3, 4, 5, 5, 4, 3, 3],
        [0, 1, 2, 2, 1, 0, 0],
    ]
    assert stitch(np.ones((1, 8, 8)), grid).shape == (1, 1)


@given(rows=st.integers(1, 30), columns=st.integers(1, 30), factor=st.sampled_from([1, 2, 4, 8]))
def test_a_map_of_any_size_is_enlarged_as_one_of_an_input_is(rows: int, columns: int, factor: int) -> None:
    values = np.random.default_rng(0).random((rows, columns), np.float32)
    found, expected = enlarged_by(values, factor), enlarged(values, rows * factor, columns * factor)
    assert found.shape == expected.shape
    inner = tuple(slice(2 * factor, side - 2 * factor) for side in found.shape)
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-3)
    assert values.min() - 1e-3 <= found.min()
    assert found.max() <= values.max() + 1e-3


def test_the_distance_of_a_map_is_the_mean_of_as_many_of_its_largest_values_as_a_tile_would_have() -> None:
    map_ = np.arange(1000, dtype=np.float32).reshape(20, 50)
    assert distance_of(map_, places=8, share=0.05) == 998  # 3 of 64
    assert distance_of(map_, places=8, share=0.001) == 999
    assert distance_of(map_[:1, :2], places=8, share=0.5) == 0.5


def saved(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_picture_in_tiles_keeps_its_size_or_a_share_of_it_and_is_upright() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8)
    found = preprocess(saved(pixels), tiled_spec(channels=3))
    assert np.array_equal(found, pixels)
    assert np.array_equal(preprocess(saved(pixels[:64, :64]), tiled_spec(channels=3)), pixels[:64, :64])
    half = tiled_spec(channels=3, scale=0.5)
    assert preprocess(saved(pixels), half).shape == (150, 450, 3)
    assert preprocess(saved(pixels[:64, :64]), half).shape == (32, 32, 3)
    assert preprocess(saved(pixels[:1, :1]), tiled_spec(channels=3, scale=0.1)).shape == (1, 1, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    for tiled, shape in ((tiled_spec(channels=3), (900, 300, 3)), (tiled_spec(channels=3, scale=0.2), (180, 60, 3))):
        assert preprocess(saved(pixels, "JPEG", exif=exif), tiled).shape == shape


@pytest.fixture
def models(tmp_path: Path) -> Path:
    save_tiny(tmp_path, shape=tiled_spec())
    save_tiny(tmp_path, name="half", shape=tiled_spec(scale=0.5))
    return tmp_path


def test_the_map_and_score_of_a_picture_of_one_tile_are_those_of_the_tile(models: Path) -> None:
    bundle = load(models / "tiny/1")
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 1), dtype=np.uint8)
    encoded = bundle.encode(picture[None], patches=True)
    alone, found = bundle.measure_patches(encoded), bundle.measure_picture(picture)
    assert np.array_equal(found[ANOMALY_MAP][0], alone[ANOMALY_MAP][0])
    largest = np.sort(alone[ANOMALY_MAP].ravel())[-3:]  # a share of 0.05 of 64 places
    assert found[PATCH_DISTANCE] == pytest.approx(largest.mean())
    np.testing.assert_allclose(found["embedding"], encoded["embedding"], rtol=1e-5)
    [score] = bundle.anomaly(picture[None])
    assert score.distances["patches"] == pytest.approx(largest.mean())


def test_a_picture_of_many_tiles_has_one_map(models: Path) -> None:
    bundle = load(models / "tiny/1")
    picture = np.random.default_rng(0).integers(0, 256, (200, 312, 1), dtype=np.uint8)
    blocks = picture.reshape(25, 8, 39, 8).mean(axis=(1, 3), dtype=np.float64) / 255
    found = bundle.measure_picture(picture)
    np.testing.assert_allclose(found[ANOMALY_MAP][0], np.abs(blocks - 0.25), atol=1e-5)
    tiles = np.concatenate(list(cut(picture, bundle.grid(picture), 100)))
    np.testing.assert_allclose(
        found["embedding"], bundle.encode(tiles)["embedding"].mean(axis=0, keepdims=True), rtol=1e-4
    )


@pytest.mark.parametrize("name", ["tiny", "half"])
@pytest.mark.parametrize(("width", "height"), [(320, 208), (205, 317), (70, 900), (61, 50)])
def test_a_region_is_where_it_is_in_the_pictures_own_pixels(models: Path, name: str, width: int, height: int) -> None:
    bundle = load(models / name / "1")
    assert bundle.peaks is not None
    spec = bundle.manifest.input
    pixels = np.zeros((height, width), np.uint8)
    left, top = min(width - 32, 96) // 16 * 16, min(height - 32, 160) // 16 * 16
    pixels[top : top + 32, left : left + 32] = 255
    picture = bundle.preprocess(saved(pixels))
    maps = bundle.measure_picture(picture)[ANOMALY_MAP]
    [[region]] = bundle.regions(maps, [Size(width, height)])
    assert region.box == pytest.approx((left, top, left + 32, top + 32), abs=13)
    assert region.box[2] <= width
    assert region.box[3] <= height
    assert region.score > 0.5
    assert spec.tiles is not None
    placed = bundle.place_stitched(maps[0], *scaled_size(width, height, spec))
    (_, (columns, rows), _) = placement(width, height, spec)
    assert placed.shape == (rows, columns)
    mask = place_mask(pixels > 0, height, width, spec)
    assert mask.shape == placed.shape
    assert placed[mask].min() > placed[~mask].mean()
    drawn = Image.open(
        io.BytesIO(overlay(saved(pixels), Size(width, height), (255 * mask).astype(np.uint8), [region.box], spec))
    )
    assert drawn.size == Size(width, height)
    assert np.ptp(np.asarray(drawn)[top + 16, left + 16].astype(int)) > 20
    assert np.ptp(np.asarray(drawn)[-1, -1].astype(int)) < 20


def test_a_region_at_the_end_of_a_picture_does_not_go_beyond_it() -> None:
    tiled = tiled_spec()
    [region] = find(np.ones((11, 26), np.float32), 0.5, np.array([0.1]), tiled, Size(101, 41))
    assert region.box == (0, 0, 101, 41)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 48, "width": 48}, "its side a multiple of 32"),
        ({"height": 64, "width": 96}, "a tile is a square"),
        ({"height": 64, "width": 64, "tiles": Tiles(overlap=64, scale=1, largest=0.1)}, "below 64"),
        ({"height": 64, "width": 64, "tiles": Tiles(overlap=8, scale=1, largest=0.1)}, "a multiple of 32"),
    ],
)
def test_tiles_that_do_not_fit_together_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**{"tiles": Tiles(overlap=0, scale=1, largest=0.1), **changes})


def test_a_bundle_of_tiles_reproduces_itself(models: Path) -> None:
    """Its golden pairs are tiles."""
    for name in ("tiny", "half"):
        bundle = load(models / name / "1")
        assert bundle.operations == ["encode", "anomaly", "predict", "regions"]
        golden = np.load(models / name / "1/golden.npz")
        assert golden["pixels"].shape[1:] == (64, 64, 1)
        assert golden[f"output:{ANOMALY_MAP}"].shape[1:] == (8, 8)
        assert bundle.golden_input(png(Image.new("L", (500, 10)))).shape == (64, 64, 1)
    assert MAP_STEP * 2 == 8
