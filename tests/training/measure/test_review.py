import numpy as np

from training.measure.review import doubtful_labels, worth_labelling

RNG = np.random.default_rng(0)


def test_labels_that_were_exchanged_are_found() -> None:
    truth = RNG.integers(0, 5, 1500)
    points = (RNG.normal(size=(5, 30))[truth] * 1.5 + RNG.normal(size=(1500, 30))).astype(np.float32)
    wrong = RNG.choice(1500, 40, replace=False)
    labels = truth.copy()
    labels[wrong] = (labels[wrong] + RNG.integers(1, 5, 40)) % 5
    found = doubtful_labels(points, labels, 5, 40)
    hits = [doubt for doubt in found if doubt.index in set(wrong.tolist())]
    assert len(hits) >= 36
    assert all(doubt.suggested == truth[doubt.index] and doubt.given == labels[doubt.index] for doubt in hits)
    assert [doubt.margin for doubt in found] == sorted((doubt.margin for doubt in found), reverse=True)


def test_what_one_fit_says_is_what_a_fit_without_the_image_would_say() -> None:
    """The shortcut against doing it: an image far out, whose label only it supports."""
    points = np.concatenate([RNG.normal(size=(60, 2)), [[25.0, 25.0]]]).astype(np.float32)
    labels = np.concatenate([(points[:60, 0] > 0).astype(np.int64), [0]])
    [first, *_] = doubtful_labels(points, labels, 2, 5)
    assert (first.index, first.suggested) == (60, 1)


def test_clean_labels_are_left_alone() -> None:
    truth = np.arange(300) % 3
    points = (np.eye(3)[truth] * 20 + RNG.normal(size=(300, 3))).astype(np.float32)
    assert doubtful_labels(points, truth, 3, 10) == []


def test_the_uncertain_come_first_and_no_two_alike() -> None:
    chances = np.full((100, 2), [0.99, 0.01])
    points = np.zeros((100, 2), np.float32)
    chances[:60] = 0.5
    points[:20], points[20:40], points[40:60] = [5, 0], [0, 5], [5, 5]
    chosen = worth_labelling(chances, points, 3)
    assert len({tuple(points[index]) for index in chosen}) == 3
    assert all(index < 60 for index in chosen)
    assert len(worth_labelling(chances[:2], points[:2], 5)) == 2
    assert len(worth_labelling(chances[:0], points[:0], 5)) == 0
