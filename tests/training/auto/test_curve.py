import numpy as np

from training.auto.curve import LearningCurve, continued, some_of_share
from training.report import charts


def test_a_power_of_the_labels_is_continued() -> None:
    counts, images = np.array([25.0, 50, 100, 200]), 10_000
    errors = 0.8 * counts**-0.5
    right = np.zeros((4, images))
    for place, error in enumerate(errors):
        right[place, round(error * images) :] = 1
    assert abs(continued(counts, right, np.ones_like(right), np.array([400]))[0] - (1 - 0.8 * 400**-0.5)) < 0.002


def test_more_labels_are_no_loss_and_no_error_is_not_less_than_none() -> None:
    counts = np.array([10.0, 20, 40])
    worse = np.zeros((3, 100))
    worse[0, 10:], worse[1, 20:], worse[2, 30:] = 1, 1, 1
    at = np.array([80])
    assert 0.79 < continued(counts, worse, np.ones_like(worse), at)[0] < 0.83
    assert 0.99 < continued(counts, np.ones((3, 100)), np.ones((3, 100)), at)[0] <= 1


def test_a_share_is_of_each_class() -> None:
    labels = np.array([0] * 40 + [1] * 8)
    rows = some_of_share(labels, 0.25, seed=0)
    assert np.bincount(labels[rows]).tolist() == [10, 2]
    assert len(some_of_share(labels, 0.01, seed=0)) == 4, "two of each are the fewest"
    assert not np.array_equal(rows, some_of_share(labels, 0.25, seed=1))


def test_the_chart_goes_on_to_twice_as_many_labels_with_its_interval() -> None:
    fitted = ((0.5, 0.6, 0.7), (0.6, 0.7, 0.8), (0.7, 0.8, 0.9))
    curve = LearningCurve(labelled=(10, 20), scores=(0.61, 0.69), fitted=fitted, images=25)
    assert curve.doubled == (0.7, 0.8, 0.9)
    line, measured = curve.series()
    assert line.x == (10, 20, 50)
    assert (line.low, line.y, line.high) == ((0.5, 0.6, 0.7), (0.6, 0.7, 0.8), (0.7, 0.8, 0.9))
    assert measured.y == (0.61, 0.69)
    assert ">50</text>" in charts.lines("by labels", curve.series(), "labels", "accuracy", log_x=True)
