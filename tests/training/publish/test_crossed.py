"""What is said of images by folds: honest, and for one label what it was."""

import numpy as np
import pytest

from training.data.folds import Folds
from training.publish.crossed import Crossed, given_across, metrics_across

IMAGES, FOLDS = 120, 4


def crossed_of(labels: np.ndarray, logits: np.ndarray) -> Crossed:
    numbers = np.stack([np.arange(IMAGES) % FOLDS, np.arange(IMAGES) // (IMAGES // FOLDS)])
    return Crossed(Folds(numbers, "each image by itself"), logits, None, labels)


def of_several(seed: int = 0) -> Crossed:
    rng = np.random.default_rng(seed)
    truth = rng.random((IMAGES, 3)) < (0.5, 0.3, 0.1)
    return crossed_of(truth, np.where(truth, 1.0, -1.0) + rng.normal(size=(2, IMAGES, 3)))


def test_labels_of_an_image_do_not_move_what_it_is_given() -> None:
    one = of_several()
    numbers = one.folds.numbers[0]
    held = numbers == 2
    other = one.labels.copy()
    other[held] = ~other[held]
    before, after = (given_across(one.logits[0], labels, numbers) for labels in (one.labels, other))
    assert np.array_equal(before[held], after[held])
    assert not np.array_equal(before[~held], after[~held]), "they set the thresholds of the other folds"


def test_measures_of_folds_are_named_after_those_of_a_test_part_and_say_how_they_were_made() -> None:
    one = of_several()
    found = {each.name: each for each in metrics_across(one)}
    assert list(found) == [
        *("mean_average_precision_across_folds", "micro_f1_across_folds"),
        *("all_labels_right_across_folds", "label_accuracy_across_folds"),
    ]
    given = one.given
    hits = (given & one.labels).sum()
    assert found["micro_f1_across_folds"].value == pytest.approx(2 * hits / (given.sum() + 2 * one.labels.sum()))
    exact = (given == one.labels).all(axis=2).mean()
    assert found["all_labels_right_across_folds"].value == pytest.approx(exact)
    assert found["label_accuracy_across_folds"].value == pytest.approx(((one.logits > 0) == one.labels).mean())
    assert "4 folds, dealt 2 times, each image by itself" in found["micro_f1_across_folds"].how
    assert "at temperature and thresholds of the other folds; of new images," in found["micro_f1_across_folds"].how


def test_of_one_label_each_micro_f1_is_the_accuracy() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, IMAGES)
    one = crossed_of(labels, rng.normal(size=(2, IMAGES, 3)) + 2 * (labels[:, None] == np.arange(3)))
    [metric] = metrics_across(one)
    assert metric.name == "accuracy_across_folds"
    assert metric.value == pytest.approx((one.logits.argmax(axis=2) == labels).mean())
    assert one.micro_f1 == pytest.approx(metric.value)
