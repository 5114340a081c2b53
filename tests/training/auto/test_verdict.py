from dataclasses import replace

import numpy as np
import pytest
from support import draw_folder

from training.auto.look import Found, look
from training.auto.verdict import NO_BETTER, of_classes
from training.data.folds import Folds
from training.publish.crossed import Crossed

IMAGES, KINDS = 60, 3


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    kinds = draw_folder(tmp_path_factory.mktemp("kinds") / "kinds", 4, seed=0)
    seen = look(str(kinds))
    return replace(seen, train=replace(seen.train, classes=seen.train.classes[:KINDS]))


def verdict(found: Found, wrong: int, pixels: float | None) -> str:
    """Of so many of the images the answer is another kind."""
    labels = np.arange(IMAGES) % KINDS
    logits = np.eye(KINDS, dtype=np.float32)[(labels + (np.arange(IMAGES) < wrong)) % KINDS]
    crossed = Crossed(Folds(np.arange(IMAGES)[None] // KINDS % 4, "each image by itself"), logits[None], None, labels)
    said = of_classes(found, crossed, tested=None, pixels=pixels, chosen="a network", others=[], curve=None)
    return " ".join(said)


@pytest.mark.parametrize("pixels", [None, 0.35])
def test_what_neither_network_nor_pixels_learn_may_have_wrong_labels(found: Found, pixels: float | None) -> None:
    said = verdict(found, 40, pixels)
    assert NO_BETTER in said
    assert "look whether the labels are right" in said


def test_where_pixels_do_better_than_chance_it_was_the_training(found: Found) -> None:
    said = verdict(found, 40, 0.7)
    assert NO_BETTER in said
    assert "by pixels alone, 70% would be right, so it was the training that failed" in said
    assert "labels" not in said


def test_a_network_that_has_learnt_is_not_called_chance(found: Found) -> None:
    assert NO_BETTER not in verdict(found, 6, 0.7)
