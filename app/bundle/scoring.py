"""Graph outputs → typed results. Pure numpy: training calibrates with the same functions that serving uses."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from app.bundle.manifest import Anomaly, Classifier


@dataclass(frozen=True, slots=True)
class Classification:
    """`ranked` holds (label, probability), the most probable first.

    Where labels are independent, `present` are those that the image has, the most probable first.
    """

    index: int
    ranked: list[tuple[str, float]]
    present: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        return self.ranked[0][0]

    @property
    def confidence(self) -> float:
        return self.ranked[0][1]


@dataclass(frozen=True, slots=True)
class AnomalyScore:
    score: float
    threshold: float
    anomalous: bool
    p_value: float
    distances: dict[str, float]  # name → raw distance: reconstruction, embedding.mahalanobis, …

    @property
    def reconstruction_error(self) -> float | None:
        return self.distances.get("reconstruction")

    @property
    def latent_distance(self) -> float | None:
        """The manifest's first distance other than reconstruction."""
        return next((value for name, value in self.distances.items() if name != "reconstruction"), None)


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K) logits → (N, K) float64 rows that sum to one."""
    powers = logits.astype(np.float64)
    powers /= temperature
    powers -= np.maximum.reduce(powers, axis=1, keepdims=True)  # np.max without its wrapper's cost; same for np.sum
    np.exp(powers, out=powers)
    powers /= np.add.reduce(powers, axis=1, keepdims=True)
    return np.asarray(powers)


def sigmoid(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K) logits → (N, K) float64 in 0…1, each for itself."""
    return np.asarray(1 / (1 + np.exp(np.clip(logits.astype(np.float64) / -temperature, -700, 700))))


def label_probabilities(logits: np.ndarray, classifier: Classifier) -> np.ndarray:
    """(N, K) logits → (N, K): of one label each, rows that sum to one; of independent labels, each for itself."""
    of = probabilities if classifier.thresholds is None else sigmoid
    return of(logits, classifier.temperature)


def confidences(rows: np.ndarray, classifier: Classifier) -> np.ndarray:
    """(N, K) probabilities → (N,): of the likeliest label; of independent labels, of the one decided least surely."""
    if classifier.thresholds is None:
        return np.asarray(rows.max(axis=1))
    return np.asarray(np.maximum(rows, 1 - rows).min(axis=1))


def are_present(rows: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """(N, K) probabilities of independent labels → (N, K) bool."""
    return np.asarray(rows >= np.array(thresholds))


def likeliest_first(rows: np.ndarray) -> np.ndarray:
    """(N, K) probabilities or logits → (N, K) label indices, descending; ties keep the order of the labels."""
    return np.asarray(np.negative(rows).argsort(axis=1, kind="stable"))


def classify(logits: np.ndarray, classifier: Classifier) -> list[Classification]:
    rows, labels = label_probabilities(logits, classifier), classifier.labels
    present = None if classifier.thresholds is None else are_present(rows, classifier.thresholds)
    return [
        Classification(
            int(order[0]),
            ranked=[(labels[i], float(rows[number][i])) for i in order],
            present=None if present is None else tuple(labels[i] for i in order if present[number][i]),
        )
        for number, order in enumerate(likeliest_first(rows))
    ]


def reconstruction_errors(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 and (N, H, W, C) float32 in 0…1 → (N,) mean squared errors on the scale 0…1."""
    difference = reconstructions - images.astype(np.float32) / 255.0
    return np.asarray(np.mean(np.square(difference), axis=(1, 2, 3), dtype=np.float64))


def error_maps(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 and floats in 0…1 → (N, H, W) float32: the mean error over channels. Heatmaps show it."""
    return np.asarray(np.abs(reconstructions - images.astype(np.float32) / 255).mean(axis=3))


THUMBNAIL = 14  # most cells per side


def thumbnails(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 → (N, D) float32: square roots of the grey levels in 0…1, averaged over 14 × 14 cells.

    The square root weights differences of dark greys like those of bright greys. A side of fewer than 14 pixels keeps
    them all; where 14 does not divide the side, neighbouring cells share their border pixels.
    """
    count, height, width, channels = images.shape
    rows = cells(height, THUMBNAIL) @ _ROOTS[images].reshape(count, height, -1)
    grid = cells(width, THUMBNAIL) @ rows.reshape(-1, width, channels)
    return np.asarray(grid.reshape(count, -1))


def thumbnail_size(height: int, width: int, channels: int) -> int:
    return min(THUMBNAIL, height) * min(THUMBNAIL, width) * channels


@cache
def cells(side: int, most: int) -> np.ndarray:
    """(cells, side) matrix: row i averages the i-th of equal spans, which overlap where `side` does not divide."""
    count = min(most, side)
    matrix = np.zeros((count, side), np.float32)
    for cell in range(count):
        start, end = cell * side // count, -(-(cell + 1) * side // count)
        matrix[cell, start:end] = 1 / (end - start)
    matrix.flags.writeable = False
    return matrix


_ROOTS = np.sqrt(np.arange(256, dtype=np.float32) / 255)
_SMALLEST_RATE = 1e-15  # keeps the number of needed images an integer that prints
PATCHES = "patches"  # the distance that a graph of the bundle gives, and its tensor (N, 1)
NEAREST = 3  # references whose distances are averaged; fewer if there are fewer
_AXES = {"mean": "D", "weight": "D", "basis": "DK", "spread": "K", "references": "RK", "reach": "R"}
NEEDS = {  # measure → the arrays of its Space
    "mahalanobis": ("mean", "weight", "basis", "spread"),
    "residual": ("mean", "weight", "basis"),
    "neighbours": ("mean", "weight", "basis", "references"),
    "local": ("mean", "weight", "basis", "references", "reach"),
}
_COMPARED = 1 << 22  # most distances to references in memory at a time


def takes_and_measure(distance: str) -> tuple[str, str]:
    """Distance name → parts: features.residual → (features, residual), reconstruction → (pixels, reconstruction)."""
    if distance == "reconstruction":
        return "pixels", distance
    if distance == PATCHES:
        return PATCHES, distance
    tensor, _, measure = distance.partition(".")
    if tensor not in ("thumbnail", "embedding", "features") or measure not in NEEDS:
        raise ValueError(
            f"{distance}: reconstruction, patches, or thumbnail, embedding or features with one of {', '.join(NEEDS)}, "
            "is expected, as in features.residual"
        )
    return tensor, measure


class Space:
    """The normals in the space of one tensor: principal directions, their spread, and some normals as references.

    `mean` and `weight` (D,), `basis` (D, K) with orthonormal columns, `spread` (K,), `references` (R, K), `reach` (R,).
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        self._references = References(arrays["references"]) if "references" in arrays else None

    def distances(self, points: np.ndarray, measures: set[str]) -> dict[str, np.ndarray]:
        """(N, D) → measure → (N,) distances."""
        x = (points - self._arrays["mean"]) * self._arrays["weight"]
        z = x @ self._arrays["basis"]
        inside = np.square(z).sum(axis=1)
        distances = {}
        if "mahalanobis" in measures:
            distances["mahalanobis"] = np.sqrt(np.square(z / self._arrays["spread"]).sum(axis=1))
        if "residual" in measures:
            distances["residual"] = np.sqrt(np.maximum(np.square(x).sum(axis=1) - inside, 0))
        if self._references is not None and "neighbours" in measures:
            distances["neighbours"] = self._references.nearest(z)
        if self._references is not None and "local" in measures:
            distances["local"] = self._references.nearest(z, self._arrays["reach"])
        return {measure: values.astype(np.float64) for measure, values in distances.items()}


class References:
    """Points (R, K) from which the distances of other points are measured."""

    def __init__(self, points: np.ndarray) -> None:
        self._points, self._norms = points, np.square(points).sum(axis=1)

    def nearest(self, z: np.ndarray, reach: np.ndarray | None = None) -> np.ndarray:
        """(N, K) → (N,) mean distances from the nearest; `reach` divides each by the root of its reference's reach."""
        means = np.empty(len(z))
        for chunk in self._chunks(len(z)):
            squared = self._squared(z[chunk])
            means[chunk] = _mean_of_least(squared if reach is None else squared / reach)
        return means

    def reach(self, count: int = NEAREST) -> np.ndarray:
        """(R,) mean distance of each reference from so many nearest others; needs more than that."""
        means = np.empty(len(self._points))
        for chunk in self._chunks(len(means)):
            squared = self._squared(self._points[chunk])
            np.fill_diagonal(squared[:, chunk], np.inf)
            means[chunk] = _mean_of_least(squared, count)
        return means

    def _chunks(self, rows: int) -> Iterator[slice]:
        step = max(1, _COMPARED // len(self._points))
        return (slice(start, start + step) for start in range(0, rows, step))

    def _squared(self, z: np.ndarray) -> np.ndarray:
        """(N, K) → (N, R) squared distances; rounding may leave small ones below zero."""
        return np.asarray(np.square(z).sum(axis=1)[:, None] + self._norms - 2 * z @ self._points.T)


def _mean_of_least(squared: np.ndarray, count: int = NEAREST) -> np.ndarray:
    count = min(count, squared.shape[1])
    nearest = np.partition(squared, count - 1, axis=1)[:, :count]
    return np.asarray(np.sqrt(np.maximum(nearest, 0)).mean(axis=1))


def p_values(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal p-values: the share of held-out normals, plus the image itself, with at least this score.

    `calibration` is sorted in ascending order.
    """
    as_high = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return np.asarray((1 + as_high) / (len(calibration) + 1))


def threshold_at(calibration: np.ndarray, false_alarm_rate: float) -> float:
    """The t for which score > t exactly where p-value ≤ rate; `calibration` is sorted in ascending order."""
    allowed_above = int(np.floor(false_alarm_rate * (len(calibration) + 1) + 1e-9)) - 1
    if allowed_above < 0:
        needed = math.ceil(1 / max(false_alarm_rate, _SMALLEST_RATE)) - 1
        raise ValueError(
            f"{len(calibration)} held-out normals are too few for a false-alarm rate of {false_alarm_rate}: "
            f"at least {needed} are needed"
        )
    allowed_above = min(allowed_above, len(calibration) - 1)  # the rate may round to one
    return float(calibration[len(calibration) - 1 - allowed_above])


class AnomalyScorer:
    """The manifest's distances with the reference file's arrays: `calibration_scores` and `<tensor>.<array>`."""

    def __init__(self, anomaly: Anomaly, reference: dict[str, np.ndarray], sizes: dict[str, int]) -> None:
        """`sizes`: tensor that a distance may take → its size. Raises ValueError naming the array that does not fit."""
        self._anomaly = anomaly
        self._mean, self._std = (np.array([getattr(d, name) for d in anomaly.distances]) for name in ("mean", "std"))
        self.calibration = numbers(reference, "calibration_scores", (anomaly.calibrated_on,))
        if (np.diff(self.calibration) < 0).any():
            raise ValueError("array calibration_scores: not sorted in ascending order")
        self._measures: dict[str, set[str]] = {}
        for distance in anomaly.distances:
            self._measures.setdefault(distance.takes, set()).add(distance.measure)
        self.tensors = frozenset(self._measures) - {"pixels"}
        self.reconstructs = "pixels" in self._measures
        self.reads_patches = PATCHES in self._measures
        self._spaces = {
            tensor: Space(_space_arrays(reference, tensor, measures, sizes[tensor]))
            for tensor, measures in self._measures.items()
            if tensor in self.tensors - {PATCHES}
        }

    def distances(self, tensors: Mapping[str, np.ndarray], errors: np.ndarray | None) -> np.ndarray:
        """(N, distances) raw, in the manifest's order. `errors` (N,) are needed if reconstruction is one of them."""
        columns: dict[tuple[str, str], np.ndarray] = {}
        for tensor, space in self._spaces.items():
            for measure, values in space.distances(tensors[tensor], self._measures[tensor]).items():
                columns[tensor, measure] = values
        if self.reads_patches:
            columns[PATCHES, PATCHES] = tensors[PATCHES][:, 0].astype(np.float64)
        if self.reconstructs:
            assert errors is not None
            columns["pixels", "reconstruction"] = errors
        return np.stack([columns[distance.takes, distance.measure] for distance in self._anomaly.distances], axis=1)

    def combine(self, distances: np.ndarray) -> np.ndarray:
        """(N, distances) → (N,) scores."""
        return np.asarray(((distances - self._mean) / self._std).sum(axis=1))

    def threshold(self, false_alarm_rate: float | None) -> float:
        """The threshold for this rate, None for the bundle's own. Raises ValueError if the normals are too few."""
        if false_alarm_rate is None:
            return self._anomaly.threshold
        return threshold_at(self.calibration, false_alarm_rate)

    def score(self, tensors: Mapping[str, np.ndarray], errors: np.ndarray | None) -> list[AnomalyScore]:
        return self.score_distances(self.distances(tensors, errors))

    def score_distances(self, distances: np.ndarray, false_alarm_rate: float | None = None) -> list[AnomalyScore]:
        """(N, distances) raw → N scores, at the bundle's false-alarm rate or another."""
        threshold = self.threshold(false_alarm_rate)
        rate = false_alarm_rate or self._anomaly.false_alarm_rate
        scores = self.combine(distances)
        names = [distance.name for distance in self._anomaly.distances]
        return [
            AnomalyScore(
                score=float(score),
                threshold=threshold,
                anomalous=bool(p <= rate),
                p_value=float(p),
                distances=dict(zip(names, map(float, row), strict=True)),
            )
            for score, p, row in zip(scores, p_values(scores, self.calibration), distances, strict=True)
        ]


def numbers(reference: dict[str, np.ndarray], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array of this name. Raises ValueError unless it is finite floats of this shape, where None is any size."""
    array = reference.get(name)
    if array is not None and array.dtype.kind == "f" and _fits(array.shape, shape) and np.isfinite(array).all():
        return array
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(f"array {name}: must be finite floats of shape ({sizes})")


def _fits(actual: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(actual) == len(expected) and all(e in (None, a) for a, e in zip(actual, expected, strict=True))


def _space_arrays(
    reference: dict[str, np.ndarray], tensor: str, measures: set[str], size: int
) -> dict[str, np.ndarray]:
    basis = numbers(reference, f"{tensor}.basis", (size, None))
    sizes = {"D": size, "K": basis.shape[1], "R": None}
    arrays = {}
    for name in sorted({array for measure in measures for array in NEEDS[measure]}):
        arrays[name] = numbers(reference, f"{tensor}.{name}", tuple(sizes[axis] for axis in _AXES[name]))
    if "spread" in arrays and not (arrays["spread"] > 0).all():
        raise ValueError(f"array {tensor}.spread: must be above zero everywhere")
    if "references" in arrays and not len(arrays["references"]):
        raise ValueError(f"array {tensor}.references: must not be empty")
    if "reach" in arrays and not (len(arrays["reach"]) == len(arrays["references"]) and (arrays["reach"] > 0).all()):
        raise ValueError(f"array {tensor}.reach: not a number above zero for each of {tensor}.references")
    return arrays
