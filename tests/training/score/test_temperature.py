import numpy as np
import pytest

from app.bundle.scoring import probabilities
from training.score.temperature import by_accuracy, fit

RNG = np.random.default_rng(0)


def test_the_temperature_that_made_the_labels_is_found() -> None:
    logits = RNG.normal(size=(20_000, 5)).astype(np.float32) * 3
    for true in (0.5, 1.0, 2.5):
        chances = probabilities(logits, true)
        labels = (chances.cumsum(axis=1) < RNG.random((len(logits), 1))).sum(axis=1)
        assert fit(logits, labels) == pytest.approx(true, rel=0.05)


def test_nobody_is_surer_than_the_images_allow() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=40)
    apart = np.eye(3)[labels] * 50 + rng.normal(size=(40, 3))
    for logits in (apart, rng.normal(size=(40, 3))):
        right = int((logits.argmax(axis=1) == labels).sum())
        confidence = probabilities(logits, by_accuracy(logits, right)).max(axis=1).mean()
        assert confidence == pytest.approx(max((right + 1) / 42, 1 / 3), abs=2e-3)
