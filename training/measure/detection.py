"""How well an anomaly score separates normal images from others: areas, precision, recall, and their intervals."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from training.data.imageset import ImageSet
from training.measure.intervals import wilson

RESAMPLED = 1000  # bootstrap samples
_VALUES = 1 << 22  # of a chunk of bootstrap samples


@dataclass(frozen=True)
class ClassScores:
    """The anomaly score on the normal test images of one class."""

    name: str
    images: int
    alarms: float  # share of them that is called anomalous
    auroc: float | None  # against the source's images, where the source is another domain


class Measured(NamedTuple):
    """A measure with its interval of 95 %."""

    value: float
    low: float
    high: float


def auroc(normal: np.ndarray, other: np.ndarray) -> float:
    """How often an image of `other` scores higher than one of `normal`; ties count half."""
    scores = np.concatenate([normal, other])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[len(normal) :].sum() - len(other) * (len(other) + 1) / 2
    return float(above / (len(normal) * len(other)))


def by_class(threshold: float, data: ImageSet, scores: np.ndarray, other: np.ndarray | None) -> list[ClassScores]:
    """The class with most false alarms first. `scores` are of `data`, which has labels; `other` of anomalies."""
    found = []
    for label in np.unique(data.labels):
        own = scores[data.labels == label]
        against = None if other is None else auroc(own, other)
        found.append(ClassScores(data.classes[label], len(own), float(np.mean(own > threshold)), against))
    return sorted(found, key=lambda each: (-each.alarms, each.auroc or 0))


class Curve(NamedTuple):
    """Counts of images that score at least as high as each threshold, from the highest down; (U,) or (samples, U)."""

    thresholds: np.ndarray
    false: np.ndarray  # normal images
    true: np.ndarray  # anomalous ones

    @classmethod
    def of(cls, normal: np.ndarray, other: np.ndarray, weights: tuple[np.ndarray, np.ndarray] | None = None) -> "Curve":
        """`weights`: how often each normal and each anomalous image counts, (samples, images); once by default."""
        of_normal, of_other = weights or (np.ones((1, len(normal))), np.ones((1, len(other))))
        return _Places(normal, other).curve(of_normal, of_other)


def separation(normal: np.ndarray, other: np.ndarray, threshold: float, seed: int = 0) -> dict[str, Measured]:
    """Image AUROC, average precision, the best F1, and recall above `threshold`, each with its interval.

    The intervals are of bootstrap samples, in which normal and anomalous images are drawn apart; that of the recall, a
    plain share, is Wilson's.
    """
    places = _Places(normal, other)
    values = {name: float(value[0]) for name, value in _areas(Curve.of(normal, other)).items()}
    rng, step = np.random.default_rng(seed), max(1, _VALUES // (len(normal) + len(other)))
    samples: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for start in range(0, RESAMPLED, step):
        count = min(step, RESAMPLED - start)
        drawn = (resampled(rng, len(scores), count) for scores in (normal, other))
        for name, found in _areas(places.curve(*drawn)).items():
            samples[name].append(found)
    measured = {name: with_interval(value, np.concatenate(samples[name])) for name, value in values.items()}
    return measured | recall(other, threshold)


def recall(other: np.ndarray, threshold: float) -> dict[str, Measured]:
    """The share of anomalous images above the threshold."""
    hits = int((other > threshold).sum())
    return {"recall_at_threshold": Measured(hits / len(other), *wilson(hits, len(other)))}


def resampled(rng: np.random.Generator, count: int, samples: int) -> np.ndarray:
    """(samples, count): how often each of `count` images is drawn in each sample of as many."""
    rows = rng.integers(0, count, (samples, count)) + count * np.arange(samples)[:, None]
    return np.bincount(rows.ravel(), minlength=samples * count).reshape(samples, count)


def with_interval(value: float, samples: np.ndarray) -> Measured:
    low, high = np.quantile(samples, [0.025, 0.975])
    return Measured(value, float(low), float(high))


class _Places:
    """Where each image's score comes among all thresholds, the highest first."""

    def __init__(self, normal: np.ndarray, other: np.ndarray) -> None:
        scores = np.unique(np.concatenate([normal, other]))
        self.thresholds = scores[::-1]
        self._order = [np.argsort(-part, kind="stable") for part in (normal, other)]
        self._passed = [  # how many images score at least as high as each threshold
            len(part) - np.searchsorted(np.sort(part), self.thresholds, side="left") for part in (normal, other)
        ]

    def curve(self, of_normal: np.ndarray, of_other: np.ndarray) -> Curve:
        """By (samples, images) weights: how often each image counts."""
        false, true = (
            np.pad(np.cumsum(weights[:, order], axis=1), ((0, 0), (1, 0)))[:, passed]
            for weights, order, passed in zip((of_normal, of_other), self._order, self._passed, strict=True)
        )
        return Curve(self.thresholds, false, true)


def _areas(curve: Curve) -> dict[str, np.ndarray]:
    """(samples,) of each measure that needs no threshold."""
    false, true = (np.pad(counts, ((0, 0), (1, 0))) for counts in (curve.false, curve.true))
    normal, other = false[:, -1:], true[:, -1:]
    area = (np.diff(false) * (true[:, 1:] + true[:, :-1]) / 2).sum(axis=1) / (normal * other)[:, 0]
    called = np.maximum(false + true, 1)[:, 1:]
    precision = true[:, 1:] / called
    average = (np.diff(true) * precision).sum(axis=1) / other[:, 0]
    f1 = (2 * true[:, 1:] / (called + other)).max(axis=1)
    return {"image_auroc": area, "average_precision": average, "best_f1": f1}
