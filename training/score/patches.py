"""The memory of patches: places of normal images, and the graph that measures the distance from them. No torch.

Maps of the encoder with the same places form a level. A place x of a level has y = (x - mean) · weight, where weight
whitens the normals' places. Its distance is min over the remembered m of |y - m| / reach of m, which is m's mean
distance from those nearest to it. The map is the mean of the levels' distances, on the finest places, and an image's
distance the mean of its largest. What is remembered is chosen greedily: each next is the one furthest from all before
it (k-center, Gonzalez 1985), after a random projection where there are many channels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, helper, load_from_string, numpy_helper

from app.bundle import Bundle
from app.bundle.encode import interpolation
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
from training.score.onnx_model import serialised

FILE = "patches.onnx"
TOLERANCE = 1e-3  # of golden outputs: a root of a difference rounds more coarsely than its terms
CANDIDATES = 50_000  # patches of a level from which are chosen, at most, of all folds together
LARGEST = 16_000_000  # bytes of a memory
_RIDGE = 0.1  # of the mean variance, added to that of every direction
_NEIGHBOURS = 15  # whose mean distance is a patch's reach
_LEAST_REACH = 1e-3  # of the mean: copies would divide by zero
_AT_ONCE = 4096
_TINY = 1e-12  # in place of a variance of 0
_SHARE_MORE = 4  # a memory grows by a quarter at a time, at most
_PROJECTED = 64  # dimensions in which is chosen
_PIXELS = 1 << 21  # of a batch

Shape = tuple[int, int, int]  # channels, rows, columns


@dataclass(frozen=True)
class Part:
    """Candidates of some images in one level, and the moments of all that were looked at."""

    vectors: np.ndarray  # (n, C)
    count: int
    total: np.ndarray  # (C,)
    products: np.ndarray  # (C, C)


@dataclass(frozen=True)
class Level:
    """What is remembered of channels that have the same places."""

    shape: Shape
    mean: np.ndarray  # (C,)
    weight: np.ndarray  # (C, C)
    points: np.ndarray  # (R, C)
    reach: np.ndarray  # (R,)


Memory = tuple[Level, ...]


def read_parts(
    bundle: Bundle, data: ImageSet, shapes: Sequence[Shape], label: str, most: int = CANDIDATES, seed: int = 0
) -> list[Part]:
    """Of each level, candidates of all images: every place, or `most` drawn ones. Only these are in memory."""
    if bundle.tiled:
        joined = tiled.drawn(bundle, data, label, most=most, seed=seed)
        ends = np.cumsum([channels for channels, *_ in shapes])[:-1]
        # Places of a coarser level are repeated.
        vectors = [np.unique(level, axis=0) for level in np.split(joined, ends, axis=1)]
        return [_part(found) for found in vectors]
    rng = np.random.default_rng(seed)
    places = [rows * columns for _, rows, columns in shapes]
    drawn = []
    for each in places:
        total = len(data) * each
        drawn.append(np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False)))
    vectors = [np.empty((len(own), shape[0]), np.float32) for own, shape in zip(drawn, shapes, strict=True)]
    step = batch_size(bundle)
    for start in track(range(0, len(data), step), label, -(-len(data) // step)):
        batch = data.images[start : start + step]
        maps = bundle.encoder.run(batch, [PATCH_FEATURES])[PATCH_FEATURES]
        for own, found, each, level in zip(drawn, vectors, places, _levels(maps, shapes), strict=True):
            first, last = np.searchsorted(own, (start * each, (start + len(batch)) * each))
            found[first:last] = _by_place(level)[own[first:last] - start * each]
    return [_part(found) for found in vectors]


def _part(vectors: np.ndarray) -> Part:
    if not np.isfinite(vectors).all():
        raise TrainingError(f"the normals' {PATCH_FEATURES} are not finite: the network diverged")
    return Part(vectors, len(vectors), vectors.sum(axis=0, dtype=np.float64), products=_products(vectors))


def thinned(part: Part, count: int, label: str) -> Part:
    """The part with no more than `count` candidates."""
    mean, weight = _whitening([part])
    kept = furthest((part.vectors - mean) @ weight, count, label)
    return replace(part, vectors=part.vectors[kept])


def fit(parts: Sequence[Sequence[Part]], shapes: Sequence[Shape], count: int, label: str) -> Memory:
    """The memory of `count` patches a level of these parts together; each of `parts` has one for each level."""
    levels = [list(each) for each in zip(*parts, strict=True)]
    numbers = sum(
        min(count, sum(len(part.vectors) for part in level)) * shape[0]
        for level, shape in zip(levels, shapes, strict=True)
    )
    if numbers * 4 > LARGEST:
        raise TrainingError(
            f"anomaly.patches={count}: {numbers * 4 / 1e6:.0f} MB of {sum(shape[0] for shape in shapes)} numbers each, "
            f"{LARGEST / 1e6:.0f} MB are allowed: keep fewer, or choose maps with fewer channels in anomaly.strides"
        )
    return tuple(_level(level, shape, count, label) for level, shape in zip(levels, shapes, strict=True))


def _level(parts: Sequence[Part], shape: Shape, count: int, label: str) -> Level:
    mean, weight = _whitening(parts)
    points = (np.concatenate([part.vectors for part in parts]) - mean) @ weight
    if not points.any():
        raise TrainingError("the normals' patches are all the same: an encoder that gives a constant finds no defects")
    kept = points[furthest(points, count, label)]
    return Level(shape, mean, weight, kept, reach=_reach(kept))


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
    """|y - m|² / reach² = [y, 1, |y|²] · [-2 m, |m|², 1] / reach²: a matrix product a level, of each row the least."""
    taken, (distances, distance) = stated.input, stated.outputs
    _, _, rows, columns = taken.shape
    weights: dict[str, np.ndarray] = {
        "last": np.array([2]),
        "one": np.ones(1),
        "zero": np.zeros(1),
        "grid": np.array([0, rows, columns]),
        "flat": np.array([0, rows * columns]),
        "count": np.array([count_largest(rows * columns)]),
        "places": np.array([1]),
        "channel": np.array([1]),
        "share": np.full(1, 1 / len(memory)),
    }
    nodes, first = [], 0
    for number, level in enumerate(memory):
        own = _Named(number)
        weights |= {own(name): array for name, array in _weights(level, first, (rows, columns)).items()}
        nodes += _nodes(taken.name, own, level, (rows, columns))
        first += level.shape[0]
    nodes += [
        helper.make_node("Sum", [_Named(number)("map") for number in range(len(memory))], ["sum"]),
        helper.make_node("Mul", ["sum", "share"], [distances.name]),
        helper.make_node("Reshape", [distances.name, "flat"], ["all_places"]),
        helper.make_node("TopK", ["all_places", "count"], ["largest", "where"], axis=1),
        helper.make_node("ReduceMean", ["largest", "places"], [distance.name], keepdims=1),
    ]
    return serialised("patches", nodes, weights, stated=stated, opset=opset)


def count_largest(places: int) -> int:
    """Of a map's places those whose mean is the image's distance."""
    return max(1, round(TOP * places))


class _Named:
    """Names of a level's tensors."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, name: str) -> str:
        return f"{name}{self.number}"


def _weights(level: Level, first: int, sides: tuple[int, int]) -> dict[str, np.ndarray]:
    """By name. `first` is the level's first channel, and `sides` are those of the joined maps."""
    channels, *own = level.shape
    points = level.points.astype(np.float32)
    memory = np.vstack([-2 * points.T, np.square(points).sum(axis=1), np.ones(len(points))]) / level.reach**2
    rows, columns = (_kept(side, finer) for side, finer in zip(own, sides, strict=True))
    return {
        "start": np.array([first]),
        "stop": np.array([first + channels]),
        "rows": rows,
        "columns": columns,
        "flat": np.array([0, channels, math.prod(own)]),
        "scale": np.pad(level.weight, ((0, 0), (0, 1))),
        "offset": np.append(-level.mean @ level.weight, 1),
        "memory": memory,
        "grid": np.array([0, *own]),
        "down": interpolation(own[0], sides[0]),
        "across": np.ascontiguousarray(interpolation(own[1], sides[1]).T),
    }


def _nodes(taken: str, own: "_Named", level: Level, sides: tuple[int, int]) -> list[NodeProto]:
    """From the joined maps to the level's distances on the finest places."""
    nodes = [helper.make_node("Slice", [taken, own("start"), own("stop"), "channel"], [own("channels")])]
    coarser = level.shape[1:] != sides
    maps = own("channels")
    if coarser:
        nodes += [
            helper.make_node("Gather", [maps, own("rows")], [own("in_rows")], axis=2),
            helper.make_node("Gather", [own("in_rows"), own("columns")], [own("sampled")], axis=3),
        ]
        maps = own("sampled")
    nodes += [
        helper.make_node("Reshape", [maps, own("flat")], [own("by_channel")]),
        helper.make_node("Transpose", [own("by_channel")], [own("by_place")], perm=[0, 2, 1]),
        helper.make_node("MatMul", [own("by_place"), own("scale")], [own("scaled")]),
        helper.make_node("Add", [own("scaled"), own("offset")], [own("y_and_one")]),
        helper.make_node("ReduceSumSquare", [own("y_and_one"), "last"], [own("length_and_one")], keepdims=1),
        helper.make_node("Sub", [own("length_and_one"), "one"], [own("length")]),
        helper.make_node("Concat", [own("y_and_one"), own("length")], [own("y_and_more")], axis=2),
        helper.make_node("MatMul", [own("y_and_more"), own("memory")], [own("squared")]),
        helper.make_node("ReduceMin", [own("squared"), "last"], [own("least")], keepdims=0),
        helper.make_node("Max", [own("least"), "zero"], [own("not_negative")]),
        helper.make_node("Sqrt", [own("not_negative")], [own("nearest")]),
        helper.make_node("Reshape", [own("nearest"), own("grid")], [own("own_map" if coarser else "map")]),
    ]
    if coarser:
        nodes += [
            helper.make_node("MatMul", [own("down"), own("own_map")], [own("taller")]),
            helper.make_node("MatMul", [own("taller"), own("across")], [own("map")]),
        ]
    return nodes


def _kept(side: int, finer: int) -> np.ndarray:
    """(side,) of the places of a side on which each of the own ones is repeated, the first that has it."""
    return -(-np.arange(side) * finer // side)


def _levels(maps: np.ndarray, shapes: Sequence[Shape]) -> Iterator[np.ndarray]:
    """(N, C, H, W) of joined maps → of each level (N, channels, rows, columns), on its own places."""
    first = 0
    for channels, *sides in shapes:
        rows, columns = (_kept(side, finer) for side, finer in zip(sides, maps.shape[2:], strict=True))
        yield maps[:, first : first + channels][:, :, rows][..., columns]
        first += channels


def _by_place(maps: np.ndarray) -> np.ndarray:
    """(n, C, H, W) → (n · H · W, C)."""
    return maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1).reshape(-1, maps.shape[1])


def refitted(bundle: Bundle, data: ImageSet, model: bytes, opset: int) -> bytes:
    """The graph `model` of the bundle with a memory of other images, as large as it was."""
    arrays = {each.name: numpy_helper.to_array(each) for each in load_from_string(model).graph.initializer}
    stated = graph_of(bundle.manifest.graphs.encoder)
    shapes, memories = _remembered(arrays, stated)
    if not memories:
        raise TrainingError(
            f"{bundle.name}@{bundle.version}: {FILE} was not made by Graft: its memory cannot be refitted"
        )
    count = max(each.shape[1] for each in memories)
    memory = fit([read_parts(bundle, data, shapes, "patches")], shapes, count, "patches")
    return to_onnx(memory, stated, opset)


def extended(bundle: Bundle, data: ImageSet, model: bytes, opset: int) -> bytes:
    """The graph `model` of the bundle with patches of more normal images, of each level a quarter more at most.

    What was remembered stays as it was, so that no distance grows.
    """
    arrays = {each.name: numpy_helper.to_array(each) for each in load_from_string(model).graph.initializer}
    stated = graph_of(bundle.manifest.graphs.encoder)
    shapes, memories = _remembered(arrays, stated)
    if not memories or "memory" in arrays:
        raise TrainingError(
            f"{bundle.name}@{bundle.version}: {FILE} is of an older Graft, or of none: its memory takes no more patches"
        )
    parts = read_parts(bundle, data, shapes, "patches")
    memory = tuple(
        _with_more(_level_of(arrays, number, shape), part.vectors)
        for number, (shape, part) in enumerate(zip(shapes, parts, strict=True))
    )
    return to_onnx(memory, stated, opset)


def _level_of(arrays: dict[str, np.ndarray], number: int, shape: Shape) -> Level:
    """The inverse of `_weights`."""
    own = _Named(number)
    weight, memory = arrays[own("scale")][:, :-1], arrays[own("memory")]
    reach = 1 / np.sqrt(memory[-1])
    mean = np.linalg.solve(weight.T.astype(np.float64), -arrays[own("offset")][:-1])
    points = (-0.5 * memory[:-2] * reach**2).T
    return Level(shape, mean.astype(np.float32), weight, points, reach=reach)


def _with_more(level: Level, vectors: np.ndarray) -> Level:
    """Chosen greedily among the vectors, as those furthest from what is remembered."""
    known = level.points
    points = (vectors - level.mean) @ level.weight
    count = min(len(points), max(1, len(known) // _SHARE_MORE))
    squares = np.square(points).sum(axis=1)
    nearest = np.full(len(points), np.inf, np.float32)
    for start in range(0, len(known), _AT_ONCE):
        some = known[start : start + _AT_ONCE]
        apart = squares[:, None] + np.square(some).sum(axis=1) - 2 * points @ some.T
        np.minimum(nearest, apart.min(axis=1), out=nearest)
    chosen = []
    for _ in range(count):
        last = points[int(nearest.argmax())]
        chosen.append(last)
        np.minimum(nearest, squares + (last @ last - 2 * (points @ last)), out=nearest)
    together = np.concatenate([known, np.stack(chosen)])
    reach = np.concatenate([level.reach, _reach(together)[len(known) :]])
    return replace(level, points=together, reach=reach.astype(np.float32))


def _remembered(arrays: dict[str, np.ndarray], stated: Graph) -> tuple[list[Shape], list[np.ndarray]]:
    """(shapes, remembered patches) of the levels. Earlier graphs have one, whose arrays have no numbers."""
    if "memory" in arrays:
        _, *shape = stated.input.shape
        return [_shape(*shape)], [arrays["memory"]]
    names = [_Named(number) for number in range(len(arrays)) if f"memory{number}" in arrays]
    shapes = [_shape(arrays[own("scale")].shape[0], *arrays[own("grid")][1:].tolist()) for own in names]
    return shapes, [arrays[own("memory")] for own in names]


def _shape(channels: int, rows: int, columns: int) -> Shape:
    return channels, rows, columns


@dataclass(frozen=True)
class Folds:
    """A memory of all images, and for each image its distance from the memory of the folds that do not hold it."""

    memory: Memory
    distances: np.ndarray  # (N, 1) float32
    peaks: np.ndarray  # (N,) the largest values of the images' maps by those memories, ascending


def across(bundle: Bundle, data: ImageSet, shapes: Sequence[Shape], folds: np.ndarray, count: int, opset: int) -> Folds:
    """`folds` (N,): the number of the fold that holds each image; `shapes` are those of the levels.

    Each fold is thinned to `count` of its share of candidates once, and the memories choose among those (a composable
    core-set), so that more folds cost little more.
    """
    members = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    most = CANDIDATES // len(members)
    parts = []
    for number, held in enumerate(members, 1):
        label = f"patches, fold {number} of {len(members)}"
        read = read_parts(bundle, data.take(held), shapes, label, most=most)
        parts.append([thinned(each, count, label) for each in read])
    stated = graph_of(bundle.manifest.graphs.encoder)
    distances, peaks = np.empty((len(data), 1), np.float32), np.empty(len(data), np.float32)
    for number, held in enumerate(members):
        label = f"out of fold {number + 1} of {len(members)}"
        memory = fit([*parts[:number], *parts[number + 1 :]], shapes, count, label)
        session = Session(to_onnx(memory, stated, opset), stated, FILE, threads=cpu_limit())
        distances[held], peaks[held] = (
            tiled.measured(bundle, session, stated, data.take(held), label=label)
            if bundle.tiled
            else _measured(bundle, session, data.images, chosen=held, label=label)
        )
    return Folds(fit(parts, shapes, count, "patches"), distances, np.sort(peaks))


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


def batch_size(bundle: Bundle) -> int:
    height, width, _ = bundle.manifest.input.shape
    return max(1, min(128, _PIXELS // (height * width)))
