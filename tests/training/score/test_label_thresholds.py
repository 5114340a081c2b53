import numpy as np
import pytest

from training.score import label_thresholds


def drawn(rng: np.random.Generator, count: int, often: float, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, 1) that are right, and whether each image has the label: scores of two normal distributions."""
    truth = rng.random(count) < often
    score = rng.normal(size=count) + apart * truth
    logits = apart * score - apart**2 / 2 + np.log(often / (1 - often))
    return 1 / (1 + np.exp(-logits))[:, None], truth[:, None]


def f1(rows: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    found = rows >= threshold
    return float(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))


def best_of_these(rows: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of the best F1 of these images alone."""
    levels = np.unique(np.clip(rows, label_thresholds.LOWEST, label_thresholds.HIGHEST))
    return float(max(levels, key=lambda level: f1(rows, truth, level)))


@pytest.mark.parametrize("often", [0.1, 0.4])
def test_with_many_images_the_threshold_is_that_of_the_best_f1(often: float) -> None:
    rng = np.random.default_rng(0)
    [found] = label_thresholds.fit(*drawn(rng, 100_000, often, 1.5))
    fresh = drawn(rng, 200_000, often, 1.5)
    best = max(f1(*fresh, level) for level in np.linspace(0.05, 0.95, 91))
    assert f1(*fresh, found) == pytest.approx(best, abs=0.01)
    assert found == pytest.approx(best / 2, abs=0.05)  # Lipton et al.: half of the best F1


@pytest.mark.parametrize(("count", "often"), [(24, 0.1), (72, 0.02), (72, 0.1), (300, 0.02)])
def test_of_rare_labels_it_is_better_than_what_few_images_say_and_than_a_half(count: int, often: float) -> None:
    rng = np.random.default_rng(1)
    fresh = drawn(rng, 50_000, often, 1.5)
    reached: dict[str, list[float]] = {"ours": [], "few": [], "half": []}
    for _ in range(100):
        held_out = drawn(rng, count, often, 1.5)
        reached["ours"].append(f1(*fresh, label_thresholds.fit(*held_out)[0]))
        reached["few"].append(f1(*fresh, best_of_these(*held_out)))
        reached["half"].append(f1(*fresh, 0.5))
    assert np.mean(reached["ours"]) > np.mean(reached["few"]) + 0.01
    assert np.mean(reached["ours"]) > np.mean(reached["half"]) + 0.05


def test_a_threshold_lies_between_two_probabilities_and_within_bounds() -> None:
    rows = np.array([[0.99, 0.2, 1e-9], [0.99, 0.2, 1e-9], [0.01, 0.8, 1e-9]])
    truth = np.array([[True, False, False], [True, False, False], [False, True, False]])
    first, second, none = label_thresholds.fit(rows, truth)
    assert 0.01 < first < 0.99
    assert 0.2 < second < 0.8
    assert none == label_thresholds.LOWEST, "no image has it, and none is likely to"
