import math

import pytest

from training.auto.verdict import by_chance


@pytest.mark.parametrize(
    ("right", "images", "commonest", "expected"),
    [
        (20, 60, 1 / 3, True),
        (27, 60, 1 / 3, True),  # a little better than guessing, as one in twenty shuffles is
        (40, 60, 1 / 3, False),
        (60, 60, 0.5, False),
        (900, 1000, 0.9, True),  # the commonest class alone gets that
        (5, 5, 1.0, True),
        (0, 10, 0.5, True),
    ],
)
def test_what_guessing_would_reach_is_chance(right: int, images: int, commonest: float, expected: bool) -> None:
    assert by_chance(right, images, commonest) is expected


def test_chance_is_the_tail_of_the_binomial_distribution_times_the_tries() -> None:
    tail = sum(math.comb(20, k) for k in range(17, 21)) / 2**20
    assert 1e-3 < tail < 2e-3
    assert by_chance(17, 20, 0.5)
    assert not by_chance(18, 20, 0.5)
    assert by_chance(18, 20, 0.5, tries=10)
