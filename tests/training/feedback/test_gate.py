"""The checks of the gate: what chance explains passes or fails as it should."""

import numpy as np
import pytest

from training.feedback import gate

RNG = np.random.default_rng(0)


def bools(right: int, wrong: int) -> np.ndarray:
    return np.repeat([True, False], [right, wrong])


def test_better_has_to_be_more_than_chance() -> None:
    before = bools(50, 50)
    assert gate.better("", before, bools(60, 40)).passed
    few = gate.better("", before, bools(53, 47))
    assert not few.passed
    assert "3 images are judged rightly that were not, and 0 no longer" in few.reason
    assert not gate.better("", before, before).passed


def test_worse_is_refused_and_chance_is_not() -> None:
    assert gate.no_worse("", bools(100, 0), bools(98, 2)).passed
    assert not gate.no_worse("", bools(100, 0), bools(90, 10)).passed
    assert gate.no_worse("", bools(0, 9), bools(0, 9)).passed


def test_a_constant_answer_is_not_enough() -> None:
    labels = np.repeat([0, 1], [60, 40])
    assert not gate.more_than_a_constant("", labels == 0, labels).passed
    assert gate.more_than_a_constant("", np.ones(100, bool), labels).passed


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("favoured", [0.0, 6.0])
def test_right_labels_are_plausible_and_exchanged_ones_are_not(labels: int, favoured: float) -> None:
    """Also where the camera favours one label everywhere."""
    truth = RNG.integers(0, labels, 200)
    logits = RNG.normal(size=(200, labels)) * 1.5 + 2 * np.eye(labels)[truth]
    logits[:, 0] += favoured
    assert gate.plausible(logits, truth).passed
    assert not gate.plausible(logits, (truth + 1) % labels).passed
    drawn = (truth + RNG.integers(1, labels, 200)) % labels
    assert not gate.plausible(logits, drawn).passed


def test_defects_have_to_score_higher() -> None:
    sound, defects = RNG.normal(size=60), RNG.normal(size=40) + 1
    assert gate.ordered("", sound, defects).passed
    assert not gate.ordered("", defects, sound).passed
    assert not gate.ordered("", sound[:30], sound[30:]).passed


def test_the_table_has_a_line_for_each_check() -> None:
    check = gate.better("feedback held out", bools(5, 5), bools(9, 1))
    assert gate.table([check, check])[1] == "feedback held out  50.0% of 10  90.0% of 10  FAILED"


def test_a_coin() -> None:
    assert gate.by_chance(0, 0) == 1
    assert gate.by_chance(5, 5) == 1 / 32
    assert gate.by_chance(1, 2) == 0.75
