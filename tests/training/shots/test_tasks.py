import numpy as np
import pytest

from training.shots.tasks import distance

RNG = np.random.default_rng(0)


def test_the_distance_is_in_units_of_what_fills_the_space() -> None:
    known = RNG.normal(size=(4000, 3))
    assert distance(RNG.normal(size=(4000, 3)), known) < 0.1
    near, far = (distance(RNG.normal(size=(500, 3)) + step, known) for step in (1, 2))
    assert near == pytest.approx(1, abs=0.1)
    assert far == pytest.approx(2, abs=0.1)
    assert distance(7 * (known + 1) + 3, 7 * known + 3) == pytest.approx(distance(known + 1, known)), "any scale"
