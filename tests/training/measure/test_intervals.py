import math

import numpy as np
import pytest

from training.measure.intervals import false_alarms, student, wilson

RNG = np.random.default_rng(0)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = [student(rng.normal(size=3).tolist()) for _ in range(4000)]
    assert np.mean([low < 0 < high for _, low, high in draws]) == pytest.approx(0.95, abs=0.015)
    assert student([0.5]) == (0.5, -math.inf, math.inf)


def test_an_interval_of_a_share_is_wilsons() -> None:
    assert wilson(23, 25) == pytest.approx((0.750, 0.978), abs=1e-3)
    assert wilson(25, 25) == pytest.approx((0.867, 1.0), abs=1e-3)
    assert wilson(0, 4)[0] == 0


def test_the_interval_of_false_alarms_holds_what_chance_gives() -> None:
    """Thresholds from one sample, alarms counted in another, again and again."""
    low, high = false_alarms(0.05, 399, 500)
    inside = []
    for _ in range(3000):
        threshold = np.sort(RNG.normal(size=399))[-20]  # the k-th highest, k = 0.05 · 400
        inside.append(low <= np.mean(RNG.normal(size=500) > threshold) <= high)
    assert np.mean(inside) == pytest.approx(0.955, abs=0.02)
    assert false_alarms(0.01, 5000, 10_000) == pytest.approx((0.0068, 0.0137), abs=5e-4)
