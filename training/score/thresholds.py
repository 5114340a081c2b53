"""Finding an anomaly score's threshold: at a false-alarm rate, or at the best F1. No torch."""

import numpy as np

from app.bundle.scoring import threshold_at
from training.errors import TrainingError


def at_rate(normal: np.ndarray, false_alarm_rate: float) -> float:
    """`normal` are sorted calibration scores, rising."""
    try:
        return threshold_at(normal, false_alarm_rate)
    except ValueError as error:
        raise TrainingError(f"{error}; hold out more images, or allow more false alarms") from None


def best_rate(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """The false-alarm rate whose threshold has the best F1; `normal` are sorted calibration scores, rising.

    A rate of (a + 1) / (n + 1) puts the threshold where a of the n normals lie above it.
    """
    allowed = np.arange(len(normal) - 1)
    thresholds = normal[::-1][allowed]
    false = len(normal) - np.searchsorted(normal, thresholds, side="right")
    hits = len(anomalous) - np.searchsorted(np.sort(anomalous), thresholds, side="right")
    f1 = 2 * hits / (hits + false + len(anomalous))
    return float((allowed[f1.argmax()] + 1) / (len(normal) + 1))
