import numpy as np
import pytest

from app.bundle.martingale import Martingale

THRESHOLD = 100.0
S = 3


def usual(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.gamma(4, 0.25, size=(count, S)).astype(np.float32)


def after(calibration: int, *parts: np.ndarray, seed: int = 0) -> Martingale:
    martingale = Martingale(usual(np.random.default_rng(seed), calibration), np.random.default_rng(seed + 1))
    for part in parts:
        martingale.add(part, THRESHOLD)
    return martingale


def test_p_values_are_the_ranks_among_all_before() -> None:
    """Scores on levels of their own, so that no tie has to be drawn."""
    rng = np.random.default_rng(0)
    scores = 2.0 ** rng.permutation(np.linspace(-8, 8, 300))[:, None]
    martingale = Martingale(scores[:100], np.random.default_rng(1))
    found = []
    martingale._bet = lambda p: found.append(p) or np.zeros(p.shape[1])  # type: ignore[method-assign, func-returns-value]
    martingale.add(scores[100:], THRESHOLD)
    p = np.concatenate(found, axis=1)[0]
    for at, value in enumerate(p):
        higher = int((scores[: 100 + at] > scores[100 + at]).sum())
        assert higher / (101 + at) <= value <= (higher + 1) / (101 + at)


def test_ties_are_drawn_so_that_p_values_of_equal_scores_are_uniform() -> None:
    martingale = Martingale(np.ones((50, 1)), np.random.default_rng(0))
    found = []
    martingale._bet = lambda p: found.append(p) or np.zeros(p.shape[1])  # type: ignore[method-assign, func-returns-value]
    martingale.add(np.ones((2000, 1)), THRESHOLD)
    p = np.sort(np.concatenate(found, axis=1)[0])
    assert np.abs(p - np.linspace(0, 1, len(p))).max() < 0.04


def test_bets_are_fair() -> None:
    """On average over the next p-value the capital stays as it is, whatever it has won before.

    By an integral over x with p = x⁴ / 2 and 1 - p: a mean of drawn capitals would miss the rare large ones.
    """

    def capital(*p: float) -> float:
        martingale = Martingale(np.ones((50, 1)), np.random.default_rng(0))
        return float(np.exp(martingale._bet(np.array([p]))[-1]))

    x = (np.arange(300) + 0.5) / 300
    for before in ([], [0.5], [0.001], [0.999, 0.002]):
        ends = [(capital(*before, p), capital(*before, 1 - p)) for p in x**4 / 2]
        mean = float((np.sum(ends, axis=1) * 2 * x**3).mean())
        assert mean == pytest.approx(capital(*before) if before else 1, rel=1e-3)
    assert capital(0.001) > 1.05


@pytest.mark.parametrize("calibration", [100, 1000])
def test_a_stream_without_a_change_raises_no_alarm(calibration: int) -> None:
    """One in a hundred may; `make drift` measures it over a thousand longer ones."""
    alarms = sum(
        after(calibration, usual(np.random.default_rng(1000 + seed), 1500), seed=seed).alarm_at is not None
        for seed in range(60)
    )
    assert alarms <= 2


@pytest.mark.parametrize("before", [0, 5000])
@pytest.mark.parametrize("change", ["higher", "lower", "a fifth far off"])
def test_a_change_is_noticed_and_its_moment_is_kept(before: int, change: str) -> None:
    rng = np.random.default_rng(0)
    changed = usual(rng, 600)
    if change == "a fifth far off":
        changed[::5, 0] += 3
    else:
        changed[:, 0] *= 1.6 if change == "higher" else 0.6
    martingale = after(1000, usual(rng, before), changed)
    assert martingale.alarm_at is not None
    assert before < martingale.alarm_at <= before + 250
    assert martingale.highest >= np.log(THRESHOLD)
    noticed_at = martingale.alarm_at
    martingale.add(usual(rng, 1000), THRESHOLD)
    assert martingale.alarm_at == noticed_at, "it stays"


def test_images_one_by_one_give_what_they_give_together() -> None:
    rows = usual(np.random.default_rng(5), 130)
    together, alone = after(100, rows), after(100, *(rows[i : i + 1] for i in range(130)))
    assert together.images == alone.images == 130
    np.testing.assert_array_equal(together._counts, alone._counts)
    assert len(together.history) == len(alone.history) == 131
    assert after(100, np.empty((0, S))).history == [(0, 0.0)]


def test_memory_does_not_grow_with_the_stream() -> None:
    martingale = after(100)
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(3):
        martingale.add(usual(rng, 3000), THRESHOLD)
        assert 100 <= len(martingale.history) <= 256
        assert [point.images for point in martingale.history] == sorted({p.images for p in martingale.history})
        sizes.add((martingale._counts.nbytes, martingale._log_bets.nbytes))
    assert len(sizes) == 1


def test_scores_of_zero_and_beyond_all_levels_do_no_harm() -> None:
    odd = np.array([[0, 1e30, np.inf], [1e-30, 5, 70_000]], np.float32)
    martingale = after(100, np.repeat(odd, 200, axis=0))
    assert np.isfinite(martingale.log_capital)
    assert martingale.alarm_at is not None
