"""The distances of networks that mark defects, in the graph of a memory of patches' place. No torch.

A network's logits are taken relative to its level: the mean over sound images that it has not seen of their largest.
A place's distance is softplus(mean + 4) of all networks' relative logits: next to 0 where it is sound beyond doubt, and
never below. An image's is the mean of its largest, as that of patches is.

Each fold has a network that has not seen it. The score of one of its images is by that network alone, and relative to
the level by the others of the fold, as the score of a new image is relative to that of all.
"""

from dataclasses import dataclass

import numpy as np
from onnx import helper, load_from_string

from app.bundle import Bundle
from app.bundle.manifest import PATCH_FEATURES, Graph
from training.data.imageset import ImageSet
from training.data.storage import allocate
from training.errors import TrainingError
from training.progress import track
from training.score.onnx_model import serialised
from training.score.patches import batch_size, count_largest

GRAPH = "marks"  # the name inside the file
RAISED = 4.0  # by which relative logits are raised: those of most sound places are below -4
_BATCH = 256


@dataclass(frozen=True)
class Across:
    """What networks say of the images that they have not seen."""

    levels: np.ndarray  # (networks,)
    distances: np.ndarray  # (N, 1) float32
    peaks: np.ndarray  # (N,) the largest values of the images' maps, ascending


def to_onnx(stated: Graph, levels: np.ndarray, opset: int) -> bytes:
    taken, (distances, distance) = stated.input, stated.outputs
    _, networks, rows, columns = taken.shape
    weights = {
        "raised": (RAISED - levels).reshape(1, networks, 1, 1),
        "networks": np.array([1]),
        "flat": np.array([0, rows * columns]),
        "count": np.array([count_largest(rows * columns)]),
        "places": np.array([1]),
    }
    nodes = [
        helper.make_node("Add", [taken.name, "raised"], ["relative"]),
        helper.make_node("ReduceMean", ["relative", "networks"], ["mean"], keepdims=0),
        helper.make_node("Softplus", ["mean"], [distances.name]),
        helper.make_node("Reshape", [distances.name, "flat"], ["by_place"]),
        helper.make_node("TopK", ["by_place", "count"], ["largest", "where"], axis=1),
        helper.make_node("ReduceMean", ["largest", "places"], [distance.name], keepdims=1),
    ]
    return serialised(GRAPH, nodes, weights, stated=stated, opset=opset)


def are_in(model: bytes) -> bool:
    """Whether a bundle's graph is one of these: it has no memory that could be of other images."""
    return bool(load_from_string(model).graph.name == GRAPH)


def refuse_single(folds: np.ndarray) -> None:
    """An image is measured relative to the others of its fold."""
    sizes = np.bincount(folds)
    if sizes.min() < 2:
        raise TrainingError(f"{len(folds)} images in {len(sizes)} folds: marks need two in each: lower anomaly.folds")


def across(bundle: Bundle, data: ImageSet, folds: np.ndarray) -> Across:
    """`folds` (N,): the number of the fold that holds each image, and of the network that has not seen it."""
    refuse_single(folds)
    sizes = np.bincount(folds)
    marks = _own(bundle, data, folds)
    batches = [slice(start, start + _BATCH) for start in range(0, len(data), _BATCH)]
    highest = np.concatenate([_largest(marks[some]) for some in batches]).astype(np.float64)
    sums = np.bincount(folds, highest)
    of_others = (sums[folds] - highest) / (sizes[folds] - 1)
    distances, peaks = [], []
    for some in batches:
        maps = np.logaddexp(0, marks[some] - of_others[some, None, None] + RAISED).astype(np.float32)
        distances.append(_largest(maps))
        peaks.append(bundle.place(maps).max(axis=(1, 2)))
    return Across(sums / sizes, np.concatenate(distances)[:, None], np.sort(np.concatenate(peaks)))


def _own(bundle: Bundle, data: ImageSet, folds: np.ndarray) -> np.ndarray:
    """(N, rows, columns): of each image the logits by the network that has not seen it."""
    [shape] = [each.shape for each in bundle.manifest.graphs.encoder.outputs if each.name == PATCH_FEATURES]
    marks, step = allocate((len(data), *shape[2:]), np.float32), batch_size(bundle)
    starts = range(0, len(data), step)
    for start in track(starts, "out of fold", len(starts)):
        found = bundle.encoder.run(data.images[start : start + step], [PATCH_FEATURES])[PATCH_FEATURES]
        marks[start : start + step] = found[np.arange(len(found)), folds[start : start + step]]
    return marks


def _largest(maps: np.ndarray) -> np.ndarray:
    """(N, rows, columns) → (N,) the mean of each one's largest."""
    by_place = maps.reshape(len(maps), -1)
    count = count_largest(by_place.shape[1])
    return np.asarray(np.partition(by_place, -count, axis=1)[:, -count:].mean(axis=1))
