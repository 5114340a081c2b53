"""What a bundle that cuts tiles makes of pictures. Each takes seconds, so that what was measured once is kept.

Embeddings, distances and maps are small beside their pictures; maps lie in a file where they are larger than memory.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP, PATCH_DISTANCE
from app.bundle.tiles import grid_of, map_shape
from training.data.imageset import ImageSet
from training.data.pictures import Files, Pictures
from training.data.storage import allocate
from training.progress import track


@dataclass(frozen=True, eq=False)
class _Embeddings:
    """Of all files of a set; rows are filled when they are measured first."""

    done: np.ndarray  # (N,) bool
    values: np.ndarray  # (N, D)

    def put(self, row: int, found: dict[str, np.ndarray]) -> None:
        self.values[row], self.done[row] = found["embedding"][0], True


@dataclass(frozen=True, eq=False)
class _Kept:
    """The same, of what a memory of patches makes of them."""

    done: np.ndarray  # (N,) bool
    distances: np.ndarray  # (N, 1)
    maps: np.ndarray  # of all pictures, one behind the other
    starts: np.ndarray  # (N + 1,) where each begins in `maps`
    shapes: list[tuple[int, int]]

    def map(self, row: int) -> np.ndarray:
        return self.maps[self.starts[row] : self.starts[row + 1]].reshape(self.shapes[row])


# (graphs' digests, the set's id) → what is known; an entry goes with its set.
_embeddings: dict[tuple[bytes, int], _Embeddings] = {}
_kept: dict[tuple[bytes, int], _Kept] = {}


class Maps:
    """The maps of pictures, as they are shown: an index gives one, (h, w) float32, and indices give Maps again."""

    def __init__(self, bundle: Bundle, maps: list[np.ndarray], sizes: np.ndarray) -> None:
        """`maps` are stitched; `sizes` (N, 2) are height and width of the pictures as they were cut."""
        self._bundle, self._maps, self._sizes = bundle, maps, sizes

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, index: Any) -> Any:
        if np.ndim(index) == 0:
            height, width = self._sizes[index].tolist()
            return self._bundle.place_stitched(self._maps[index], width, height)
        return Maps(self._bundle, [self._maps[each] for each in index], self._sizes[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Measured:
    distances: np.ndarray  # (N, 1)
    maps: Maps


def embeddings(bundle: Bundle, data: ImageSet, label: str) -> np.ndarray:
    """(N, D) of every picture, in order. Images of one size, (N, H, W, C), are pictures, too."""
    alone = replace(bundle, patches=None)
    if not isinstance(data.images, Pictures):
        return np.concatenate([alone.measure_picture(image)["embedding"] for image in data.images])
    known, rows = _embeddings_of(bundle, data.images.files), data.images.rows
    missing = np.flatnonzero(~known.done[rows])
    for index in track(missing, label, len(missing)) if len(missing) else ():
        known.put(rows[index], alone.measure_picture(data.images[int(index)]))
    return np.asarray(known.values[rows])


def measured(bundle: Bundle, data: ImageSet, label: str, keep: bool = True) -> Measured:
    """The same of distances and maps, by a bundle with a memory; `keep` for later callers."""
    images = data.images
    pictures = images if isinstance(images, Pictures) else None
    sizes = np.tile(np.array(images.shape[1:3]), (len(images), 1)) if pictures is None else pictures.sizes
    if keep and pictures is not None:
        kept, rows = _of(bundle, pictures.files), pictures.rows
    else:
        kept, rows = _empty(bundle, sizes), np.arange(len(images))
    missing = np.flatnonzero(~kept.done[rows])
    for index in track(missing, label, len(missing)) if len(missing) else ():
        found, row = bundle.measure_picture(images[int(index)]), int(rows[index])
        kept.distances[row], kept.map(row)[...] = found[PATCH_DISTANCE][0], found[ANOMALY_MAP][0]
        kept.done[row] = True
        if pictures is not None:
            _embeddings_of(bundle, pictures.files).put(pictures.rows[index], found)
    return Measured(kept.distances[rows], Maps(bundle, [kept.map(int(row)) for row in rows], sizes))


def _embeddings_of(bundle: Bundle, files: Files) -> _Embeddings:
    key = bundle.encoder.digest, id(files)
    if key not in _embeddings:
        shape = len(files.paths), bundle.manifest.latent_size
        _embeddings[key] = _Embeddings(np.zeros(shape[0], bool), np.zeros(shape, np.float32))
        weakref.finalize(files, _embeddings.pop, key, None)
    return _embeddings[key]


def _of(bundle: Bundle, files: Files) -> _Kept:
    assert bundle.patches is not None
    key = bundle.encoder.digest + bundle.patches.digest, id(files)
    if key not in _kept:
        _kept[key] = _empty(bundle, files.sizes)
        weakref.finalize(files, _kept.pop, key, None)
    return _kept[key]


def _empty(bundle: Bundle, sizes: np.ndarray) -> _Kept:
    spec, graph = bundle.manifest.input, bundle.manifest.graphs.patches
    assert graph is not None
    places = graph.outputs[0].shape[1]
    shapes = [map_shape(grid_of(width, height, spec), places) for height, width in sizes.tolist()]
    starts = np.cumsum([0, *(rows * columns for rows, columns in shapes)])
    return _Kept(
        done=np.zeros(len(sizes), bool),
        distances=np.zeros((len(sizes), 1), np.float32),
        maps=allocate((int(starts[-1]),), np.float32),
        starts=starts,
        shapes=shapes,
    )
