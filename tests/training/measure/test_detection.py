import numpy as np
import pytest

from training.data.imageset import ImageSet
from training.measure.detection import ClassScores, auroc, by_class


def test_auroc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    normal, unusual = rng.integers(0, 5, 40).astype(float), rng.integers(2, 8, 30).astype(float)
    pairs = [(s > n) + 0.5 * (s == n) for n in normal for s in unusual]
    assert auroc(normal, unusual) == pytest.approx(np.mean(pairs))


def test_every_class_has_its_own_false_alarms_the_hardest_first() -> None:
    labels = np.repeat([0, 1, 3], [4, 2, 2])
    data = ImageSet(np.zeros((8, 1, 1, 1), np.uint8), labels, ("bag", "coat", "dress", "shirt"))
    scores, unusual = np.array([0.0, 1.0, 2.0, 5.0, 0.0, 1.0, 3.5, 4.5]), np.array([4.0, 6.0])
    assert by_class(3.0, data, scores, unusual) == [
        ClassScores("shirt", 2, 1.0, 0.75),
        ClassScores("bag", 4, 0.25, 0.875),
        ClassScores("coat", 2, 0.0, 1.0),
    ]
    assert [each.auroc for each in by_class(3.0, data, scores, None)] == [None] * 3
