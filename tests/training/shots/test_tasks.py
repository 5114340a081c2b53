from pathlib import Path

import numpy as np
import pytest
from support import save_tiny

from training.errors import TrainingError
from training.shots.tasks import bundles_in, distance

RNG = np.random.default_rng(0)


def test_the_distance_is_in_units_of_what_fills_the_space() -> None:
    known = RNG.normal(size=(4000, 3))
    assert distance(RNG.normal(size=(4000, 3)), known) < 0.1
    near, far = (distance(RNG.normal(size=(500, 3)) + step, known) for step in (1, 2))
    assert near == pytest.approx(1, abs=0.1)
    assert far == pytest.approx(2, abs=0.1)
    assert distance(7 * (known + 1) + 3, 7 * known + 3) == pytest.approx(distance(known + 1, known)), "any scale"


def test_a_bundle_a_model_and_a_folder_of_models_are_told_apart(tmp_path: Path) -> None:
    first, second = save_tiny(tmp_path, "one"), save_tiny(tmp_path, "one")
    other = save_tiny(tmp_path, "other")
    assert bundles_in(first) == [first]
    assert bundles_in(tmp_path / "one") == [second]
    assert bundles_in(tmp_path) == [second, other]


def test_what_holds_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nowhere: not there; give a bundle"):
        bundles_in(tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="no bundle in it"):
        bundles_in(tmp_path)
