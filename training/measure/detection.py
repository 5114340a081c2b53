"""How well an anomaly score separates normal images from others."""

from dataclasses import dataclass

import numpy as np

from training.data.imageset import ImageSet


@dataclass(frozen=True)
class ClassScores:
    """The anomaly score on the normal test images of one class."""

    name: str
    images: int
    alarms: float  # share of them that is called anomalous
    auroc: float | None  # against the source's images, where the source is another domain


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
