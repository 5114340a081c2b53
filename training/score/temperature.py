"""The temperature that a classifier's logits are divided by, from held-out images. No torch."""

from typing import NamedTuple

import numpy as np

from app.bundle.scoring import probabilities, sigmoid


class Prior(NamedTuple):
    """A gamma prior on 1/T with its mode at T = `centre`. Both numbers were chosen as docs/experiments.md says."""

    centre: float
    weight: float  # near the centre, as a log-normal on T of spread 1/√weight


TRAINED = Prior(1.0, 8.0)  # heads whose loss was the likelihood at T = 1
PROTOTYPES = Prior(3.0, 2.0)  # logits of score/prototypes.py, which no loss has scaled


def fit(logits: np.ndarray, labels: np.ndarray, prior: Prior = TRAINED) -> float:
    """(N, K) logits, (N,) labels → T = argmin Σ -ln p_y(x; T) + weight · (s - 1 - ln s), where s = centre / T.

    Of labels of which an image may have several, (N, K) bool, the sum is over all of them.

    The second term is the prior. It rises faster towards more confidence than towards less, and the sum over images
    outgrows it: of thousands it moves T by less than chance does. Without it a few images, all classified correctly,
    would drive T to 0. Both terms are convex in 1/T, so there is one minimum.
    """
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        t = float(np.exp(log_t))
        if labels.ndim == 2:  # each label is a decision of its own
            chances = sigmoid(np.where(labels, logits, -logits), t)
        else:
            chances = probabilities(logits, t)[rows, labels]
        log_s = np.log(prior.centre) - log_t
        return float(-np.log(chances + 1e-300).sum() + prior.weight * (np.exp(log_s) - 1 - log_s))

    low, high, ratio = np.log(prior.centre / 20), np.log(prior.centre * 20), (np.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))
