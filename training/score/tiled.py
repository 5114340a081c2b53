"""Patches of pictures in tiles: candidates for the memory, and what a memory makes of pictures. No torch."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import PATCH_FEATURES, Graph
from app.bundle.session import Session
from app.bundle.tiles import cut, grid_of, owned
from training.data.imageset import ImageSet
from training.data.pictures import Pictures
from training.measure import tiled
from training.measure.maps import highest
from training.progress import track

_TILES = 1000  # of all pictures that are read, at most: places of one tile are much alike


def drawn(bundle: Bundle, data: ImageSet, label: str, most: int, seed: int) -> np.ndarray:
    """(n, C) vectors of `most` places at most: as many of each drawn tile, of those that stitched maps take from it."""
    rng = np.random.default_rng(seed)
    owners = [(index, number) for index, count in enumerate(_counts(bundle, data)) for number in range(count)]
    chosen = np.sort(rng.choice(len(owners), min(_TILES, len(owners)), replace=False))
    each = math.ceil(most / len(chosen))
    found = []
    by_picture: dict[int, set[int]] = {}
    for at in chosen:
        index, number = owners[at]
        by_picture.setdefault(index, set()).add(number)
    for index, own in track(by_picture.items(), label, len(by_picture)):
        for places in _places(bundle, data.images[index], own):
            kept = rng.choice(len(places), min(each, len(places)), replace=False)
            found.append(places[np.sort(kept)])
    return np.concatenate(found)[:most]


def _counts(bundle: Bundle, data: ImageSet) -> list[int]:
    """Tiles of each picture."""
    assert isinstance(data.images, Pictures)
    return [len(grid_of(width, height, bundle.manifest.input)) for height, width in data.images.sizes.tolist()]


def _places(bundle: Bundle, picture: np.ndarray, chosen: set[int]) -> Iterator[np.ndarray]:
    """(n, C) of each chosen tile: of its own places."""
    grid = bundle.grid(picture)
    for number, tile in enumerate(cut(picture, grid, 1)):
        if number in chosen:
            [map_] = bundle.encoder.run(tile, [PATCH_FEATURES])[PATCH_FEATURES]  # (C, rows, columns)
            rows, columns = owned(grid, map_.shape[1])[number].in_tile
            yield np.ascontiguousarray(map_[:, rows, columns].reshape(len(map_), -1).T)


def measured(
    bundle: Bundle, session: Session, graph: Graph, data: ImageSet, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """((n, 1) distances, (n,) peaks) of the pictures by another memory, of this graph."""
    graphs = bundle.manifest.graphs.model_copy(update={"patches": graph})
    other = replace(bundle, patches=session, manifest=bundle.manifest.model_copy(update={"graphs": graphs}))
    found = tiled.measured(other, data, label, keep=False)
    return found.distances, highest(found.maps).astype(np.float32)
