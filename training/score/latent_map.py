"""Fitting the plane on which a bundle plots its codes. No torch."""

import numpy as np

from app.bundle.latent_map import LatentMap
from training.measure.components import main_directions

_SHOWN = 500


def fit(embedding: np.ndarray, labels: np.ndarray) -> LatentMap:
    """(N, D) codes of held-out images and their (N,) labels, or (0,) without labels.

    With labels, the plane in which the class means lie furthest apart, since people look at it to see classes. Where
    the means do not span a plane, and without labels, the remaining axes are those of the largest variance.
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
    directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))  # a code of one number has one axis
    some = np.random.default_rng(0).permutation(len(embedding))[:_SHOWN]
    return LatentMap(
        mean.astype(np.float32),
        directions.astype(np.float32),
        (centred[some] @ directions).astype(np.float16),
        labels[some].astype(np.int64) if len(labels) else None,
    )
