"""Intervals of 95 %: of a mean over seeds, a share of images, left-out accuracy, rates of conformal tests."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Student's t at 97.5 %, by degrees of freedom; the last serves for more.
_T = (
    *(math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Interval(NamedTuple):
    """A mean over seeds with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def student(values: Sequence[float]) -> Interval:
    """Student's t. The interval of a single value is infinite."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    t = _T[min(count - 1, len(_T) - 1)]
    half = t * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def wilson(hits: float, trials: float, z: float = 1.959964) -> tuple[float, float]:
    """Confidence interval of a share (Wilson 1927), by default of 95 %; the trials must be independent."""
    share, scale = hits / trials, 1 + z**2 / trials
    middle = (share + z**2 / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def at_least(hits: int, trials: int) -> float:
    """A lower bound of 95 % on the accuracy on new images, from a model's own images, each left out in turn.

    Such trials are not independent, as each image helps to classify the others: Wilson's interval of 95 % covers the
    accuracy in 72 to 91 % of tasks. Most of its misses are above it, since the left-out image is classified by fewer
    images than the model has. So this is its lower end alone, at a nominal 99 %; `make methods ONLY=left-out` measures
    how often it holds.
    """
    return wilson(hits, trials, z=2.326348)[0]


def across_folds(hits: float, trials: float) -> tuple[float, float]:
    """An interval of 95 % for the accuracy on new images, from that of each image by folds that do not hold it.

    Folds share their training images, so the trials depend on each other: Wilson's interval at a nominal 99 %, as in
    `at_least`, and outwards to whole per cents: it is for what a few hundred new images will show. How often it holds
    is measured in docs/getting-started.md.
    """
    low, high = wilson(hits, trials, z=2.575829)
    return math.floor(100 * low + 1e-9) / 100, math.ceil(100 * high - 1e-9) / 100


def across_folds_resampled(value: float, samples: np.ndarray, images: int) -> tuple[float, float]:
    """As `across_folds`, for a measure in 0…1 that is not a share of images; `samples` are its values on images drawn
    again (bootstrap).

    Wilson's of as many trials as would spread as the samples do. Where these do not spread, as when all is right, each
    image is one trial.
    """
    spread = float(np.var(samples))
    trials = value * (1 - value) / spread if spread > 0 else float(images)
    return across_folds(value * trials, trials)


def false_alarms(rate: float, calibrated_on: int, tested: int, outside: float = 0.05) -> tuple[float, float]:
    """Where all but `outside` of measured false-alarm rates fall by chance, in calibration and test sample.

    The threshold is the k-th highest of n calibration scores, so the alarms among m fresh normals are beta-binomial
    with parameters k and n + 1 - k.
    """
    k, n, m = int(np.floor(rate * (calibrated_on + 1) + 1e-9)), calibrated_on, tested

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    constant = math.lgamma(m + 1) - log_beta(k, n + 1 - k)
    total, low, high = 0.0, 0, m
    for alarms in range(m + 1):
        ways = constant - math.lgamma(alarms + 1) - math.lgamma(m - alarms + 1)
        total += math.exp(ways + log_beta(k + alarms, n + 1 - k + m - alarms))
        if total < outside / 2:
            low = alarms + 1
        if total >= 1 - outside / 2:
            high = alarms
            break
    return low / m, high / m


def coverage(rate: float, calibrated_on: int, tested: int, outside: float = 0.05) -> tuple[float, float]:
    """The same for the share of images whose prediction set holds the truth: they miss it as alarms are raised."""
    low, high = false_alarms(1 - rate, calibrated_on, tested, outside)
    return 1 - high, 1 - low
