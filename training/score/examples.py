"""The index of example images that a bundle answers similar images from. No torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.bundle import Bundle
from app.bundle.encode import thumbnail_of
from app.bundle.index import FILE, MOST_EXAMPLES, in_blocks, text_of
from training.data.imageset import ImageSet
from training.errors import TrainingError
from training.measure.components import main_directions
from training.measure.outputs import outputs_of
from training.progress import track
from training.score import reference

DIRECTIONS = 64  # numbers of a code
THUMBNAIL = 64  # pixels of its longer side
_MOST_FOR_DIRECTIONS = 5000  # images
_QUALITY = 70  # of WebP


def index(bundle: Bundle, images: ImageSet, thumbnails: bool, most: int = MOST_EXAMPLES) -> dict[str, bytes]:
    """{the index's file name: its content}, of at most so many of the images, evenly spaced."""
    if len(images) > most:
        images = images.take(np.linspace(0, len(images) - 1, most).astype(int))
    embeddings = outputs_of(bundle, images, "index", ("embedding",)).encoded["embedding"]
    mean, basis = projection(embeddings, DIRECTIONS, "embedding")
    codes = halved((embeddings - mean) @ basis.astype(np.float32), "embedding")
    order = in_blocks(codes)
    images = images.take(order)
    arrays = {"mean": mean, "basis": basis, "codes": codes[order], **_names(images)}
    if thumbnails:
        numbers = track(range(len(images)), "thumbnails", len(images))
        files = [thumbnail_of(images.images[number], THUMBNAIL, _QUALITY) for number in numbers]
        arrays["thumbnails"] = np.frombuffer(b"".join(files), np.uint8)
        arrays["thumbnail_sizes"] = np.array([len(each) for each in files], np.int32)
    return {FILE: reference.to_bytes(arrays, compressed=False)}  # codes hardly compress, and load at once


def projection(points: np.ndarray, directions: int, tensor: str) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) → mean (D,), main directions (D, at most `directions`) in half precision."""
    some = points[np.linspace(0, len(points) - 1, min(len(points), _MOST_FOR_DIRECTIONS)).astype(int)]
    mean = some.mean(axis=0, dtype=np.float64).astype(np.float32)
    if not np.isfinite(mean).all():
        raise TrainingError(f"the images' {tensor} is not finite: the network diverged")
    _, basis = main_directions(some - mean, min(directions, *some.shape))
    return mean, basis.astype(np.float16)


def halved(values: np.ndarray, tensor: str) -> np.ndarray:
    """In half precision."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float16)
    if not np.isfinite(found).all():
        raise TrainingError(f"the images' {tensor} is too large for half precision: train at a lower rate")
    return found


def _names(images: ImageSet) -> dict[str, Any]:
    """Labels and file names, where the images have some."""
    arrays: dict[str, Any] = {}
    labels = _labels(images)
    if labels is not None:
        names, inverse = np.unique(labels, return_inverse=True)
        arrays["labels"] = inverse.astype(np.int32)
        arrays["label_names"] = text_of(names.tolist())
        if names[0] == "":  # has none of several labels; names are sorted
            arrays["labels"] -= 1
            arrays["label_names"] = text_of(names[1:].tolist() or [""])
    if images.names:
        arrays["files"] = text_of(list(images.names))
    return arrays


def _labels(images: ImageSet) -> Sequence[str] | None:
    """Of images that may have several labels, these joined."""
    if images.several is not None:
        return [", ".join(np.array(images.classes, object)[row]) for row in images.several]
    return [images.classes[label] for label in images.labels] if len(images.labels) else None
