"""Prediction sets: against the definitions, by simulation, and against MAPIE where that is installed."""

import numpy as np
import pytest

from app.bundle.scoring import likeliest_first
from app.bundle.sets import ARRAYS, PENALTY, PredictionSets, SetOptions, arrays_of, shares_of

K = 5


def drawn(count: int, seed: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) probabilities and labels that follow other ones: the model is overconfident, and class 4 is hard."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(K, size=count)
    logits = rng.normal(size=(count, K)) * spread
    logits[np.arange(count), labels] += np.where(labels == 4, 1.0, 3.0)
    rows = np.exp(2 * logits)
    return rows / rows.sum(axis=1, keepdims=True), labels


def sets_of(count: int, seed: int = 0) -> PredictionSets:
    return PredictionSets(arrays_of(*drawn(count, seed)), K)


def covered(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(members[np.arange(len(labels)), labels])


def test_arrays_are_what_they_say() -> None:
    rows, labels = drawn(50, 0)
    arrays = arrays_of(rows, labels)
    for at, (row, label) in enumerate(zip(rows, labels, strict=True)):
        larger = row[row > row[label]]
        assert arrays["sets.labels"][at] == label
        assert arrays["sets.probabilities"][at] == row[label]
        assert arrays["sets.ranks"][at] == len(larger)
        assert arrays["sets.before"][at] == pytest.approx(larger.sum())
        assert arrays["sets.confidences"][at] == row.max()


def test_a_set_holds_the_labels_whose_score_is_not_above_the_kth_smallest() -> None:
    rows, labels = drawn(39, 0)
    sets, new = PredictionSets(arrays_of(rows, labels), K), drawn(200, 1)[0]
    threshold = np.sort(rows[np.arange(39), labels])[::-1][36 - 1]  # 36 = (39 + 1) · 0.9
    assert (sets.members(new, SetOptions(0.9)) == (new >= threshold)).all()


@pytest.mark.parametrize("by", ["lac", "raps"])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_hold_the_truth_as_often_as_they_say_with_few_calibration_images(by: str, coverage: float) -> None:
    """On average over calibrations of 29 images each: from the coverage to 1/30 above it."""
    found = []
    for seed in range(400):
        rows, labels = drawn(50, 10_000 + seed)
        shares = np.random.default_rng(seed).random(len(rows))
        found.append(covered(sets_of(29, seed).members(rows, SetOptions(coverage, by), shares), labels).mean())  # type: ignore[arg-type]
    error = 3 * np.std(found) / np.sqrt(len(found))
    assert coverage - error <= np.mean(found) <= coverage + 1 / 30 + error


@pytest.mark.parametrize("by", ["lac", "raps"])
def test_the_rate_holds_for_every_class_where_it_is_asked_for(by: str) -> None:
    sets, (rows, labels) = sets_of(20_000), drawn(20_000, 1)
    shares = np.random.default_rng(0).random(len(rows))
    together, by_class = (
        covered(sets.members(rows, SetOptions(0.9, by, conditional), shares), labels)  # type: ignore[arg-type]
        for conditional in (False, True)
    )
    assert together.mean() == pytest.approx(0.9, abs=0.01)
    assert together[labels == 4].mean() < 0.8, "the hard class is covered less"
    for label in range(K):
        assert by_class[labels == label].mean() == pytest.approx(0.9, abs=0.02)


def test_a_coverage_that_cannot_be_promised_is_refused_with_the_highest_that_can() -> None:
    sets = sets_of(19)
    sets.require(SetOptions(0.95))
    with pytest.raises(ValueError, match=r"0\.951 cannot be promised by 19 .* reach 0\.95 at most"):
        sets.require(SetOptions(0.951))
    with pytest.raises(ValueError, match=r"0\.9999 cannot be promised by 5,000 .* reach 0\.9998 at most"):
        sets_of(5000).require(SetOptions(0.9999))
    counts = np.bincount(sets.labels, minlength=K)
    with pytest.raises(ValueError, match=f"by {counts.max()} images of any label"):
        sets.require(SetOptions(0.95, conditional=True))


def test_a_label_with_too_few_images_is_in_every_set_and_the_others_are_not() -> None:
    rows, labels = drawn(2000, 0)
    kept = np.concatenate([np.flatnonzero(labels != 2), np.flatnonzero(labels == 2)[:8]])
    sets = PredictionSets(arrays_of(rows[kept], labels[kept]), K)
    shares = np.full(2000, 0.5)
    for by in ("lac", "raps"):
        members = sets.members(rows, SetOptions(0.9, by, conditional=True), shares)  # type: ignore[arg-type]
        assert members[:, 2].all()
        assert not members[:, [0, 1, 3, 4]].all(axis=0).any()


def test_nothing_likely_enough_gives_an_empty_set_and_a_sure_model_none_that_is_larger_than_one() -> None:
    rows = np.repeat([[0.97, 0.01, 0.01, 0.01, 0]], 100, axis=0)
    sets = PredictionSets(arrays_of(rows, np.zeros(100, int)), K)
    new = np.array([[0.96, 0.04, 0, 0, 0], [0.98, 0.02, 0, 0, 0]])
    assert sets.members(new, SetOptions(0.9)).sum(axis=1).tolist() == [0, 1]


def test_shares_look_drawn_and_are_the_same_for_the_same_pixels() -> None:
    images = np.zeros((1000, 4, 4, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(1000) % 256, np.arange(1000) // 256
    shares = shares_of(images)
    assert (shares_of(images[500:]) == shares[500:]).all()
    assert len(set(shares)) == 1000
    assert np.abs(np.sort(shares) - np.linspace(0, 1, 1000)).max() < 0.05  # Kolmogorov and Smirnov


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("sets.labels", np.full(29, K)),
        ("sets.labels", np.zeros(29)),
        ("sets.before", np.full(29, np.nan)),
        ("sets.ranks", np.zeros(28, int)),
        ("sets.confidences", None),
    ],
)
def test_an_array_that_does_not_fit_is_named(name: str, array: np.ndarray | None) -> None:
    arrays = {**arrays_of(*drawn(29, 0)), name: array}
    assert set(arrays) == set(ARRAYS)
    with pytest.raises(ValueError, match=name):
        PredictionSets({key: value for key, value in arrays.items() if value is not None}, K)


# What MAPIE 1.6.0 answers for `drawn(60, 0)` as its calibration and `drawn(40, 1)`: bit i of a number is label i.
MAPIE_LAC = {
    0.8: "4 4 8 17 1 1 16 2 2 2 17 1 2 16 2 4 8 8 1 1 16 8 18 4 18 2 5 1 1 2 1 16 8 1 2 4 3 4 4 2",
    0.9: "4 4 8 25 21 1 20 18 2 2 25 5 2 25 2 4 8 8 9 1 16 12 26 4 18 2 5 1 1 2 1 29 8 21 2 4 3 4 4 2",
    0.95: "4 4 8 25 21 1 20 22 2 2 25 5 2 25 2 4 8 8 9 1 16 12 26 12 18 2 5 1 1 2 1 29 8 21 2 6 3 4 4 2",
}


@pytest.mark.parametrize("coverage", sorted(MAPIE_LAC))
def test_lac_gives_the_sets_that_mapie_gave(coverage: float) -> None:
    members = sets_of(60).members(drawn(40, 1)[0], SetOptions(coverage))
    assert " ".join(map(str, members @ (1 << np.arange(K)))) == MAPIE_LAC[coverage]


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_mapie_gives_the_same_sets(coverage: float) -> None:
    """`lac` is the same. MAPIE's sets of `raps` without its last label, and with it, are inside and outside of ours."""
    sets = pytest.importorskip("mapie.conformity_scores.sets", reason="MAPIE is not installed: pip install mapie")
    rows, labels = drawn(500, 0)
    new, alpha = drawn(300, 1)[0], np.array([1 - coverage])
    ours = PredictionSets(arrays_of(rows, labels), K)

    lac = sets.LACConformityScore()
    scores = lac.get_conformity_scores(labels, rows, y_enc=labels)
    lac.quantiles_ = lac.get_conformity_score_quantiles(scores, alpha, cv="prefit")
    theirs = lac.get_prediction_sets(new[:, :, None], scores, alpha, cv="prefit")[:, :, 0]
    assert (theirs == ours.members(new, SetOptions(coverage))).all()

    raps = sets.RAPSConformityScore()
    raps.classes, raps.k_star, raps.lambda_star, raps.random_state = np.arange(K), np.array([1]), PENALTY, 0
    cumulated, position = raps.get_true_label_cumsum_proba(labels, rows, np.arange(K))
    shares = np.random.default_rng(0).random(len(rows))  # of each label's own probability, as ours are
    plain = cumulated[:, 0] - (1 - shares) * rows[np.arange(len(rows)), labels]
    regular = raps._regularize_conformity_score(raps.k_star, PENALTY, plain[:, None], position)[:, 0]
    assert regular[:, 0] == pytest.approx(ours._scores["raps"])
    raps.quantiles_ = np.sort(regular[:, 0])[[int(np.ceil(501 * coverage - 1e-9)) - 1]]
    without, within = (
        raps.get_prediction_sets(new[:, :, None], regular, alpha, cv="prefit", include_last_label=last)[:, :, 0]
        for last in (False, True)
    )
    found = ours.members(new, SetOptions(coverage, "raps"), np.random.default_rng(1).random(len(new)))
    assert (found <= within).all()
    assert (found | (without.sum(axis=1, keepdims=True) == 1) >= without).all(), "theirs are never empty, and ours are"
    order = likeliest_first(new)
    nested = np.take_along_axis(found, order, axis=1)
    assert (nested[:, :-1] >= nested[:, 1:]).all(), "a set holds the likeliest labels"
