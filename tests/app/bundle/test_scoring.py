import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle import scoring
from app.bundle.manifest import Classifier
from app.bundle.scoring import (
    NEAREST,
    THUMBNAIL,
    References,
    Space,
    are_present,
    cells,
    classify,
    confidences,
    label_probabilities,
    p_values,
    probabilities,
    reconstruction_errors,
    threshold_at,
    thumbnail_size,
    thumbnails,
)


def test_probabilities_sum_to_one_and_large_logits_do_not_overflow() -> None:
    rows = probabilities(np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]], np.float32), 1.0)
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    np.testing.assert_allclose(rows, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-12)


def test_a_temperature_above_one_flattens() -> None:
    logits = np.array([[2.0, 0.0]], np.float32)
    np.testing.assert_allclose(probabilities(logits, 2.0)[0, 0], 1 / (1 + np.exp(-1)))


def test_the_ranking_is_likeliest_first_and_keeps_the_labels_index() -> None:
    [found] = classify(np.array([[0.0, 3.0, 1.0]], np.float32), Classifier(labels=("a", "b", "c"), temperature=1.0))
    assert (found.index, found.label, [name for name, _ in found.ranked]) == (1, "b", ["b", "c", "a"])
    assert found.confidence == found.ranked[0][1]


def test_reconstruction_error_is_in_units_of_the_full_scale() -> None:
    images = np.full((1, 2, 2, 1), 255, np.uint8)
    np.testing.assert_allclose(reconstruction_errors(images, np.full((1, 2, 2, 1), 0.5, np.float32)), [0.25])


def space(points: np.ndarray, **more: np.ndarray) -> Space:
    mean = points.mean(0)
    values, vectors = np.linalg.eigh(np.cov(points, rowvar=False))
    arrays = {"mean": mean, "weight": np.ones(len(mean)), "basis": vectors, "spread": np.sqrt(values)}
    return Space({**arrays, **more})


def test_cells_average_equal_spans_and_share_a_pixel_where_the_side_does_not_divide() -> None:
    assert np.array_equal(cells(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    assert np.array_equal(cells(3, 2), [[0.5, 0.5, 0], [0, 0.5, 0.5]])
    assert np.array_equal(cells(3, 14), np.eye(3))
    assert np.allclose(cells(224, 14).sum(axis=1), 1)


@pytest.mark.parametrize("shape", [(28, 28, 1), (64, 48, 3), (6, 4, 1), (15, 224, 3)])
def test_a_thumbnail_is_the_roots_of_the_greys_averaged_by_cell(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    found = thumbnails(images)
    assert found.shape == (3, thumbnail_size(*shape))
    grid = found.reshape(3, min(THUMBNAIL, shape[0]), min(THUMBNAIL, shape[1]), shape[2])
    roots = np.sqrt(images / 255)
    high, wide = shape[0] / grid.shape[1], shape[1] / grid.shape[2]
    for row, column in ((0, 0), (grid.shape[1] - 1, grid.shape[2] - 1), (1, 2)):
        top, bottom = int(np.floor(row * high)), int(np.ceil((row + 1) * high))
        left, right = int(np.floor(column * wide)), int(np.ceil((column + 1) * wide))
        expected = roots[:, top:bottom, left:right].mean(axis=(1, 2))
        assert np.allclose(grid[:, row, column], expected, atol=1e-5)


def test_distance_in_units_of_the_spread_is_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3))).astype(np.float32)
    mean, covariance = points.mean(0), np.cov(points, rowvar=False)
    expected = [np.sqrt((p - mean) @ np.linalg.inv(covariance) @ (p - mean)) for p in points[:20]]
    found = space(points).distances(points[:20], {"mahalanobis"})
    np.testing.assert_allclose(found["mahalanobis"], expected, rtol=1e-4)


def test_the_residual_is_what_the_directions_leave_out() -> None:
    arrays = {"mean": np.zeros(3), "weight": np.array([1.0, 1.0, 2.0]), "basis": np.eye(3)[:, :2]}
    found = Space(arrays).distances(np.array([[3.0, 4.0, 0.0], [3.0, 4.0, 5.0]], np.float32), {"residual"})
    np.testing.assert_allclose(found["residual"], [0, 10], atol=1e-3)


def test_neighbours_are_the_nearest_references() -> None:
    rng = np.random.default_rng(0)
    references, points = rng.normal(size=(50, 2)).astype(np.float32), rng.normal(size=(7, 2)).astype(np.float32)
    arrays = {"mean": np.zeros(2), "weight": np.ones(2), "basis": np.eye(2), "references": references}
    expected = [np.sort(np.linalg.norm(references - point, axis=1))[:NEAREST].mean() for point in points]
    np.testing.assert_allclose(Space(arrays).distances(points, {"neighbours"})["neighbours"], expected, rtol=1e-4)
    few = Space({**arrays, "references": references[:1]}).distances(points, {"neighbours"})["neighbours"]
    np.testing.assert_allclose(few, np.linalg.norm(references[0] - points, axis=1), rtol=1e-4)


def test_the_local_distance_is_in_units_of_how_far_apart_the_references_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far from a tight group as from a loose one is stranger; also where references are gone through in parts."""
    rng = np.random.default_rng(0)
    tight, loose = rng.normal(size=(40, 2)) * 0.05 - 5, rng.normal(size=(40, 2)) + 5
    references = np.concatenate([tight, loose]).astype(np.float32)
    apart = np.linalg.norm(references[:, None] - references, axis=2)
    reach = np.sort(apart, axis=1)[:, 1 : NEAREST + 1].mean(axis=1)
    points = np.array([[-5, -4], [5, 6], [0, 0]], np.float32)
    away = np.linalg.norm(references - points[:, None], axis=2) / np.sqrt(reach)
    expected = np.sort(away, axis=1)[:, :NEAREST].mean(axis=1)
    for compared in (1 << 22, 3 * len(references)):
        monkeypatch.setattr(scoring, "_COMPARED", compared)
        np.testing.assert_allclose(References(references).reach(), reach, rtol=0.05)
        arrays = {"mean": np.zeros(2), "weight": np.ones(2), "basis": np.eye(2), "references": references}
        found = Space({**arrays, "reach": reach}).distances(points, {"local"})["local"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[0] > 2 * found[1]


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


@pytest.mark.parametrize("rate", [1e-310, 1e-20, 0.004])
def test_a_rate_that_is_all_but_nothing_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="are needed"):
        threshold_at(np.arange(199.0), rate)


def test_a_rate_that_is_all_but_one_spares_the_least_anomalous_alone() -> None:
    assert threshold_at(np.arange(199.0), 0.9999999999999999) == 0


INDEPENDENT = Classifier(labels=("a", "b", "c"), temperature=2.0, thresholds=(0.6, 0.2, 0.5))


def test_independent_labels_are_each_for_themselves() -> None:
    logits = np.array([[0.0, 2.0, -2.0], [2.0, -4.0, 1.0], [-9.0, -9.0, -1e9]], np.float32)
    rows = label_probabilities(logits, INDEPENDENT)
    assert rows == pytest.approx(1 / (1 + np.exp(-np.maximum(logits, -1000).astype(float) / 2)))
    assert are_present(rows, INDEPENDENT.thresholds or ()).tolist() == [
        [False, True, False],
        [True, False, True],
        [False, False, False],
    ]
    assert confidences(rows, INDEPENDENT) == pytest.approx([0.5, rows[1, 2], 1 - rows[2, 0]])
    first, second, third = classify(logits, INDEPENDENT)
    assert (first.present, second.present, third.present) == (("b",), ("a", "c"), ())
    assert [label for label, _ in second.ranked] == ["a", "c", "b"]


def test_a_label_at_its_threshold_is_present() -> None:
    assert are_present(np.array([[0.6, 0.2, np.nextafter(0.5, 0)]]), INDEPENDENT.thresholds or ()).tolist() == [
        [True, True, False]
    ]


def test_of_one_label_nothing_has_changed() -> None:
    one = INDEPENDENT.model_copy(update={"thresholds": None})
    logits = np.array([[0.0, 3.0, 1.0]], np.float32)
    assert np.array_equal(label_probabilities(logits, one), probabilities(logits, 2.0))
    assert confidences(label_probabilities(logits, one), one) == pytest.approx([probabilities(logits, 2.0).max()])
    assert classify(logits, one)[0].present is None
