from typing import NamedTuple

import numpy as np
import pytest

from app.bundle.scoring import probabilities
from training.measure.metrics import calibration_error
from training.score import prototypes
from training.score.temperature import PROTOTYPES, TRAINED, Prior, fit

RNG = np.random.default_rng(0)
CLASSES = 10


class Kind(NamedTuple):
    """Simulated logits: `margin` is how far the classes lie apart, `true` the temperature that is right for them."""

    margin: float
    true: float


KINDS = {
    "well calibrated": Kind(3, 1.0),
    "overconfident": Kind(3, 2.5),
    "underconfident": Kind(3, 0.5),
    "hard": Kind(1, 1.0),
    "all right": Kind(20, 1.0),
    "all right, overconfident": Kind(20, 2.0),
    "all right, underconfident": Kind(20, 0.5),
}


def draw(rng: np.random.Generator, count: int, kind: Kind) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, K) logits, (N,) labels drawn by the chances that the logits give at `kind.true`, (N, K) those chances."""
    logits = rng.normal(size=(count, CLASSES))
    logits[np.arange(count), rng.integers(CLASSES, size=count)] += kind.margin * rng.gamma(4, 0.5, size=count)
    chances = probabilities(logits, 1.0)
    labels = (chances.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(max=CLASSES - 1)
    return (logits * kind.true).astype(np.float32), labels, chances


def errors(logits: np.ndarray, chances: np.ndarray, temperature: float) -> tuple[float, float]:
    """(calibration error, mean negative log-likelihood) by the true chances, free of chance in drawn labels."""
    served = probabilities(logits, temperature)
    top = served.argmax(axis=1)
    right = chances[np.arange(len(top)), top]
    return calibration_error(served.max(axis=1), right), float(-(chances * np.log(served + 1e-300)).sum(axis=1).mean())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("count", [10, 24, 90, 20_000])
def test_it_is_never_worse_than_none_by_more_than_chance(count: int, kind: Kind) -> None:
    """On fresh images, over many validation sets of `count` images.

    Chance is, of the calibration error, by how much the accuracy of so few images is off on average; of the likelihood,
    what one fitted number costs on average, half a nat over `count`.
    """
    rng = np.random.default_rng(count)
    fresh, _, chances = draw(rng, 3000, kind)
    accuracy = chances[np.arange(len(fresh)), fresh.argmax(axis=1)].mean()
    chance = np.sqrt(2 * accuracy * (1 - accuracy) / np.pi / count), 0.5 / count
    untouched = errors(fresh, chances, 1.0)
    excess = []
    for _ in range(2 if count > 1000 else 40):
        logits, labels, _ = draw(rng, count, kind)
        excess.append(np.subtract(errors(fresh, chances, fit(logits, labels)), untouched))
    mean, spread = np.mean(excess, axis=0), np.std(excess, axis=0, ddof=1) / np.sqrt(len(excess))
    assert (mean - 2 * spread <= chance).all()
    if kind.true != 1.0 and count >= 90:
        assert mean[0] < 0, "there is something to be gained, and it is"


@pytest.mark.parametrize("count", [24, 90])
def test_a_few_images_that_are_all_right_make_no_certainty(count: int) -> None:
    labels = RNG.integers(CLASSES, size=count)
    logits = np.eye(CLASSES)[labels] * 6 + RNG.normal(size=(count, CLASSES)) * 0.3
    assert (logits.argmax(axis=1) == labels).all()
    temperature = fit(logits, labels)
    assert 0.6 < temperature <= 1.0
    assert probabilities(logits, temperature).max() < 0.9999


def test_of_many_images_it_is_the_plain_fit() -> None:
    """The temperature that made the labels is found, and the prior moves it by less than a hundredth."""
    logits = RNG.normal(size=(20_000, 5)).astype(np.float32) * 3
    for true in (0.5, 1.0, 2.5):
        chances = probabilities(logits, true)
        labels = (chances.cumsum(axis=1) < RNG.random((len(logits), 1))).sum(axis=1)
        assert fit(logits, labels) == pytest.approx(true, rel=0.05)
        assert fit(logits, labels) == pytest.approx(fit(logits, labels, Prior(1.0, 0.0)), rel=2e-3)


def served(rng: np.random.Generator, shape: tuple[int, int], apart: float, prior: Prior) -> tuple[np.ndarray, float]:
    """(confidences, accuracy) on fresh points of one task of prototypes; `shape` is (classes, shots)."""
    classes, shots = shape
    centres = apart * rng.normal(size=(classes, 32))
    known, asked = np.repeat(np.arange(classes), shots), np.repeat(np.arange(classes), 100)
    points, fresh = (centres[each] + rng.normal(size=(len(each), 32)) for each in (known, asked))
    logits = prototypes.fit(points, known, "mahalanobis").logits(fresh)
    temperature = fit(prototypes.left_out(points, known, "mahalanobis"), known, prior)
    return probabilities(logits, temperature).max(axis=1), float((logits.argmax(axis=1) == asked).mean())


def test_prototypes_are_about_as_confident_as_they_are_accurate() -> None:
    """Over tasks from chance to perfect; no prior, and the prior of trained heads, do worse."""

    def error(prior: Prior) -> float:
        rng, found = np.random.default_rng(0), []
        for shape in ((2, 5), (5, 2), (5, 5), (5, 15)):
            for apart in (0.1, 0.3, 0.5, 1.0):
                for _ in range(10):
                    confidences, accuracy = served(rng, shape, apart, prior)
                    found.append(abs(confidences.mean() - accuracy))
        return float(np.mean(found))

    ours = error(PROTOTYPES)
    assert ours < 0.1
    assert ours < error(Prior(3.0, 0.0))
    assert ours < error(TRAINED)


@pytest.mark.parametrize("shots", [2, 5])
def test_prototypes_of_a_few_images_that_are_all_right_make_no_certainty(shots: int) -> None:
    for prior, least, most in ((PROTOTYPES, 0.85, 0.999), (Prior(3.0, 0.0), 0.99999, 1.0)):
        confidences, accuracy = served(np.random.default_rng(0), (4, shots), 3.0, prior)
        assert accuracy == 1
        assert least <= confidences.mean() <= most


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_of_several_labels_it_is_found_over_all_of_them(true: float) -> None:
    rng = np.random.default_rng(3)
    calibrated = rng.normal(-1, 2, (400, 5))
    truth = rng.random(calibrated.shape) < 1 / (1 + np.exp(-calibrated))
    found = fit(calibrated * true, truth)
    assert found == pytest.approx(true, rel=0.12)


def test_a_few_images_of_several_labels_all_right_do_not_make_it_sure() -> None:
    truth = np.random.default_rng(3).random((6, 3)) < 0.5
    assert 0.3 < fit(np.where(truth, 9.0, -9.0), truth) < 1
