"""The temperature that a classifier's logits are divided by, from held-out images. No torch."""

import numpy as np

from app.bundle.scoring import probabilities

PRIOR = 8.0  # how firmly few images hold to T = 1, chosen on simulated logits: docs/transfer.md


def fit(logits: np.ndarray, labels: np.ndarray, prior: float = PRIOR) -> float:
    """(N, K) logits, (N,) labels → T = argmin Σ -ln p_y(x; T) + prior · (1/T - 1 - ln 1/T).

    The second term is a gamma prior on 1/T with its mode at 1: at 1 it weighs as much as a log-normal of spread
    1/√prior, towards more confidence it rises faster. The sum over images outgrows it: of thousands it moves T by less
    than chance does. Without it a few images, all classified correctly, would drive T to 0. Both terms are convex in
    1/T, so there is one minimum.
    """
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        chances = probabilities(logits, float(np.exp(log_t)))[rows, labels]
        return float(-np.log(chances + 1e-300).sum()) + prior * float(np.exp(-log_t) - 1 + log_t)

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def by_accuracy(logits: np.ndarray, right: int) -> float:
    """At which the mean confidence in images that were left out is (right + 1) / (images + 2).

    For prototypes, whose logits have no scale of their own that T = 1 could stand for: the prior is on the accuracy,
    two images of which one is classified correctly (Laplace's rule), and fades likewise.
    """
    wanted = (right + 1) / (len(logits) + 2)
    low, high = np.log(1e-3), np.log(1e3)  # as a manifest allows
    while high - low > 1e-4:
        middle = (low + high) / 2
        confidence = probabilities(logits, float(np.exp(middle))).max(axis=1).mean()
        low, high = (middle, high) if confidence > wanted else (low, middle)
    return float(np.exp((low + high) / 2))
