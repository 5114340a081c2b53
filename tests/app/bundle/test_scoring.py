import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle.manifest import Scale
from app.bundle.scoring import (
    classify,
    combine,
    mahalanobis,
    p_values,
    probabilities,
    reconstruction_errors,
    threshold_at,
)


def test_probabilities_sum_to_one_and_large_logits_do_not_overflow() -> None:
    rows = probabilities(np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], np.float32), 1.0)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(rows, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-12)


def test_a_temperature_above_one_flattens() -> None:
    logits = np.array([[2.0, 0.0]], np.float32)
    np.testing.assert_allclose(probabilities(logits, 2.0)[0, 0], 1 / (1 + np.exp(-1)))


def test_the_ranking_is_likeliest_first_and_keeps_the_labels_index() -> None:
    [found] = classify(np.array([[0.0, 3.0, 1.0]], np.float32), ("a", "b", "c"), 1.0)
    assert (found.index, found.label, [name for name, _ in found.ranked]) == (1, "b", ["b", "c", "a"])
    assert found.confidence == found.ranked[0][1]


def test_reconstruction_error_is_in_units_of_the_full_scale() -> None:
    images = np.full((1, 2, 2, 1), 255, np.uint8)
    np.testing.assert_allclose(reconstruction_errors(images, np.full((1, 2, 2, 1), 0.5, np.float32)), [0.25])


def test_whitened_distance_is_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3))
    mean, covariance = points.mean(0), np.cov(points, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    expected = [np.sqrt((p - mean) @ np.linalg.inv(covariance) @ (p - mean)) for p in points[:20]]
    np.testing.assert_allclose(mahalanobis(points[:20], mean, vectors / np.sqrt(values)), expected)


def test_both_parts_count_in_their_own_spread() -> None:
    score = combine(np.array([0.3]), np.array([9.0]), Scale(mean=0.1, std=0.1), Scale(mean=5.0, std=2.0))
    np.testing.assert_allclose(score, [4.0])


@given(
    calibration=st.lists(st.integers(0, 50), min_size=20, max_size=300),
    scores=st.lists(st.integers(-5, 60), min_size=1, max_size=50),
    rate=st.sampled_from([0.05, 0.1, 0.25, 0.5]),
)
def test_above_the_threshold_and_only_there_p_is_at_most_the_rate(
    calibration: list[int], scores: list[int], rate: float
) -> None:
    """Ties included: what `anomalous` says by the p-value, the threshold says by the score."""
    held_out = np.sort(np.array(calibration, np.float64))
    threshold = threshold_at(held_out, rate)
    for score, p in zip(scores, p_values(np.array(scores, np.float64), held_out), strict=True):
        assert (p <= rate) == (score > threshold)


def test_false_alarms_come_at_the_stated_rate() -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(50):
        held_out, fresh = np.sort(rng.normal(size=999)), rng.normal(size=2000)
        alarms.append(np.mean(p_values(fresh, held_out) <= 0.05))
    assert 0.045 < np.mean(alarms) < 0.055


def test_too_few_normals_for_the_rate_are_refused() -> None:
    assert threshold_at(np.arange(99.0), 0.01) == 98.0
    with pytest.raises(ValueError, match="at least 99"):
        threshold_at(np.arange(98.0), 0.01)
