import numpy as np
import pytest

from training.measure.clusters import k_means, normalised_mutual_information

RNG = np.random.default_rng(0)


def test_clusters_that_are_apart_are_found_whatever_they_are_called() -> None:
    labels = RNG.integers(0, 4, 400)
    points = RNG.normal(size=(4, 8))[labels] * 10 + RNG.normal(size=(400, 8))
    assert normalised_mutual_information(labels, k_means(points, 4)) == pytest.approx(1.0)


def test_information_is_none_of_noise_and_all_of_a_renaming() -> None:
    labels = RNG.integers(0, 5, 5000)
    assert normalised_mutual_information(labels, (labels + 2) % 5) == pytest.approx(1.0)
    assert normalised_mutual_information(labels, RNG.integers(0, 5, 5000)) < 0.01
    halves = normalised_mutual_information(labels, labels // 2)
    assert 0.5 < halves < 1
    assert normalised_mutual_information(np.zeros(5), np.zeros(5)) == 1.0
    assert normalised_mutual_information(labels, np.zeros(5000)) == 0.0


def test_points_that_are_all_alike_do_not_break_it() -> None:
    assert set(k_means(np.ones((20, 3)), 3)) <= {0, 1, 2}
    assert len(k_means(np.ones((2, 3)), 5)) == 2
