import numpy as np
import pytest

from training.measure.probes import Probe

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 10)).astype(np.float32)


def drawn(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 3
    return (CENTRES[labels] + noise * RNG.normal(size=(count, 10))).astype(np.float32), labels.astype(np.int64)


def test_what_can_be_told_apart_is() -> None:
    probe = Probe(*drawn(600, 0.3), 3)
    assert probe.accuracy(*drawn(600, 0.3)) > 0.99


def test_noise_is_held_back_and_few_labels_get_the_usual_penalty() -> None:
    """Twenty labels in three hundred dimensions of noise: only a strong penalty does better than remembering."""
    points, labels = drawn(45, 1.0)
    noisy = np.concatenate([points, RNG.normal(size=(45, 300)).astype(np.float32)], axis=1)
    assert Probe(noisy, labels, 3).decay >= 0.8e-2  # the usual, for all where it was chosen on four fifths
    assert Probe(*drawn(6, 0.1), 3).decay == 1e-2


def test_a_feature_that_never_varies_is_no_trouble() -> None:
    points, labels = drawn(300, 0.3)
    points[:, 4] = 7
    assert Probe(points, labels, 3).accuracy(points, labels) == pytest.approx(1.0, abs=0.02)
