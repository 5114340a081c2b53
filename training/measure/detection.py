"""How well an anomaly score tells normal images from others."""

from dataclasses import dataclass

import numpy as np

from training.data.imageset import ImageSet


@dataclass(frozen=True)
class ClassScores:
    """How the anomaly score takes the normal test images of one class."""

    name: str
    images: int
    alarms: float  # share that is called anomalous
    auroc: float | None  # against the source's images, where the source is another domain


def auroc(normal: np.ndarray, strange: np.ndarray) -> float:
    """How often a strange image scores higher than a normal one; ties count half."""
    scores = np.concatenate([normal, strange])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = ranks[len(normal) :].sum() - len(strange) * (len(strange) + 1) / 2
    return float(above / (len(normal) * len(strange)))


def by_class(threshold: float, data: ImageSet, scores: np.ndarray, strange: np.ndarray | None) -> list[ClassScores]:
    """`scores` are those of the data, which has labels; `strange` those of images that are anomalies."""
    found = []
    for label in np.unique(data.labels):
        own = scores[data.labels == label]
        against = None if strange is None else auroc(own, strange)
        found.append(ClassScores(data.classes[label], len(own), float(np.mean(own > threshold)), against))
    return sorted(found, key=lambda each: (-each.alarms, each.auroc or 0))
