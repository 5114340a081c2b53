import math

import numpy as np
import pytest

from training.auto.chance import by_chance, dealt_at_random, labels_by_chance, same_for_all
from training.data.folds import Folds
from training.publish.crossed import Crossed


@pytest.mark.parametrize(
    ("right", "images", "commonest", "expected"),
    [
        (20, 60, 1 / 3, True),
        (27, 60, 1 / 3, True),  # a little better than guessing, as one in twenty shuffles is
        (40, 60, 1 / 3, False),
        (60, 60, 0.5, False),
        (900, 1000, 0.9, True),  # the commonest class alone gets that
        (5, 5, 1.0, True),
        (0, 10, 0.5, True),
    ],
)
def test_what_guessing_would_reach_is_chance(right: int, images: int, commonest: float, expected: bool) -> None:
    assert by_chance(right, images, commonest) is expected


def test_chance_is_the_tail_of_the_binomial_distribution_times_the_tries() -> None:
    tail = sum(math.comb(20, k) for k in range(17, 21)) / 2**20
    assert 1e-3 < tail < 2e-3
    assert by_chance(17, 20, 0.5)
    assert not by_chance(18, 20, 0.5)
    assert by_chance(18, 20, 0.5, tries=10)


def crossed(truth: np.ndarray, logits: np.ndarray, folds: int = 4) -> Crossed:
    numbers = np.arange(len(truth))[None] % folds
    return Crossed(Folds(numbers, "each image by itself"), logits[None], None, truth)


def ridge(points: np.ndarray, truth: np.ndarray, folds: int = 4) -> np.ndarray:
    """Logits of heads that have learnt from the other folds."""
    logits, number = np.empty(truth.shape), np.arange(len(truth)) % folds
    for fold in range(folds):
        x, y = points[number != fold], truth[number != fold]
        weight = np.linalg.solve(x.T @ x + 5 * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)))
        logits[number == fold] = 6 * (points[number == fold] @ weight + y.mean(axis=0) - 0.5)
    return logits


@pytest.mark.parametrize("seed", range(20))
def test_label_sets_that_have_nothing_to_do_with_the_images_are_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, points = rng.random((60, 4)) < (0.5, 0.4, 0.3, 0.2), rng.normal(size=(60, 30))
    truth[:, 1] |= truth[:, 0] & (rng.random(60) < 0.5)  # labels that go together do not make it better
    assert labels_by_chance(crossed(truth, ridge(points, truth)))


@pytest.mark.parametrize("images", [60, 200])
def test_labels_that_the_images_show_are_not_chance(images: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((images, 4)) < (0.5, 0.4, 0.3, 0.3)
    points = np.concatenate([truth + 0.3 * rng.normal(size=truth.shape), rng.normal(size=(images, 5))], axis=1)
    assert not labels_by_chance(crossed(truth, ridge(points - points.mean(axis=0), truth)))


def test_the_same_labels_for_all_are_chance_however_common_they_are() -> None:
    truth = np.random.default_rng(0).random((100, 3)) < (0.95, 0.9, 0.1)
    always, labels = same_for_all(truth)
    assert labels.tolist() == [0, 1]
    given = np.tile([True, True, False], (100, 1))
    assert always == pytest.approx(2 * (given & truth).sum() / (given.sum() + truth.sum()))
    assert labels_by_chance(crossed(truth, np.where(given, 9.0, -9.0)))


def test_the_exchange_of_answers_is_what_many_exchanges_give() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((80, 3)) < (0.5, 0.3, 0.2)
    one = crossed(truth, np.where(truth, 2.0, -2.0) + 4 * rng.normal(size=truth.shape))
    expected, deviations = dealt_at_random(one)
    given, number = one.given[0], one.folds.numbers[0]
    hits = []
    for _ in range(4000):
        order = np.arange(80)
        for fold in range(4):
            order[number == fold] = rng.permutation(order[number == fold])
        hits.append((given[order] & truth).sum())
    assert expected == pytest.approx(2 * np.mean(hits) / (given.sum() + truth.sum()), rel=0.01)
    better = (given & truth).sum() - np.mean(hits)
    assert deviations == pytest.approx(better / (np.sqrt(2) * np.std(hits)), rel=0.05)
