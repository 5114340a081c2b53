import numpy as np
import pytest

from app.bundle.scoring import AnomalyScorer, probabilities
from training.calibrate import anomaly, temperature
from training.errors import TrainingError

RNG = np.random.default_rng(0)


def test_the_temperature_that_made_the_labels_is_found() -> None:
    logits = RNG.normal(size=(20_000, 5)).astype(np.float32) * 3
    for true in (0.5, 1.0, 2.5):
        chances = probabilities(logits, true)
        labels = (chances.cumsum(axis=1) < RNG.random((len(logits), 1))).sum(axis=1)
        assert temperature(logits, labels) == pytest.approx(true, rel=0.05)


def normals(count: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images = RNG.integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    points = (RNG.normal(size=(count, 6)) * [1, 2, 3, 4, 5, 0] + shift).astype(np.float32)
    noise = RNG.normal(scale=0.1 + shift / 10, size=images.shape)
    return images, points, (images / 255 + noise).astype(np.float32)


def test_false_alarms_on_fresh_normals_are_at_the_stated_rate_and_strangers_are_seen() -> None:
    """One direction of the codes is flat, as dead units make it."""
    calibration, reference = anomaly(normals(4000), normals(4000), "embedding", 0.02)
    scorer = AnomalyScorer(calibration, reference)
    fresh = scorer.score(*normals(20_000))
    assert 0.013 < np.mean([score.anomalous for score in fresh]) < 0.027
    assert np.mean([score.anomalous for score in scorer.score(*normals(500, shift=5.0))]) > 0.99
    assert calibration.calibrated_on == 4000
    assert calibration.quantiles["0.5"] < calibration.quantiles["0.99"]
    assert all(score.anomalous == (score.score > calibration.threshold) for score in fresh)


def test_what_cannot_be_calibrated_says_why() -> None:
    with pytest.raises(TrainingError, match="at least 999"):
        anomaly(normals(100), normals(100), "embedding", 0.001)
    images, points, reconstructions = normals(100)
    with pytest.raises(TrainingError, match="no variance"):
        anomaly((images, points * 0, reconstructions), normals(200), "embedding", 0.05)
    perfect = (images.astype(np.float32) / np.float32(255)).astype(np.float32)
    with pytest.raises(TrainingError, match="score alike"):
        anomaly((images, points, perfect), normals(200), "embedding", 0.05)
