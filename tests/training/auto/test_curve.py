import numpy as np

from training.auto.curve import continued, some_of_share


def test_a_power_of_the_labels_is_continued() -> None:
    counts, images = np.array([25.0, 50, 100, 200]), 10_000
    errors = 0.8 * counts**-0.5
    right = np.zeros((4, images))
    for place, error in enumerate(errors):
        right[place, round(error * images) :] = 1
    assert abs(continued(counts, right, np.ones_like(right), 400) - (1 - 0.8 * 400**-0.5)) < 0.002


def test_more_labels_are_no_loss_and_no_error_is_not_less_than_none() -> None:
    counts = np.array([10.0, 20, 40])
    worse = np.zeros((3, 100))
    worse[0, 10:], worse[1, 20:], worse[2, 30:] = 1, 1, 1
    assert 0.79 < continued(counts, worse, np.ones_like(worse), 80) < 0.83
    assert 0.99 < continued(counts, np.ones((3, 100)), np.ones((3, 100)), 80) <= 1


def test_a_share_is_of_each_class() -> None:
    labels = np.array([0] * 40 + [1] * 8)
    rows = some_of_share(labels, 0.25, seed=0)
    assert np.bincount(labels[rows]).tolist() == [10, 2]
    assert len(some_of_share(labels, 0.01, seed=0)) == 4, "two of each are the fewest"
    assert not np.array_equal(rows, some_of_share(labels, 0.25, seed=1))
