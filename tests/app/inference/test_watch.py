import numpy as np
import pytest

from app.bundle.drift import StreamScores
from app.bundle.sets import PredictionSets, arrays_of
from app.inference.answer import EMBEDDING, PROBABILITIES, Outputs
from app.inference.watch import Watch

D, K = 12, 4
RNG = np.random.default_rng(0)


def codes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)


def drawn(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a model that is too sure of itself, and labels."""
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.ones(K) / 3, size=count)
    labels = (np.cumsum(0.8 * rows + 0.2 / K, axis=1) < rng.random((count, 1))).sum(axis=1)
    return rows, np.minimum(labels, K - 1)


REFERENCE = codes(500, 0)
BASIS = StreamScores.basis_of(REFERENCE)
SCORES = StreamScores(REFERENCE, BASIS, StreamScores(REFERENCE, BASIS).of(codes(1000, 1)))
SETS = PredictionSets(arrays_of(*drawn(1000, 0)), K)


def outputs(embeddings: np.ndarray, rows: np.ndarray | None = None) -> list[Outputs]:
    found = {EMBEDDING: embeddings}
    return [found if rows is None else {**found, PROBABILITIES: rows}]


def watch(workers: int = 1, every: float = 1.0) -> Watch:
    """Its clock goes on by `every` seconds at each look."""
    ticks = iter(np.arange(1, 100_000) * every)
    return Watch(SCORES, SETS, workers, np.random.default_rng(0), lambda: float(next(ticks)))


def fed(watched: Watch, embeddings: np.ndarray, rows: np.ndarray | None = None, size: int = 8) -> Watch:
    for start in range(0, len(embeddings), size):
        part = slice(start, start + size)
        watched.add(outputs(embeddings[part], None if rows is None else rows[part]))
    return watched


def test_every_image_is_seen_whatever_was_asked() -> None:
    state = fed(watch(), codes(333, 2)).state()
    assert state.images == 333
    assert state.accuracy is None, "no request classified"
    assert state.alarm_at is None
    assert state.history[0] == (0, 1.0)
    assert state.history[-1] == (333, pytest.approx(state.martingale))


@pytest.mark.parametrize("change", [lambda x: x + 0.8, lambda x: 0.6 * x, lambda x: 1.5 * x])
def test_moved_embeddings_raise_the_alarm(change: object) -> None:
    watched = fed(watch(), codes(1000, 3))
    assert watched.state().alarm_at is None
    assert callable(change)
    state = fed(watched, change(codes(300, 4))).state()
    assert state.alarm_at is not None
    assert 1000 < state.alarm_at <= 1300


def test_several_workers_need_as_many_times_the_capital() -> None:
    one, four = (fed(watch(workers), codes(200, 4) + 0.8).state() for workers in (1, 4))
    assert (one.threshold, four.threshold) == (100, 400)
    assert one.alarm_at is not None
    assert four.alarm_at is not None
    assert one.alarm_at < four.alarm_at


def test_a_busy_worker_watches_some_images_and_keeps_few() -> None:
    watched = fed(watch(every=0.001), codes(4000, 5))
    assert watched._count <= 64 + 8
    assert watched.state().images < 4000 / 10


def test_the_accuracy_is_estimated_from_confidences_with_the_calibration_images_errors() -> None:
    inside, off = [], []
    for seed in range(100):
        rows, labels = drawn(400, 100 + seed)
        accuracy = fed(watch(), codes(400, seed), rows, size=400).state().accuracy
        assert accuracy is not None
        value, low, high = accuracy
        truth = float((rows.argmax(axis=1) == labels).mean())
        inside.append(low <= truth <= high)
        off.append(value - truth)
    assert np.mean(inside) >= 0.9
    assert abs(np.mean(off)) < 0.02
    rows, labels = drawn(4000, 1)
    assert rows.max(axis=1).mean() - (rows.argmax(axis=1) == labels).mean() > 0.05, "confidence alone would be wrong"


def test_a_few_images_are_no_accuracy_and_one_that_is_not_a_number_is_left_out() -> None:
    rows, _ = drawn(99, 1)
    state = fed(watch(), codes(99, 1), rows).state()
    assert (state.images, state.accuracy) == (99, None)
    watched = watch()
    watched.add(outputs(np.full((3, D), np.nan, np.float32)))
    assert watched.state().images == 0


@pytest.mark.parametrize(
    ("basis", "calibration", "name"),
    [
        (np.zeros((D + 1, 2)), np.zeros((9, 3)), "drift.basis"),
        (np.zeros((D, 2)), np.zeros((9, 2)), "drift.scores"),
        (np.zeros((D, 2)), np.full((9, 3), np.nan), "drift.scores"),
    ],
)
def test_arrays_that_do_not_fit_are_named(basis: np.ndarray, calibration: np.ndarray, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        StreamScores(REFERENCE, basis, calibration)
