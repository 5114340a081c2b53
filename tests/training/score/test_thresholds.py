import numpy as np
import pytest

from app.bundle.scoring import threshold_at
from training.score.thresholds import best_rate

RNG = np.random.default_rng(0)


def test_the_best_f1_is_found() -> None:
    normal, anomalous = np.sort(RNG.normal(size=300)), RNG.normal(loc=2.5, size=60)
    rate = best_rate(normal, anomalous)
    threshold = threshold_at(normal, rate)

    def f1(at: float) -> float:
        hits = (anomalous > at).sum()
        return float(2 * hits / (hits + (normal > at).sum() + len(anomalous)))

    assert f1(threshold) == pytest.approx(max(f1(at) for at in normal[1:]))
    assert best_rate(normal, normal + 100) == pytest.approx(1 / 301), "all beyond: no false alarm is needed"
