import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.imageset import ImageSet
from training.measure.several import (
    HEADS,
    LabelMeasures,
    average_precision,
    average_precisions,
    micro_f1,
    share_right,
    text_table,
)

LABELS = ("cat", "dog", "long name")


def area_by_definition(scores: np.ndarray, truth: np.ndarray) -> float:
    """Precision at each score from the highest down, weighted by how much recall rises there."""
    area, before = 0.0, 0.0
    for level in sorted(set(scores.tolist()), reverse=True):
        called = scores >= level
        recall = (called & truth).sum() / truth.sum()
        area += (recall - before) * (called & truth).sum() / called.sum()
        before = recall
    return float(area)


@given(seed=st.integers(0, 200), count=st.integers(2, 60), levels=st.integers(2, 30))
def test_measures_are_what_they_are_by_definition(seed: int, count: int, levels: int) -> None:
    """With ties among the scores, too."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, levels, (count, 3)) / levels
    truth = rng.random((count, 3)) < 0.3
    truth[0] = True
    thresholds = (0.3, 0.5, 0.7)
    found = LabelMeasures.of(rows, truth, LABELS, thresholds)
    areas = [area_by_definition(rows[:, k], truth[:, k]) for k in range(3)]
    assert found.average_precision == pytest.approx(areas)
    assert found.mean_average_precision == pytest.approx(np.mean(areas))
    pairs, f1s = [0, 0, 0], []
    for k in range(3):
        given = [bool(row[k] >= thresholds[k]) for row in rows]
        hits = sum(one and other for one, other in zip(given, truth[:, k].tolist(), strict=True))
        assert found.precision[k] == pytest.approx(hits / sum(given) if any(given) else 0)
        assert found.recall[k] == pytest.approx(hits / truth[:, k].sum())
        f1s.append(2 * hits / (sum(given) + truth[:, k].sum()))
        pairs = [pairs[0] + hits, pairs[1] + sum(given), pairs[2] + int(truth[:, k].sum())]
    assert found.f1 == pytest.approx(f1s)
    assert found.macro_f1 == pytest.approx(np.mean(f1s))
    assert found.micro_f1 == pytest.approx(2 * pairs[0] / (pairs[1] + pairs[2]))
    assert found.images.tolist() == truth.sum(axis=0).tolist()
    pairs_of_rows = zip(rows, truth, strict=True)
    whole = [
        [bool(p >= t) for p, t in zip(row, thresholds, strict=True)] == each.tolist() for row, each in pairs_of_rows
    ]
    assert found.exact == pytest.approx(np.mean(whole))


def test_a_label_that_no_image_has_counts_for_nothing() -> None:
    rows = np.array([[0.9, 0.1, 0.8], [0.2, 0.7, 0.6]])
    truth = np.array([[True, False, False], [False, True, False]])
    found = LabelMeasures.of(rows, truth, LABELS, (0.5, 0.5, 0.5))
    assert (found.mean_average_precision, found.macro_f1, found.lacking) == (1.0, 1.0, ["long name"])
    assert found.micro_f1 == pytest.approx(2 * 2 / (2 + 4))
    assert found.exact == 0
    heads, *lines = text_table(found)
    assert heads.split() == " ".join(HEADS).split()
    assert lines[0].split() == ["cat", "0.5000", "1.0000", "1.0000", "1.0000", "1.0000", "1"]
    assert lines[2].split() == ["long", "name", "0.5000", "0.0000", "0.0000", "0.0000", "0"]


def test_a_label_that_every_image_has_is_found_first_everywhere() -> None:
    assert average_precision(np.array([0.1, 0.4]), np.array([True, True])) == 1
    assert np.isnan(average_precision(np.array([0.1, 0.4]), np.array([False, False])))


def test_decisions_are_compared_at_a_half() -> None:
    images, empty = np.zeros((2, 1, 1, 1), np.uint8), np.array([], np.int64)
    several = ImageSet(images, empty, LABELS, several=np.array([[True, False, False], [False, True, True]]))
    assert share_right(np.array([[1.0, -1.0, 1.0], [-1.0, 2.0, 3.0]]), several) == pytest.approx(5 / 6)
    single = ImageSet(images, np.array([0, 2]), LABELS)
    assert share_right(np.array([[1.0, -1.0, 2.0], [-1.0, 2.0, 3.0]]), single) == 0.5


def test_an_image_that_counts_twice_is_as_good_as_two() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 9, 40) / 9, rng.random(40) < 0.4
    weights = rng.integers(0, 3, (5, 40))
    found = average_precisions(scores, truth, weights)
    for each, value in zip(weights, found, strict=True):
        assert value == pytest.approx(average_precision(np.repeat(scores, each), np.repeat(truth, each)))
    assert np.isnan(average_precisions(scores, truth, ~truth[None] * 1)).all()


def test_micro_f1_of_one_label_each_is_the_accuracy() -> None:
    rng = np.random.default_rng(0)
    said, labels = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    one_hot = np.eye(3, dtype=bool)
    assert micro_f1(one_hot[said], one_hot[labels]) == pytest.approx((said == labels).mean())
