"""Successive halving under a budget, on contenders whose logits are made up."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from training.errors import TrainingError
from training.progress import track
from training.search.race import FILE, Budget, Contender, best, losses_of, race

FOLDS, IMAGES = 4, 80
LABELS = np.arange(IMAGES) % 2


class Made:
    """As good as `skill` says, and as slow as `seconds`: what a race asks of a crossing."""

    encodes_once = False

    def __init__(self, skill: float, seconds: float = 0, seed: int = 0, interrupted: bool = False) -> None:
        rng = np.random.default_rng(seed)
        towards = np.where(LABELS, skill, -skill) + rng.normal(size=IMAGES)
        self.all = np.stack([-towards, towards], axis=1)
        self.material = SimpleNamespace(target=SimpleNamespace(truth=LABELS))
        self.seconds, self.interrupted, self.crossed = seconds, interrupted, set[int]()

    def __len__(self) -> int:
        return FOLDS

    def held(self, number: int) -> np.ndarray:
        return np.arange(IMAGES) % FOLDS == number

    def logits(self, number: int) -> np.ndarray:
        if self.interrupted:
            raise KeyboardInterrupt
        if number not in self.crossed:
            for _ in track(range(10), "fold", 10):
                time.sleep(self.seconds / 10)
        self.crossed.add(number)
        return self.all[self.held(number)]


def contender(name: str, made: Made, guess: float = 0.0) -> Contender:
    opened: Any = made
    return Contender(name, name, lambda: opened, guess)


def test_one_that_is_behind_after_a_fold_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Made(2), Made(-1, seed=1)
    finished = race([contender("good", good), contender("bad", bad)], tmp_path, Budget(60))
    assert [each.contender.name for each in finished] == ["good"]
    assert bad.crossed == {0}
    assert "bad: behind after 1 of 4 folds" in capsys.readouterr().err


def test_a_better_one_that_comes_later_is_chosen_and_one_that_is_no_better_is_not(tmp_path: Path) -> None:
    finished = race([contender("first", Made(0.5)), contender("better", Made(3, seed=1))], tmp_path / "a", Budget(60))
    assert best(finished).contender.name == "better"
    first, alike = Made(2), Made(2)
    for seed in range(100):  # until it has a lower loss, by luck
        alike.all = first.all + np.random.default_rng(seed).normal(scale=0.5, size=first.all.shape)
        found = race([contender("first", first), contender("alike", alike)], tmp_path / f"{seed}", Budget(60))
        if len(found) == 2 and found[1].loss < found[0].loss:
            break
    assert found[1].loss < found[0].loss
    assert best(found).contender.name == "first"


def test_what_would_not_end_in_time_does_not_begin_and_the_first_ends_whatever_it_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = Made(3)
    finished = race([contender("first", Made(1)), contender("slow", slow, guess=1e6)], tmp_path, Budget(60))
    assert [each.contender.name for each in finished] == ["first"]
    assert not slow.crossed
    assert "slow: left out: a first fold and the network would take" in capsys.readouterr().err
    assert len(race([contender("first", Made(1, seconds=0.1))], tmp_path / "none", Budget(0))) == 1


def test_one_that_is_slower_than_guessed_is_stopped_in_the_middle(tmp_path: Path) -> None:
    slow = Made(3, seconds=600)
    budget = Budget(2)
    finished = race([contender("first", Made(1)), contender("slow", slow)], tmp_path, budget)
    assert [each.contender.name for each in finished] == ["first"]
    assert not slow.crossed


def test_ctrl_c_goes_on_with_what_has_finished(tmp_path: Path) -> None:
    finished = race([contender("first", Made(1)), contender("other", Made(2, interrupted=True))], tmp_path, Budget(60))
    assert [each.contender.name for each in finished] == ["first"]
    with pytest.raises(KeyboardInterrupt):
        race([contender("first", Made(1, interrupted=True))], tmp_path / "none", Budget(60))


def test_losses_are_those_of_each_image_at_the_best_temperature() -> None:
    made: Any = Made(2)
    sure: Any = Made(2)
    sure.all = 100 * made.all
    losses = losses_of(made, range(FOLDS))
    assert losses.shape == (IMAGES,)
    assert np.isnan(losses_of(made, range(1))).sum() == IMAGES * 3 // 4
    assert abs(losses_of(sure, range(FOLDS)).mean() - losses.mean()) < 0.05, "confidence alone is no fault"


def test_the_loss_of_several_labels_is_their_mean_binary_cross_entropy() -> None:
    made: Any = Made(2)
    made.all = np.repeat(made.all[:, 1:], 2, axis=1)  # (N, 2) logits of two labels that are always the same
    made.material.target.truth = np.stack([LABELS == 1] * 2, axis=1)
    twice = losses_of(made, range(FOLDS))
    wrong = made.all[:, 0] * np.where(LABELS, 1, -1) < 0
    assert twice[~wrong].max() < np.log(2) < twice[wrong].min()
    made.all, made.material.target.truth = made.all[:, :1], made.material.target.truth[:, :1]
    assert abs(losses_of(made, range(FOLDS)).mean() - twice.mean()) < 0.05, "a mean, and no sum"


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 100)
    with pytest.raises(TrainingError, match="cannot be used as the record of a search"):
        race([contender("first", Made(1))], tmp_path, Budget(60))
