"""Raw outputs → typed results. Pure numpy: training calibrates with the functions that serving scores with."""

from dataclasses import dataclass

import numpy as np

from app.bundle.manifest import Anomaly, Scale


@dataclass(frozen=True, slots=True)
class Classification:
    """`ranked` is (label, probability), the likeliest first."""

    index: int
    ranked: list[tuple[str, float]]

    @property
    def label(self) -> str:
        return self.ranked[0][0]

    @property
    def confidence(self) -> float:
        return self.ranked[0][1]


@dataclass(frozen=True, slots=True)
class AnomalyScore:
    score: float
    threshold: float
    anomalous: bool
    p_value: float
    reconstruction_error: float
    latent_distance: float


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K) logits → (N, K) float64 rows that sum to one."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    powers = np.exp(scaled)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def classify(logits: np.ndarray, labels: tuple[str, ...], temperature: float) -> list[Classification]:
    rows = probabilities(logits, temperature)
    orders = np.argsort(-rows, axis=1, kind="stable")
    return [
        Classification(int(order[0]), [(labels[i], float(row[i])) for i in order])
        for row, order in zip(rows, orders, strict=True)
    ]


def reconstruction_errors(images: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 and float32 in 0…1 → (N,) mean squared error, in units of the full scale."""
    difference = reconstructions - images.astype(np.float32) / 255.0
    return np.asarray(np.mean(np.square(difference), axis=(1, 2, 3), dtype=np.float64))


def mahalanobis(points: np.ndarray, mean: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """(N, D) → (N,) distances; one matrix product."""
    whitened = (points - mean) @ whitening
    return np.asarray(np.sqrt(np.sum(np.square(whitened), axis=1, dtype=np.float64)))


def combine(errors: np.ndarray, distances: np.ndarray, reconstruction: Scale, latent: Scale) -> np.ndarray:
    """(N,) scores: both parts in standard deviations of the training normals, added."""
    return (errors - reconstruction.mean) / reconstruction.std + (distances - latent.mean) / latent.std


def p_values(scores: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """Conformal: the share of held-out normals, the image itself counted among them, that score as high.

    `calibration` is sorted, rising.
    """
    as_high = len(calibration) - np.searchsorted(calibration, scores, side="left")
    return np.asarray((1 + as_high) / (len(calibration) + 1))


def threshold_at(calibration: np.ndarray, false_alarm_rate: float) -> float:
    """The score above which, and only above which, the p-value is at most the rate; `calibration` is sorted."""
    allowed_above = int(np.floor(false_alarm_rate * (len(calibration) + 1) + 1e-9)) - 1
    if allowed_above < 0:
        raise ValueError(
            f"{len(calibration)} held-out normals cannot hold a false-alarm rate of {false_alarm_rate}: "
            f"at least {int(np.ceil(1 / false_alarm_rate)) - 1} are needed"
        )
    return float(calibration[len(calibration) - 1 - allowed_above])


class AnomalyScorer:
    """The manifest's definition with its numbers: `mean`, `whitening` and `calibration_scores` of the reference."""

    def __init__(self, anomaly: Anomaly, reference: dict[str, np.ndarray], size: int) -> None:
        """`size` is that of the tensor that the score takes. A ValueError names the array that does not fit."""
        self.takes = anomaly.takes
        self._anomaly = anomaly
        shapes = {"mean": (size,), "whitening": (size, size), "calibration_scores": (anomaly.calibrated_on,)}
        for name, shape in shapes.items():
            array = reference.get(name)
            if array is None or array.dtype.kind != "f" or array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"array {name}: finite numbers of shape {shape} are expected")
        self._mean, self._whitening = reference["mean"], reference["whitening"]
        self._calibration = reference["calibration_scores"]
        if (np.diff(self._calibration) < 0).any():
            raise ValueError("array calibration_scores: not in rising order")

    def score(self, images: np.ndarray, points: np.ndarray, reconstructions: np.ndarray) -> list[AnomalyScore]:
        a = self._anomaly
        errors = reconstruction_errors(images, reconstructions)
        distances = mahalanobis(points, self._mean, self._whitening)
        scores = combine(errors, distances, a.reconstruction, a.latent)
        chances = p_values(scores, self._calibration)
        return [
            AnomalyScore(float(s), a.threshold, bool(p <= a.false_alarm_rate), float(p), float(e), float(d))
            for s, p, e, d in zip(scores, chances, errors, distances, strict=True)
        ]
