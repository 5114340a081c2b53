import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.imageset import ImageSet
from training.measure.detection import ClassScores, Curve, auroc, by_class, recall, separation
from training.measure.intervals import wilson

few = st.lists(st.integers(0, 6), min_size=1, max_size=25).map(lambda values: np.array(values, float))


def test_auroc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    normal, unusual = rng.integers(0, 5, 40).astype(float), rng.integers(2, 8, 30).astype(float)
    pairs = [(s > n) + 0.5 * (s == n) for n in normal for s in unusual]
    assert auroc(normal, unusual) == pytest.approx(np.mean(pairs))


def test_every_class_has_its_own_false_alarms_the_hardest_first() -> None:
    labels = np.repeat([0, 1, 3], [4, 2, 2])
    data = ImageSet(np.zeros((8, 1, 1, 1), np.uint8), labels, ("bag", "coat", "dress", "shirt"))
    scores, unusual = np.array([0.0, 1.0, 2.0, 5.0, 0.0, 1.0, 3.5, 4.5]), np.array([4.0, 6.0])
    assert by_class(3.0, data, scores, unusual) == [
        ClassScores("shirt", 2, 1.0, 0.75),
        ClassScores("bag", 4, 0.25, 0.875),
        ClassScores("coat", 2, 0.0, 1.0),
    ]
    assert [each.auroc for each in by_class(3.0, data, scores, None)] == [None] * 3


def slow_measures(normal: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """By their definitions, threshold by threshold."""
    average, best, before = 0.0, 0.0, 0.0
    for threshold in sorted({*normal, *other}, reverse=True):
        false, true = int((normal >= threshold).sum()), int((other >= threshold).sum())
        precision, recall = true / (true + false), true / len(other)
        average += (recall - before) * precision
        best = max(best, 2 * true / (2 * true + false + len(other) - true))
        before = recall
    pairs = [(s > n) + 0.5 * (s == n) for n in normal for s in other]
    return {"image_auroc": float(np.mean(pairs)), "average_precision": average, "best_f1": best}


@given(normal=few, other=few, threshold=st.integers(0, 6))
def test_measures_are_those_of_their_definitions(normal: np.ndarray, other: np.ndarray, threshold: int) -> None:
    found = separation(normal, other, threshold)
    for name, value in slow_measures(normal, other).items():
        assert found[name].value == pytest.approx(value), name
    assert found["recall_at_threshold"].value == np.mean(other > threshold)


def test_measures_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    normal, other = rng.normal(size=300).round(1), rng.normal(1, 1, 200).round(1)
    truth, scores = np.repeat([0, 1], [300, 200]), np.concatenate([normal, other])
    found = separation(normal, other, 0)
    assert found["image_auroc"].value == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found["average_precision"].value == pytest.approx(metrics.average_precision_score(truth, scores))


def test_the_curve_counts_from_the_highest_threshold_down() -> None:
    curve = Curve.of(np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0]))
    assert curve.thresholds.tolist() == [3, 2, 1]
    assert curve.false.tolist() == [[0, 2, 3]]
    assert curve.true.tolist() == [[1, 2, 2]]


def test_the_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    """Two normals one standard deviation apart: an AUROC of 0.7602."""
    rng = np.random.default_rng(0)
    found = [separation(rng.normal(size=60), rng.normal(1, 1, 40), 0, seed=seed) for seed in range(100)]
    covered = sum(each["image_auroc"].low <= 0.7602 <= each["image_auroc"].high for each in found)
    assert 88 <= covered <= 100
    widths = [each["image_auroc"].high - each["image_auroc"].low for each in found]
    assert 0.1 < np.mean(widths) < 0.3


def test_a_seed_gives_the_same_interval_and_another_seed_another() -> None:
    rng = np.random.default_rng(0)
    normal, other = rng.normal(size=30), rng.normal(1, 1, 20)
    first, second, third = (separation(normal, other, 0, seed=seed)["image_auroc"] for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_the_interval_is_that_of_images_drawn_again_and_again() -> None:
    """Of so many images that the samples are drawn in several chunks."""
    rng = np.random.default_rng(0)
    normal, other = rng.normal(size=3000).round(2), rng.normal(0.1, 1, 2000).round(2)
    found = separation(normal, other, 0)["image_auroc"]
    areas = [auroc(rng.choice(normal, 3000), rng.choice(other, 2000)) for _ in range(1000)]
    assert (found.low, found.high) == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.002)
    assert found.high - found.low == pytest.approx(0.032, abs=0.003)


def test_recall_has_wilsons_interval() -> None:
    found = recall(np.array([0.0, 2.0, 3.0, 4.0]), 2.0)["recall_at_threshold"]
    assert found == (0.5, *wilson(2, 4))
