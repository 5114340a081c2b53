"""Which images a person should look at: those most worth a label, and those whose label is most likely wrong."""

from dataclasses import dataclass

import numpy as np

from training.data.imageset import ImageSet
from training.data.material import Material
from training.data.storage import chunks
from training.measure.clusters import k_means
from training.measure.components import main_directions

_RANK = 128  # main directions of the features that the linear model reads
_MOST_FOR_DIRECTIONS = 5000
_RIDGE = 1.0  # of the mean variance of one image: a weak penalty
_FOLDS = 10  # each predicted by a model fitted on the others
_CANDIDATES = 5  # uncertain images per image asked for, of which the most different are chosen
_MOST_CLUSTERS = 500  # of k-means, whose time grows with them
_NEIGHBOURS = 20  # whose mean distance says how typical an image is
_CHUNK = 1024


@dataclass(frozen=True)
class Doubt:
    """An image, its label, the label that the model prefers, and by how much."""

    index: int
    given: int
    suggested: int
    margin: float


def typical(points: np.ndarray, labelled: np.ndarray, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the images that stand for most of those that no labelled one stands for, how many each stands for).

    TypiClust (Hacohen et al. 2022): k-means in as many clusters as there will be labels; of the largest ones without a
    label the most typical image, whose nearest neighbours within the cluster are nearest. `points` (N, D), `labelled`
    (N,) bool.
    """
    count = min(count, int((~labelled).sum()))
    cluster = k_means(points, max(1, min(int(labelled.sum()) + count, _MOST_CLUSTERS, len(points))), seed)
    sizes, covered = np.bincount(cluster), np.bincount(cluster, weights=labelled)
    # Of each cluster the images without a label, the most typical first.
    waiting = [_by_typicality(points, np.flatnonzero((cluster == each) & ~labelled)) for each in range(len(sizes))]
    chosen: list[int] = []
    stands_for: list[int] = []
    while len(chosen) < count:
        left = [each for each in range(len(sizes)) if waiting[each]]
        best = min(left, key=lambda each: (covered[each], -sizes[each]))
        chosen.append(waiting[best].pop(0))
        stands_for.append(int(sizes[best]))
        covered[best] += 1
    return np.array(chosen, np.int64), np.array(stands_for, np.int64)


def _by_typicality(points: np.ndarray, members: np.ndarray) -> list[int]:
    if len(members) < 3:
        return list(members)
    own = points[members].astype(np.float64)
    norms = np.square(own).sum(axis=1)
    spread = np.full(len(own), np.inf)  # mean distance to the nearest neighbours
    near = min(_NEIGHBOURS, len(own) - 1)
    for start in range(0, len(own), _CHUNK):
        part = own[start : start + _CHUNK]
        distances = np.sqrt(np.maximum(norms + norms[start : start + _CHUNK, None] - 2 * part @ own.T, 0))
        distances[np.arange(len(part)), np.arange(start, start + len(part))] = np.inf
        spread[start : start + _CHUNK] = np.partition(distances, near - 1, axis=1)[:, :near].mean(axis=1)
    return list(members[np.argsort(spread, kind="stable")])


def worth_labelling(chances: np.ndarray, points: np.ndarray, count: int) -> np.ndarray:
    """Indices of the images whose labels would teach most: uncertain, and different from each other.

    `chances` (N, labels), `points` (N, D). Those with the least margin between the two likeliest labels are clustered;
    of each cluster the most uncertain is chosen (as Citovsky et al. 2021). The most uncertain of all comes first.
    """
    ordered = np.sort(chances, axis=1)
    margin = ordered[:, -1] - (ordered[:, -2] if chances.shape[1] > 1 else 0)
    candidates = np.argsort(margin, kind="stable")[: count * _CANDIDATES]
    if len(candidates) <= count:
        return np.asarray(candidates, np.int64)
    cluster = k_means(points[candidates].astype(np.float32), count)
    _, first = np.unique(cluster, return_index=True)  # candidates are in order of their margin
    others = np.setdiff1d(np.arange(len(candidates)), first)[: count - len(first)]  # clusters of copies are fewer
    return np.asarray(candidates[np.sort(np.concatenate([first, others]))], np.int64)


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


def on_main_directions(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, D) → (N, rank), centred; the directions are those of a sample."""
    some = np.sort(rng.permutation(len(points))[:_MOST_FOR_DIRECTIONS])
    mean = points[some].mean(axis=0)
    _, basis = main_directions((points[some] - mean).astype(np.float64), min(_RANK, len(some), points.shape[1]))
    return np.concatenate([(part - mean) @ basis for part in chunks(points)])


def doubtful_labels(
    points: np.ndarray, labels: np.ndarray, classes: int, count: int, groups: np.ndarray | None = None
) -> list[Doubt]:
    """Labels that an out-of-fold linear model contradicts, the clearest first.

    `points` (N, D); `groups` (N,) ids: images of one id fall into one fold. Ridge regression on the main directions of
    `points`, which are found without labels. A class that the other folds lack cannot be predicted there: its labels in
    this fold are not doubted.
    """
    rng = np.random.default_rng(0)
    z = np.concatenate([on_main_directions(points, rng), np.ones((len(points), 1))], axis=1)  # (N, rank + 1)
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
