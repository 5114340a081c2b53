"""The temperature that a classifier's logits are divided by, from held-out images. No torch."""

import numpy as np

from app.bundle.scoring import probabilities


def fit(logits: np.ndarray, labels: np.ndarray) -> float:
    """What the logits must be divided by for the least negative log-likelihood; found by golden section on its log."""

    def loss(log_t: float) -> float:
        chances = probabilities(logits, float(np.exp(log_t)))
        return float(-np.log(chances[np.arange(len(labels)), labels] + 1e-300).mean())

    low, high, ratio = np.log(0.05), np.log(20.0), (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def by_accuracy(logits: np.ndarray, right: int) -> float:
    """At which the mean confidence in images that were left out is (right + 1) / (images + 2).

    So much an accuracy can be believed in after so few trials (Laplace's rule); by likelihood alone, all of them right
    would make it certain of everything.
    """
    wanted = (right + 1) / (len(logits) + 2)
    low, high = np.log(1e-3), np.log(1e3)  # as a manifest allows
    while high - low > 1e-4:
        middle = (low + high) / 2
        confidence = probabilities(logits, float(np.exp(middle))).max(axis=1).mean()
        low, high = (middle, high) if confidence > wanted else (low, middle)
    return float(np.exp((low + high) / 2))
