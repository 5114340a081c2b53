import numpy as np
import pytest

from app.bundle.drift import CONFIDENCES, EMBEDDINGS, FEWEST, DriftReference, stability

D = 8


def codes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Of three kinds, each about a place of its own."""
    return (rng.normal(size=(count, D)) + 4 * np.eye(D)[rng.integers(3, size=count)]).astype(np.float32)


def reference(count: int = 1000) -> DriftReference:
    return DriftReference({EMBEDDINGS: codes(np.random.default_rng(0), count)}, D)


def test_images_like_the_reference_raise_at_most_four_alarms_in_a_hundred_windows() -> None:
    known, rng = reference(), np.random.default_rng(1)
    chances = np.array([known.discrepancy(codes(rng, known.window))[1] for _ in range(100)])
    assert (chances < 0.01).sum() <= 4
    assert 0.2 < np.mean(chances < 0.5) < 0.8, "p-values are spread"


@pytest.mark.parametrize("change", ["moved", "wider", "one kind is gone", "half are others"])
def test_images_of_another_kind_are_told(change: str) -> None:
    known, rng = reference(), np.random.default_rng(1)
    found = codes(rng, known.window)
    if change == "moved":
        found = found + np.float32(0.5)
    elif change == "wider":
        found = found * np.float32(1.5)
    elif change == "one kind is gone":
        several = codes(rng, 4 * known.window)
        found = several[several[:, 0] < 2][: known.window]
    else:
        found[::2] *= -1
    far, chance = known.discrepancy(found)
    assert chance == 0.001
    assert far > 0


def test_what_chance_gives_is_stayed_below_as_often_as_it_says() -> None:
    known, rng = reference(), np.random.default_rng(1)
    found = [known.discrepancy(codes(rng, known.window)) for _ in range(100)]
    assert all((squared > known.by_chance(0.9)) == (chance <= 0.1) for squared, chance in found)


def test_the_window_shrinks_with_the_reference_and_codes_that_are_all_alike_do_no_harm() -> None:
    assert reference(FEWEST).window == FEWEST // 2
    dead = DriftReference({EMBEDDINGS: np.zeros((200, D), np.float32)}, D)
    assert dead.discrepancy(np.zeros((100, D), np.float32)) == (0, 1)
    assert dead.discrepancy(np.ones((100, D), np.float32))[1] < 0.01


def test_stability_is_nothing_for_the_same_and_much_for_others() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=5000)
    assert stability(rng.normal(size=400), before) < 0.1
    assert stability(rng.normal(size=400) + 1, before) > 0.25
    assert stability(np.full(400, 10.0), before) > 1
    assert stability(np.ones(400), np.ones(5000)) < 0.01, "confidences that are all one"


@pytest.mark.parametrize(
    ("arrays", "output"),
    [
        ({EMBEDDINGS: np.zeros((FEWEST, D + 1))}, EMBEDDINGS),
        ({EMBEDDINGS: np.zeros((FEWEST - 1, D))}, EMBEDDINGS),
        ({EMBEDDINGS: np.full((FEWEST, D), np.nan)}, EMBEDDINGS),
        ({EMBEDDINGS: np.zeros((FEWEST, D)), CONFIDENCES: np.array(["a"])}, CONFIDENCES),
    ],
)
def test_a_reference_that_does_not_fit_is_named(arrays: dict[str, np.ndarray], output: str) -> None:
    with pytest.raises(ValueError, match=output):
        DriftReference(arrays, D)
