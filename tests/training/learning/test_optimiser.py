from typing import Literal

import pytest

from training.learning.optimiser import rate_at
from training.recipe import Stage


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_the_rate_rises_then_falls_to_nothing(schedule: Literal["cosine", "one-cycle"]) -> None:
    rates = [rate_at(Stage(rate=0.1, schedule=schedule), step, 1000) for step in range(1000)]
    peak = rates.index(max(rates))
    assert (peak < 100) == (schedule == "cosine")
    assert max(rates) == pytest.approx(0.1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-6
    assert rate_at(Stage(rate=0.1), 0, 1) == 0.1
    assert {rate_at(Stage(rate=0.1, schedule="constant"), step, 9) for step in range(9)} == {0.1}
