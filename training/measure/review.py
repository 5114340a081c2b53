"""Which images a person should look at: those most worth a label, and those whose label is most likely wrong."""

from dataclasses import dataclass

import numpy as np

from training.data.storage import chunks
from training.measure.components import main_directions

_RANK = 128  # directions of the features that the second opinion is formed from
_MOST_FOR_DIRECTIONS = 5000
_RIDGE = 1.0  # of the mean variance, per image: a mild pull towards no opinion
_CANDIDATES = 20  # times as many uncertain images as are asked for, among which variety is sought


@dataclass(frozen=True)
class Doubt:
    """An image, the labels that were compared, and by how much the second is preferred."""

    index: int
    given: int
    suggested: int
    margin: float


def worth_labelling(chances: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Indices of the images whose labels would teach most: uncertain ones, and among these unlike each other.

    `chances` (N, labels), `points` (N, D). The most uncertain comes first; each next one is the farthest from those
    before it among the uncertain.
    """
    entropy = -(chances * np.log(chances + 1e-12)).sum(axis=1)
    candidates = np.argsort(-entropy, kind="stable")[: count * _CANDIDATES]
    points = points[candidates].astype(np.float32)
    chosen = [0] if len(candidates) else []
    while 0 < len(chosen) < min(count, len(candidates)):
        if len(chosen) == 1:
            nearest = np.full(len(points), np.inf)
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return np.asarray(candidates[chosen], np.int64)


def doubtful_labels(points: np.ndarray, labels: np.ndarray, classes: int, count: int) -> list[Doubt]:
    """Labels that a linear model contradicts which was fitted on all images but the one in question.

    Ridge regression on the main directions of `points` (N, D); what it would say of an image, had it not been fitted
    on it, follows from one fit: (fit - leverage · target) / (1 - leverage).
    """
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(len(points))[:_MOST_FOR_DIRECTIONS])
    mean = points[some].mean(axis=0)
    _, basis = main_directions((points[some] - mean).astype(np.float64), min(_RANK, len(some), points.shape[1]))
    projected = np.concatenate([(part - mean) @ basis for part in chunks(points)])
    z = np.concatenate([projected, np.ones((len(points), 1))], axis=1)  # (N, rank + 1)
    targets = np.eye(classes)[labels]
    gram = z.T @ z
    inverse = np.linalg.inv(gram + _RIDGE * np.trace(gram) / len(points) / len(gram) * np.eye(len(gram)))
    fitted = z @ (inverse @ (z.T @ targets))
    leverage = np.minimum((z @ inverse * z).sum(axis=1), 1 - 1e-6)[:, None]
    without = (fitted - leverage * targets) / (1 - leverage)
    own = without[np.arange(len(labels)), labels]
    others = np.where(targets > 0, -np.inf, without)
    margin = others.max(axis=1) - own
    return [
        Doubt(int(index), int(labels[index]), int(others[index].argmax()), float(margin[index]))
        for index in np.argsort(-margin, kind="stable")[:count]
        if margin[index] > 0
    ]
