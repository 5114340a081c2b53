"""Tiles: a picture of any size as squares of the encoder's size, and their maps as one map of the picture.

    picture ── scaled ──▶ cut: tiles that overlap ── encoder, memory of patches ──▶ their maps ── stitch ──▶ its map

Tiles begin at multiples of TILE_STEP pixels, so that places of all tiles lie on one grid. They are spread evenly, and
neighbours overlap by at least `overlap`. A place that two tiles have is given by the one from whose edge it is further.
What a tile has beyond the picture is the picture mirrored; these places are left out of the map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from app.bundle.manifest import TILE_STEP, InputSpec


@dataclass(frozen=True, slots=True)
class Grid:
    """Of the tiles of one scaled picture."""

    width: int  # of the picture; so is the height
    height: int
    tile: int  # side
    lefts: tuple[int, ...]
    tops: tuple[int, ...]

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of each tile, row by row: the order of tiles everywhere."""
        return list(product(self.tops, self.lefts))

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)


class Own(NamedTuple):
    """The places of which a tile gives the value: rows and columns of its map, and of the picture's."""

    in_tile: tuple[slice, slice]
    in_map: tuple[slice, slice]


def scaled_size(width: int, height: int, spec: InputSpec) -> tuple[int, int]:
    """(width, height) at which a picture of that size is cut."""
    assert spec.tiles is not None
    return max(1, round(width * spec.tiles.scale)), max(1, round(height * spec.tiles.scale))


def grid_of(width: int, height: int, spec: InputSpec) -> Grid:
    """Of a picture that has this size after it was scaled."""
    assert spec.tiles is not None
    lefts, tops = (_starts(side, spec.height, spec.tiles.overlap) for side in (width, height))
    return Grid(width, height, spec.height, lefts=lefts, tops=tops)


def _starts(side: int, tile: int, overlap: int) -> tuple[int, ...]:
    last = -(-side // TILE_STEP) - tile // TILE_STEP  # in steps; where the last tile begins
    if last <= 0:
        return (0,)
    gaps = -(-last // ((tile - overlap) // TILE_STEP))
    return tuple(TILE_STEP * (last * number // gaps) for number in range(gaps + 1))


def cut(picture: np.ndarray, grid: Grid, most: int) -> Iterator[np.ndarray]:
    """(h, w, C) → (n, tile, tile, C), n at most `most`: all tiles, in their order."""
    corners = grid.corners
    for start in range(0, len(corners), most):
        yield np.stack([_tile(picture, top, left, grid.tile) for top, left in corners[start : start + most]])


def _tile(picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    part = picture[top : top + side, left : left + side]
    height, width = part.shape[:2]
    return part if height == width == side else part[np.ix_(_mirrored(height, side), _mirrored(width, side))]


def _mirrored(count: int, side: int) -> np.ndarray:
    """0, 1, … count - 1, count - 1, … 0, 0, 1, …: `side` of them."""
    at = np.arange(side) % (2 * count)
    return np.minimum(at, 2 * count - 1 - at)


def owned(grid: Grid, places: int) -> list[Own]:
    """Of each tile, whose map has `places` rows and columns."""
    pitch = grid.tile // places
    down, across = (
        _shares(starts, side, grid.tile, pitch) for starts, side in ((grid.tops, grid.height), (grid.lefts, grid.width))
    )
    return [
        Own((rows_in_tile, columns_in_tile), (rows, columns))
        for (rows_in_tile, rows), (columns_in_tile, columns) in product(down, across)
    ]


def _shares(starts: Sequence[int], side: int, tile: int, pitch: int) -> list[tuple[slice, slice]]:
    """Of each start (places of the tile, places of the picture) that its tile gives."""
    seams = [0, *((before + tile + after) // (2 * pitch) for before, after in pairwise(starts)), -(-side // pitch)]
    return [
        (slice(begin - start // pitch, end - start // pitch), slice(begin, end))
        for start, (begin, end) in zip(starts, pairwise(seams), strict=True)
    ]


def map_shape(grid: Grid, places: int) -> tuple[int, int]:
    pitch = grid.tile // places
    return -(-grid.height // pitch), -(-grid.width // pitch)


def stitch(maps: np.ndarray, grid: Grid) -> np.ndarray:
    """(tiles, places, places) → (rows, columns) of the picture."""
    places = maps.shape[1]
    stitched = np.empty(map_shape(grid, places), maps.dtype)
    for own, map_ in zip(owned(grid, places), maps, strict=True):
        stitched[own.in_map] = map_[own.in_tile]
    return stitched


def distance_of(map_: np.ndarray, places: int, share: float) -> float:
    """The mean of the map's largest values: as many as are `share` of a tile's places squared, for a defect is as small
    in a large picture as in a small one."""
    count = min(map_.size, max(1, round(share * places**2)))
    flat = map_.ravel()
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean())
