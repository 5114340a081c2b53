"""What an encoder gave for sets of images, kept while these are in memory: no image is encoded twice in a run."""

import weakref

import numpy as np

from training.data.storage import Rows

Images = np.ndarray | Rows

# (the graph's digest, the set's id) → the outputs by name; an entry goes with its set.
_kept: dict[tuple[bytes, int], dict[str, np.ndarray]] = {}


def keep(graph: bytes, images: Images, encoded: dict[str, np.ndarray]) -> None:
    """Outputs that together are larger than the images themselves are not kept."""
    size = sum(array.nbytes for array in encoded.values())
    if size > int(np.prod(images.shape, dtype=np.int64)):
        return
    key = graph, id(images)
    if key not in _kept:
        weakref.finalize(images, _kept.pop, key, None)
    _kept[key] = encoded


def kept(graph: bytes, images: Images) -> dict[str, np.ndarray] | None:
    return _kept.get((graph, id(images)))
