"""The memory of patches: places of normal images, and the graph that measures the distance from them. No torch.

A place x of a map has y = (x - mean) · weight, where weight whitens the normals' places. Its distance is min over the
remembered m of |y - m| / reach of m, which is m's mean distance from those nearest to it; an image's is the mean of its
largest. What is remembered is chosen greedily: each next is the one furthest from all before it (k-center, Gonzalez
1985), after a random projection where there are many channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, checker, helper, load_from_string, numpy_helper

from app.bundle import Bundle
from app.bundle.manifest import ANOMALY_MAP, PATCH_DISTANCE, PATCH_FEATURES, Graph, Tensor
from app.bundle.regions import PEAKS
from app.bundle.scoring import References
from app.bundle.session import Session, cpu_limit
from training.data.imageset import ImageSet
from training.data.storage import Rows
from training.errors import TrainingError
from training.measure.maps import highest, maps_of
from training.progress import track
from training.recipe import TOP
from training.score import tiled

FILE = "patches.onnx"
TOLERANCE = 1e-3  # of golden outputs: a root of a difference rounds more coarsely than its terms
CANDIDATES = 50_000  # patches of a part from which are chosen, at most
LARGEST = 16_000_000  # bytes of a memory
_RIDGE = 0.1  # of the mean variance, added to that of every direction
_NEIGHBOURS = 15  # whose mean distance is a patch's reach
_LEAST_REACH = 1e-3  # of the mean: copies would divide by zero
_AT_ONCE = 4096
_TINY = 1e-12  # in place of a variance of 0
_PROJECTED = 64  # dimensions in which is chosen
_PIXELS = 1 << 21  # of a batch
_IR_VERSION = 10  # onnxruntime reads it since 1.18


@dataclass(frozen=True)
class Part:
    """Candidates of some images, and the moments of all places that were looked at."""

    vectors: np.ndarray  # (n, C)
    count: int
    total: np.ndarray  # (C,)
    products: np.ndarray  # (C, C)


@dataclass(frozen=True)
class Memory:
    mean: np.ndarray  # (C,)
    weight: np.ndarray  # (C, C)
    points: np.ndarray  # (R, C)
    reach: np.ndarray  # (R,)


def read_part(bundle: Bundle, data: ImageSet, label: str, most: int = CANDIDATES, seed: int = 0) -> Part:
    """Candidates of all images: every place, or `most` drawn ones. Only these are in memory."""
    if bundle.tiled:
        return _part(tiled.drawn(bundle, data, label, most=most, seed=seed))
    graph = next(tensor for tensor in bundle.manifest.graphs.encoder.outputs if tensor.name == PATCH_FEATURES)
    _, channels, *sides = graph.shape
    places = math.prod(sides)
    total = len(data) * places
    drawn = np.arange(total) if total <= most else np.sort(np.random.default_rng(seed).choice(total, most, False))
    images, rows = np.unique(drawn // places), drawn
    vectors = np.empty((len(drawn), channels), np.float32)
    done = 0
    step = batch_size(bundle)
    for start in track(range(0, len(images), step), label, -(-len(images) // step)):
        batch = images[start : start + step]
        found = _vectors(bundle, data.images[batch])
        here = rows[done : np.searchsorted(rows, (batch[-1] + 1) * places)]
        vectors[done : done + len(here)] = found[np.searchsorted(batch, here // places) * places + here % places]
        done += len(here)
    return _part(vectors)


def _part(vectors: np.ndarray) -> Part:
    if not np.isfinite(vectors).all():
        raise TrainingError(f"the normals' {PATCH_FEATURES} are not finite: the network diverged")
    return Part(
        vectors,
        len(vectors),
        vectors.sum(axis=0, dtype=np.float64),
        _products(vectors),
    )


def thinned(part: Part, count: int, label: str) -> Part:
    """The part with no more than `count` candidates."""
    mean, weight = _whitening([part])
    kept = furthest((part.vectors - mean) @ weight, count, label)
    return replace(part, vectors=part.vectors[kept])


def fit(parts: Sequence[Part], count: int, label: str) -> Memory:
    """The memory of `count` patches of these parts together."""
    vectors = np.concatenate([part.vectors for part in parts])
    if min(count, len(vectors)) * vectors.shape[1] * 4 > LARGEST:
        raise TrainingError(
            f"anomaly.patches={count}: {count * vectors.shape[1] * 4 / 1e6:.0f} MB of {vectors.shape[1]} numbers each, "
            f"{LARGEST / 1e6:.0f} MB are allowed: keep fewer, or choose maps with fewer channels in anomaly.strides"
        )
    mean, weight = _whitening(parts)
    points = (vectors - mean) @ weight
    if not points.any():
        raise TrainingError("the normals' patches are all the same: an encoder that gives a constant finds no defects")
    kept = points[furthest(points, count, label)]
    return Memory(mean, weight, kept, reach=_reach(kept))


def furthest(points: np.ndarray, count: int, label: str, seed: int = 0) -> np.ndarray:
    """(n, D) → sorted indices of `count` of them, chosen greedily so that no other is far from all of them."""
    if len(points) <= count:
        return np.arange(len(points))
    rng = np.random.default_rng(seed)
    if points.shape[1] > _PROJECTED:
        points = points @ rng.normal(size=(points.shape[1], _PROJECTED)).astype(np.float32)
    squares = np.square(points).sum(axis=1)
    nearest = np.full(len(points), np.inf, np.float32)
    chosen = [int(rng.integers(len(points)))]
    for _ in track(range(1, count), label, count - 1):
        last = points[chosen[-1]]
        np.minimum(nearest, squares + (last @ last - 2 * (points @ last)), out=nearest)
        chosen.append(int(nearest.argmax()))
    return np.unique(chosen)


def _reach(points: np.ndarray) -> np.ndarray:
    if len(points) < 2:
        return np.ones(len(points), np.float32)
    reach = References(points).reach(min(_NEIGHBOURS, len(points) - 1))
    return np.asarray(np.maximum(reach, _LEAST_REACH * reach.mean()), np.float32)


def _products(vectors: np.ndarray) -> np.ndarray:
    """(n, C) → (C, C) in float64, a few at a time."""
    total = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), _AT_ONCE):
        some = vectors[start : start + _AT_ONCE].astype(np.float64)
        total += some.T @ some
    return total


def _whitening(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """(mean (C,), weight (C, C)): directions in which places differ much count less.

    Those in which they hardly differ do not count without bound: to each variance a share of their mean is added.
    """
    count = sum(part.count for part in parts)
    mean = np.sum([part.total for part in parts], axis=0) / count
    covariance = np.sum([part.products for part in parts], axis=0) / count - np.outer(mean, mean)
    variance, directions = np.linalg.eigh(covariance)
    variance = np.maximum(variance, 0)
    weight = directions / np.sqrt(np.maximum(variance + _RIDGE * variance.mean(), _TINY))
    return mean.astype(np.float32), weight.astype(np.float32)


def graph_of(encoder: Graph) -> Graph:
    """What the graph takes and gives."""
    taken = next(tensor for tensor in encoder.outputs if tensor.name == PATCH_FEATURES)
    distances = Tensor(name=ANOMALY_MAP, dtype="float32", shape=(-1, *taken.shape[2:]))
    distance = Tensor(name=PATCH_DISTANCE, dtype="float32", shape=(-1, 1))
    return Graph(file=FILE, input=taken, outputs=(distances, distance))


def to_onnx(memory: Memory, stated: Graph, opset: int) -> bytes:
    """|y - m|² / reach² = [y, 1, |y|²] · [-2 m, |m|², 1] / reach²: one matrix product, of each row of it the least."""
    taken, (distances, distance) = stated.input, stated.outputs
    _, channels, rows, columns = taken.shape
    places, points = rows * columns, memory.points.astype(np.float32)
    scale = np.pad(memory.weight, ((0, 0), (0, 1)))
    offset = np.append(-memory.mean @ memory.weight, 1)
    weights = {
        "flat": np.array([0, channels, places]),
        "scale": scale,
        "offset": offset,
        "memory": np.vstack([-2 * points.T, np.square(points).sum(axis=1), np.ones(len(points))]) / memory.reach**2,
        "last": np.array([2]),
        "one": np.ones(1),
        "zero": np.zeros(1),
        "grid": np.array([0, rows, columns]),
        "count": np.array([max(1, round(TOP * places))]),
        "places": np.array([1]),
    }
    nodes = [
        helper.make_node("Reshape", [taken.name, "flat"], ["by_channel"]),
        helper.make_node("Transpose", ["by_channel"], ["by_place"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["by_place", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["y_and_one"]),
        helper.make_node("ReduceSumSquare", ["y_and_one", "last"], ["length_and_one"], keepdims=1),
        helper.make_node("Sub", ["length_and_one", "one"], ["length"]),
        helper.make_node("Concat", ["y_and_one", "length"], ["y_and_more"], axis=2),
        helper.make_node("MatMul", ["y_and_more", "memory"], ["squared"]),
        helper.make_node("ReduceMin", ["squared", "last"], ["least"], keepdims=0),
        helper.make_node("Max", ["least", "zero"], ["not_negative"]),
        helper.make_node("Sqrt", ["not_negative"], ["nearest"]),
        helper.make_node("Reshape", ["nearest", "grid"], [distances.name]),
        helper.make_node("TopK", ["nearest", "count"], ["largest", "where"], axis=1),
        helper.make_node("ReduceMean", ["largest", "places"], [distance.name], keepdims=1),
    ]
    ends = [
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, ["batch", *tensor.shape[1:]])
        for tensor in (taken, distances, distance)
    ]
    integers = {"flat", "last", "grid", "count", "places"}
    initialisers = [
        numpy_helper.from_array(np.ascontiguousarray(array, np.int64 if name in integers else np.float32), name)
        for name, array in weights.items()
    ]
    made = helper.make_graph(nodes, "patches", inputs=ends[:1], outputs=ends[1:], initializer=initialisers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR_VERSION)
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def refitted(bundle: Bundle, data: ImageSet, model: bytes, opset: int) -> bytes:
    """The graph `model` of the bundle with a memory of other images, as large as it was."""
    arrays = {tensor.name: tensor for tensor in load_from_string(model).graph.initializer}
    if "memory" not in arrays:
        raise TrainingError(
            f"{bundle.name}@{bundle.version}: {FILE} was not made by Graft: its memory cannot be refitted"
        )
    count = arrays["memory"].dims[1]
    memory = fit([read_part(bundle, data, "patches")], count, "patches")
    return to_onnx(memory, graph_of(bundle.manifest.graphs.encoder), opset)


@dataclass(frozen=True)
class Folds:
    """A memory of all images, and for each image its distance from the memory of the folds that do not hold it."""

    memory: Memory
    distances: np.ndarray  # (N, 1) float32
    peaks: np.ndarray  # (N,) the largest values of the images' maps by those memories, ascending


def across(bundle: Bundle, data: ImageSet, folds: np.ndarray, count: int, opset: int) -> Folds:
    """`folds` (N,): the number of the fold that holds each image.

    Each fold is thinned to `count` candidates once, and the memories choose among those (a composable core-set), so
    that more folds cost little more.
    """
    members = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    parts = []
    for number, held in enumerate(members, 1):
        label = f"patches, fold {number} of {len(members)}"
        parts.append(thinned(read_part(bundle, data.take(held), label), count, label))
    stated = graph_of(bundle.manifest.graphs.encoder)
    distances, peaks = np.empty((len(data), 1), np.float32), np.empty(len(data), np.float32)
    for number, held in enumerate(members):
        label = f"out of fold {number + 1} of {len(members)}"
        memory = fit([*parts[:number], *parts[number + 1 :]], count, label)
        session = Session(to_onnx(memory, stated, opset), stated, FILE, threads=cpu_limit())
        distances[held], peaks[held] = (
            tiled.measured(bundle, session, stated, data.take(held), label=label)
            if bundle.tiled
            else _measured(bundle, session, data.images, chosen=held, label=label)
        )
    return Folds(fit(parts, count, "patches"), distances, np.sort(peaks))


def peaks_of(bundle: Bundle, normals: ImageSet) -> dict[str, np.ndarray]:
    """The array of the reference file that sets the threshold of regions, if the bundle remembers patches."""
    if bundle.patches is None:
        return {}
    return {PEAKS: np.sort(highest(maps_of(bundle, normals, "regions")))}


def _measured(
    bundle: Bundle, session: Session, images: np.ndarray | Rows, chosen: np.ndarray, label: str
) -> tuple[np.ndarray, np.ndarray]:
    """((n, 1) distances, (n,) peaks) of the chosen images."""
    step, distances, peaks = batch_size(bundle), [], []
    for start in track(range(0, len(chosen), step), label, -(-len(chosen) // step)):
        maps = bundle.encoder.run(images[chosen[start : start + step]], [PATCH_FEATURES])[PATCH_FEATURES]
        # One image at a time: its distances from all that is remembered are in memory.
        for each in maps:
            found = session.run(each[None])
            distances.append(found[PATCH_DISTANCE])
            peaks.append(bundle.place(found[ANOMALY_MAP]).max())
    return np.concatenate(distances), np.array(peaks, np.float32)


def _vectors(bundle: Bundle, images: np.ndarray) -> np.ndarray:
    """(n, H, W, C) → (n · places, channels)."""
    maps = bundle.encoder.run(images, [PATCH_FEATURES])[PATCH_FEATURES]
    return np.asarray(maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1).reshape(-1, maps.shape[1]))


def batch_size(bundle: Bundle) -> int:
    height, width, _ = bundle.manifest.input.shape
    return max(1, min(128, _PIXELS // (height * width)))
