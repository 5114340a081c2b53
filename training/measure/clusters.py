"""Clusters of an embedding, compared with the labels."""

import numpy as np

_RESTARTS, _ROUNDS = 3, 100


def k_means(points: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """(N, D) → (N,) cluster ids; the best of a few starts, each by k-means++."""
    rng = np.random.default_rng(seed)
    found = [_from(points, _spread_out(points, count, rng)) for _ in range(_RESTARTS)]
    return min(found, key=lambda each: each[0])[1]


def _spread_out(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    centres = [points[rng.integers(len(points))]]
    nearest = np.square(points - centres[0]).sum(axis=1, dtype=np.float64)
    while len(centres) < count:
        total = nearest.sum()
        chances = nearest / total if total > 0 else None  # all points equal a centre: choose uniformly
        centres.append(points[rng.choice(len(points), p=chances)])
        nearest = np.minimum(nearest, np.square(points - centres[-1]).sum(axis=1))
    return np.stack(centres)


def _from(points: np.ndarray, centres: np.ndarray) -> tuple[float, np.ndarray]:
    norms = np.square(points).sum(axis=1)
    cluster = np.full(len(points), -1)
    for _ in range(_ROUNDS):
        distances = norms[:, None] + np.square(centres).sum(axis=1) - 2 * points @ centres.T
        before, cluster = cluster, distances.argmin(axis=1)
        if np.array_equal(before, cluster):
            break
        for index in np.unique(cluster):
            centres[index] = points[cluster == index].mean(axis=0)
    return float(np.maximum(distances.min(axis=1), 0).sum()), cluster


def normalised_mutual_information(labels: np.ndarray, cluster: np.ndarray) -> float:
    """1 if each determines the other, 0 if they are independent; normalised by the mean of the two entropies."""
    _, a = np.unique(labels, return_inverse=True)
    _, b = np.unique(cluster, return_inverse=True)
    joint = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)) / len(labels)
    joint = joint.reshape(a.max() + 1, b.max() + 1)
    both = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
    return 1.0 if both == 0 else max(0.0, 2 * (both - _entropy(joint.ravel())) / both)


def _entropy(chances: np.ndarray) -> float:
    chances = chances[chances > 0]
    return float(-(chances * np.log(chances)).sum())
