"""Fitting the plane on which a bundle shows where codes lie."""

import numpy as np

from app.bundle.latent_map import LatentMap
from training.measure.components import main_directions

_SHOWN = 500


def fit(embedding: np.ndarray, labels: np.ndarray) -> LatentMap:
    """(N, D) codes of held-out images, and their (N,) labels or none.

    With labels the plane is that in which the classes' means lie furthest apart, since it is looked at to tell classes;
    where they do not fill it, and without labels, it is that of the widest spread.
    """
    mean = embedding.mean(axis=0)
    centred = embedding - mean
    directions = np.zeros((embedding.shape[1], 0), np.float32)
    if len(labels):
        means = np.stack([centred[labels == label].mean(axis=0) for label in np.unique(labels)])
        spread, found = main_directions(means - means.mean(axis=0), min(2, *means.shape))
        directions = found[:, spread > 1e-9 * max(float(spread.max()), 1e-30)]
    if directions.shape[1] < 2:
        rest = centred - centred @ directions @ directions.T
        _, found = main_directions(rest, min(2 - directions.shape[1], *rest.shape))
        directions = np.concatenate([directions, found], axis=1)
    directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))  # a code of a single number
    some = np.random.default_rng(0).permutation(len(embedding))[:_SHOWN]
    return LatentMap(
        mean.astype(np.float32),
        directions.astype(np.float32),
        (centred[some] @ directions).astype(np.float16),
        labels[some].astype(np.int64) if len(labels) else None,
    )
