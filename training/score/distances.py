"""Fitting the distances that an anomaly score adds up: spaces of normals, and scales. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle import Bundle
from app.bundle.manifest import Distance
from app.bundle.scoring import PATCHES, AnomalyScorer, References, Space, takes_and_measure
from training.data.storage import Rows, chunks
from training.errors import TrainingError
from training.measure.components import main_directions
from training.recipe import DISTANCES

_RIDGE = 1e-3  # of the mean variance, added to every direction: a direction without variance would divide by zero
_RANK = 64  # main directions kept of a tensor wider than _WIDE; of a narrower one all are kept
_WIDE = 256
_REFERENCES = {
    "neighbours": 2000,
    "local": 10_000,
}  # normals kept as references; the larger number for both
_LEAST_REACH = 1e-3  # of the mean: copies of an image have a reach of 0, which would divide by zero
_MOST_FOR_DIRECTIONS = 5000  # images from which the directions of a wide tensor are found
_VALUES_AT_A_TIME = 1 << 24  # of the widest tensor


@dataclass(frozen=True)
class Normals:
    """Graph outputs per image: (N, D) tensors by name, and (N,) reconstruction errors."""

    encoded: dict[str, np.ndarray]  # may be larger than memory
    errors: np.ndarray | None

    def __len__(self) -> int:
        return len(next(iter(self.encoded.values()))) if self.errors is None else len(self.errors)

    def parts(self) -> Iterator["Normals"]:
        """In order, in parts that fit into memory."""
        widest = max((points.shape[1] for points in self.encoded.values()), default=1)
        step = max(1, _VALUES_AT_A_TIME // widest)
        for start in range(0, len(self), step):
            part = slice(start, start + step)
            yield Normals(
                {name: points[part] for name, points in self.encoded.items()},
                None if self.errors is None else self.errors[part],
            )

    def distances(self, scorer: AnomalyScorer) -> np.ndarray:
        """(N, distances)."""
        return np.concatenate([scorer.distances(part.encoded, part.errors) for part in self.parts()])


def tensors(distances: Sequence[str]) -> set[str]:
    """The tensors that the distances read; reconstruction reads pixels, which are not one."""
    return {takes for takes, _ in map(takes_and_measure, distances)} - {"pixels"}


def usual(bundle: Bundle) -> list[str]:
    """The distances of the bundle's own score; without a score the default ones that its graphs allow."""
    if bundle.manifest.anomaly is not None:
        return [distance.name for distance in bundle.manifest.anomaly.distances]
    return [name for name in DISTANCES if name != "reconstruction" or bundle.decoder is not None]


def fit_distances(
    train: Normals, distances: Sequence[str], blocks: Sequence[int] = ()
) -> tuple[tuple[Distance, ...], dict[str, np.ndarray]]:
    """(distances with their scales, arrays that they need in the reference file).

    Directions and references come from four fifths of `train`, scales from the rest. `blocks` are the sizes of the
    stages' parts of `features`: parts are scaled so that each has the same weight.
    """
    fitted_on, scaled_on = fitted_and_scaled(len(train))
    raw, arrays = _raw(train, distances, fitted_on, scaled_on, blocks=blocks)
    return _scaled_by(raw, distances), arrays


def across(normals: Normals, distances: Sequence[str], held: np.ndarray, blocks: Sequence[int] = ()) -> np.ndarray:
    """(held images, distances) raw of those that are held out, (N,) bool, by what the others gave."""
    found, _ = _raw(normals, distances, np.flatnonzero(~held), np.flatnonzero(held), blocks=blocks)
    return np.stack([found[takes_and_measure(distance)] for distance in distances], axis=1)


def fit_across(
    train: Normals,
    distances: Sequence[str],
    folds: np.ndarray | None,
    *,
    blocks: Sequence[int] = (),
    raw: np.ndarray | None = None,
) -> tuple[tuple[Distance, ...], dict[str, np.ndarray], np.ndarray]:
    """As `fit_distances`, and (N, distances) raw of each image, by what the other folds gave; the arrays are of all.

    `folds` (N,): the number of the fold that holds each image. Or `raw`, where each fold has a network of its own.
    """
    if raw is None:
        assert folds is not None
        raw = np.empty((len(train), len(distances)))
        for fold in np.unique(folds):
            raw[folds == fold] = across(train, distances, folds == fold, blocks)
    by_distance = {takes_and_measure(distance): raw[:, number] for number, distance in enumerate(distances)}
    everything = np.arange(len(train))
    _, arrays = _raw(train, distances, everything, everything[:1], blocks=blocks)
    return _scaled_by(by_distance, distances), arrays, raw


def fitted_and_scaled(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of so many normals a score is fitted on, and which its distances are scaled on: every fifth."""
    fifth = np.arange(count) % 5 == 4
    if not fifth.any():
        raise TrainingError(f"{count} normals are too few to fit an anomaly score: add images")
    return np.flatnonzero(~fifth), np.flatnonzero(fifth)


def _raw(
    train: Normals, distances: Sequence[str], fitted_on: np.ndarray, measured: np.ndarray, blocks: Sequence[int]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """({(takes, measure): distances of the measured images}, arrays that they need in the reference file)."""
    arrays: dict[str, np.ndarray] = {}
    raw: dict[tuple[str, str], np.ndarray] = {}
    for tensor in sorted(tensors(distances)):
        points = train.encoded[tensor]
        if tensor == PATCHES:  # the bundle's graph has measured it
            raw[PATCHES, PATCHES] = points[measured][:, 0]
            continue
        measures = {measure for takes, measure in map(takes_and_measure, distances) if takes == tensor}
        space = _space(Rows(points, fitted_on), measures, tensor, blocks if tensor == "features" else ())
        arrays |= {f"{tensor}.{name}": array for name, array in space.items()}
        parts = [Space(space).distances(part, measures) for part in chunks(Rows(points, measured))]
        raw |= {(tensor, measure): np.concatenate([part[measure] for part in parts]) for measure in measures}
    if train.errors is not None:
        raw["pixels", "reconstruction"] = train.errors[measured]
    return raw, arrays


def _scaled_by(raw: dict[tuple[str, str], np.ndarray], distances: Sequence[str]) -> tuple[Distance, ...]:
    return tuple(_scaled(takes, measure, raw[takes, measure]) for takes, measure in map(takes_and_measure, distances))


def _scaled(takes: str, measure: str, values: np.ndarray) -> Distance:
    std = float(values.std())
    if not std > 1e-12:
        raise TrainingError(
            f"all normals have the same {measure} distance: leave it out of anomaly.distances, or add other images"
        )
    return Distance(measure=measure, takes=takes, mean=float(values.mean()), std=std)  # type: ignore[arg-type]


def _space(points: Rows, measures: set[str], tensor: str, blocks: Sequence[int]) -> dict[str, np.ndarray]:
    """`points` (N, D) → the arrays of app.bundle.scoring.Space that the measures need."""
    rng = np.random.default_rng(0)
    total = np.zeros(points.shape[1])
    for some in chunks(points):
        total += some.sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise TrainingError(f"the normals' {tensor} is not finite: the network diverged; train it at a lower rate")
    mean = (total / len(points)).astype(np.float32)
    centred = points[np.sort(rng.permutation(len(points))[:_MOST_FOR_DIRECTIONS])] - mean
    weight = np.ones(points.shape[1], np.float32)
    whole = (points.shape[1],)
    for end, size in zip(np.cumsum(blocks or whole), blocks or whole, strict=True):
        part = slice(end - size, end)
        spread = float(np.sqrt(np.square(centred[:, part]).mean(dtype=np.float64)))
        weight[part] = 1 / (max(spread, 1e-6) * np.sqrt(size))
    centred *= weight
    if not np.square(centred).mean(dtype=np.float64) > 1e-12:
        raise TrainingError(
            f"the normals' {tensor} has no variance: the images are all the same, or the encoder gives a constant"
        )
    size = points.shape[1]
    kept = (
        _RANK if size > _WIDE else size // 2 or 1 if "residual" in measures else size
    )  # with all, no residual is left
    values, basis = main_directions(centred, min(kept, *centred.shape))
    # The file holds half precision: round here, so that the threshold is that of the rounded score.
    arrays = {"mean": mean, "weight": weight, "basis": basis.astype(np.float16)}
    if "mahalanobis" in measures:
        arrays["spread"] = np.sqrt(np.maximum(values, 0) + _RIDGE * values.mean()).astype(np.float32)
    if kept := max((count for measure, count in _REFERENCES.items() if measure in measures), default=0):
        chosen = np.sort(rng.permutation(len(points))[:kept])
        rounded = arrays["basis"].astype(np.float32)  # queries are projected by the rounded basis, too
        arrays["references"] = (((points[chosen] - mean) * weight) @ rounded).astype(np.float16)
    if "local" in measures:
        reach = References(arrays["references"].astype(np.float32)).reach()
        arrays["reach"] = np.maximum(reach, _LEAST_REACH * reach.mean())
    return arrays
