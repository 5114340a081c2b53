import math

import numpy as np
import pytest

from training.measure.intervals import (
    across_folds,
    across_folds_resampled,
    at_least,
    false_alarms,
    student,
    wilson,
)
from training.score.prototypes import fit, left_out

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


def test_the_bound_of_what_was_left_out_holds_where_shots_judge_each_other() -> None:
    """Prototypes of five shots a class, each left out in turn, against many new points of the same classes.

    The two-sided interval of 95 %, which was stated before, holds too rarely.
    """
    below, inside = [], []
    for _ in range(150):
        means = RNG.normal(size=(5, 8)) * 0.8
        known, requested = np.repeat(np.arange(5), 5), np.repeat(np.arange(5), 100)
        shots, queries = (means[labels] + RNG.normal(size=(len(labels), 8)) for labels in (known, requested))
        hits = int((left_out(shots, known, "mahalanobis").argmax(axis=1) == known).sum())
        true = (fit(shots, known, "mahalanobis").logits(queries).argmax(axis=1) == requested).mean()
        low, high = wilson(hits, len(known))
        below.append(at_least(hits, len(known)) <= true)
        inside.append(low <= true <= high)
    assert np.mean(below) >= 0.95
    assert np.mean(inside) < 0.93


def test_the_interval_of_false_alarms_holds_what_chance_gives() -> None:
    """Thresholds from one sample, alarms counted in another, again and again."""
    low, high = false_alarms(0.05, 399, 500)
    inside = []
    for _ in range(3000):
        threshold = np.sort(RNG.normal(size=399))[-20]  # the k-th highest, k = 0.05 · 400
        inside.append(low <= np.mean(RNG.normal(size=500) > threshold) <= high)
    assert np.mean(inside) == pytest.approx(0.955, abs=0.02)
    assert false_alarms(0.01, 5000, 10_000) == pytest.approx((0.0068, 0.0137), abs=5e-4)


def test_the_interval_of_folds_is_wider_than_that_of_independent_trials_and_in_whole_per_cents() -> None:
    low, high = across_folds(45, 60)
    assert (low, high) == (0.58, 0.87)
    independent = wilson(45, 60)
    assert low < independent[0]
    assert high > independent[1]
    assert across_folds(60, 60)[1] == 1
    assert across_folds(59, 60)[1] == 1, "none of a hundred new ones may be wrong"
    assert across_folds(0, 60)[0] == 0


def test_the_interval_of_what_was_drawn_again_is_that_of_a_share_if_it_is_one() -> None:
    rng = np.random.default_rng(0)
    right = np.arange(200) < 160
    samples = right[rng.integers(0, 200, (4000, 200))].mean(axis=1)
    assert across_folds_resampled(0.8, samples, 200) == pytest.approx(across_folds(160, 200), abs=0.011)
    assert across_folds_resampled(1.0, np.ones(100), 60) == across_folds(60, 60), "nothing spreads, and little is known"
