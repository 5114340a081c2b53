"""Which images a person should look at: those most worth a label, and those whose label is most likely wrong."""

from dataclasses import dataclass

import numpy as np

from training.data.imageset import ImageSet
from training.data.material import Material
from training.data.storage import chunks
from training.measure.components import main_directions

_RANK = 128  # main directions of the features that the linear model reads
_MOST_FOR_DIRECTIONS = 5000
_RIDGE = 1.0  # of the mean variance of one image: a weak penalty
_FOLDS = 10  # each predicted by a model fitted on the others
_CANDIDATES = 20  # uncertain images per image asked for; the most different of them are chosen


@dataclass(frozen=True)
class Doubt:
    """An image, its label, the label that the model prefers, and by how much."""

    index: int
    given: int
    suggested: int
    margin: float


def worth_labelling(chances: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Indices of the images whose labels would teach most: uncertain, and different from each other.

    `chances` (N, labels), `points` (N, D). The most uncertain image comes first; each next one is the farthest from all
    before it, among the most uncertain.
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


def unlabelled(material: Material) -> ImageSet | None:
    """The images without a label, if there are any: of the source, or of a target that a recipe adapts to.

    A source often holds the target's images too: those with a label there are left out.
    """
    if not material.target.labelled:
        return material.target
    if material.source.labelled:
        return None
    labelled = set(material.target.hashes())
    kept = [index for index, key in enumerate(material.source.hashes()) if key not in labelled]
    return material.source.take(np.array(kept, np.int64)) if kept else None


def doubtful_labels(
    points: np.ndarray, labels: np.ndarray, classes: int, count: int, groups: np.ndarray | None = None
) -> list[Doubt]:
    """Labels that an out-of-fold linear model contradicts, the clearest first.

    `points` (N, D); `groups` (N,) ids: images of one id fall into one fold. Ridge regression on the main directions of
    `points`, which are found without labels. A class that the other folds lack cannot be predicted there: its labels in
    this fold are not doubted.
    """
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(len(points))[:_MOST_FOR_DIRECTIONS])
    mean = points[some].mean(axis=0)
    _, basis = main_directions((points[some] - mean).astype(np.float64), min(_RANK, len(some), points.shape[1]))
    projected = np.concatenate([(part - mean) @ basis for part in chunks(points)])
    z = np.concatenate([projected, np.ones((len(points), 1))], axis=1)  # (N, rank + 1)
    targets = np.eye(classes)[labels]
    _, group = np.unique(np.arange(len(points)) if groups is None else groups, return_inverse=True)
    fold = rng.permutation(group.max(initial=0) + 1)[group] % _FOLDS
    gram, moments, counts = z.T @ z, z.T @ targets, targets.sum(axis=0)
    margin = np.full(len(labels), -np.inf)
    suggested = np.zeros(len(labels), np.int64)
    for out in (np.flatnonzero(fold == each) for each in range(_FOLDS)):
        inside, known = gram - z[out].T @ z[out], counts - targets[out].sum(axis=0) > 0
        ridge = _RIDGE * np.trace(inside) / max(1, len(points) - len(out)) / len(inside)
        weight = np.linalg.solve(inside + ridge * np.eye(len(inside)), moments - z[out].T @ targets[out])
        predicted = np.where(known, z[out] @ weight, -np.inf)
        own = predicted[np.arange(len(out)), labels[out]]
        others = np.where(targets[out] > 0, -np.inf, predicted)
        suggested[out] = others.argmax(axis=1)
        margin[out] = np.where(known[labels[out]], others.max(axis=1) - own, -np.inf)
    return [
        Doubt(int(index), int(labels[index]), int(suggested[index]), float(margin[index]))
        for index in np.argsort(-margin, kind="stable")[:count]
        if margin[index] > 0
    ]
