"""The probability from which on an image has a label, of labels of which it may have several. No torch."""

import numpy as np

from app.bundle.scoring import sigmoid
from training.score import temperature

PRIOR = 10.0  # images that have the label: with fewer than so many, the probabilities count for more than the labels
LOWEST, HIGHEST = 0.05, 0.95


def fit(rows: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """(N, K) calibrated probabilities of held-out images, and which labels each has → K thresholds of the best F1.

    The best F1 of a handful of images is chance. So each image counts as one with the label in part by its label, and
    in part by its probability, which is what it promises: n images with the label have n / (n + PRIOR) of the say.
    Without any, the threshold is the best if the probabilities are right, at most a half (Lipton et al. 2014).
    """
    return tuple(_best(*each) for each in zip(rows.T, truth.T, strict=True))


def fit_with_temperature(logits: np.ndarray, truth: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """(temperature, thresholds) from (N, K) logits of held-out images."""
    fitted = temperature.fit(logits, truth)
    return fitted, fit(sigmoid(logits, fitted), truth)


def _best(chances: np.ndarray, truth: np.ndarray) -> float:
    order = np.argsort(-chances, kind="stable")
    falling, count = chances[order], int(truth.sum())
    expected = (count * truth[order] + PRIOR * falling) / (count + PRIOR)
    f1 = 2 * np.cumsum(expected) / (np.arange(1, len(falling) + 1) + expected.sum())
    below = np.append(falling[1:], 0.0)  # the next lower probability
    f1[falling == below] = -1  # no threshold lies between the two
    best = int(f1.argmax())
    return float(np.clip((falling[best] + below[best]) / 2, LOWEST, HIGHEST))
