"""A served bundle: with its batcher and its measured run times."""

import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.session import CPU
from app.inference.answer import (
    DISTANCES,
    EMBEDDING,
    EXPLANATION,
    LOGITS,
    NEAREST,
    RECONSTRUCTION,
    OutputRequest,
    Outputs,
    answer,
)
from app.inference.batcher import Batcher
from app.inference.drift import Window
from app.inference.tuning import State, Tuning

_MOST_ON_LOOP_S = 0.002  # so long may a batch block the event loop; a thread costs 30 µs per request
_BATCH = 16  # images in the larger of the two batches that are timed
_TRIES, _TIMED_S = 5, 0.05  # the best of these counts; a slow model gets fewer tries
_TRIES_AT_START = 2  # which must not take long; the golden pairs have warmed the graphs
_BY_OPERATION = {
    "classify": LOGITS,
    "reconstruct": RECONSTRUCTION,
    "anomaly": DISTANCES,
    "explain": EXPLANATION,
    "similar": NEAREST,
}

OnBatch = Callable[[str, int, int, float], None]  # called after each batch: model, version, images, seconds


class Model:
    """It must not be part of a reference cycle: it is freed with the last request that uses it, without the gc."""

    def __init__(
        self,
        bundle: Bundle,
        most: int,
        pool: Executor,
        on_batch: OnBatch,
        workers: int = 1,
        tuning: State = "off",
    ) -> None:
        """`most`: images in a batch; `workers`: processes that serve the same model."""
        self.bundle = bundle
        self.name = f"{bundle.name}@{bundle.version}"
        self.tuning = Tuning(tuning)
        self._most, self._costs = most, _Costs()
        self.measure(_TRIES_AT_START)
        costs = self._costs  # for the batcher, which must not refer to this object
        self.drift = window = None if bundle.drift is None else Window(bundle, bundle.drift, workers)
        if bundle.tiled:  # batches are of tiles: the predictor adds the pictures that they make
            window, most = None, min(most, bundle.tiles_at_once)
        self.batcher: Batcher[OutputRequest, Outputs] = Batcher(
            lambda requests: answer(bundle, requests) if window is None else window.add(answer(bundle, requests)),
            most=most,
            pool=pool,
            on_loop=costs.on_loop,
            on_batch=lambda images, seconds: on_batch(bundle.name, bundle.version, images, seconds),
        )

    def measure(self, tries: int = _TRIES) -> None:
        """Measure the run times. Again where the graphs run in another way from now on; may be called in a thread."""
        costs, everything = self._costs, self._costs.measure(self.bundle, tries)
        self.seconds = costs.expected(1, everything)  # all outputs of one image
        most_on_loop = (n for n in range(self._most, -1, -1) if costs.expected(n, everything) <= _MOST_ON_LOOP_S)
        self.most_on_loop = next(most_on_loop)


class _Costs:
    """Measured run times of a bundle: `encoding`, and `additional`: output → what it takes in addition."""

    def measure(self, bundle: Bundle, tries: int) -> Collection[str]:
        """Returns the outputs."""
        able = [output for operation, output in _BY_OPERATION.items() if operation in bundle.operations]
        encoding = _measured(bundle, [], tries)
        self.additional = {output: _measured(bundle, [output], tries) - encoding for output in able}
        self.encoding = encoding
        return self.additional

    def on_loop(self, requests: Sequence[OutputRequest]) -> bool:
        """Whether a batch of them is short enough to run on the event loop."""
        outputs = requests[0].outputs.union(*(request.outputs for request in requests[1:]))
        return self.expected(sum(map(len, requests)), outputs) <= _MOST_ON_LOOP_S

    def expected(self, images: int, outputs: Collection[str]) -> float:
        """Seconds for all of these outputs of all of these images."""
        if not images:
            return 0.0
        costs = [self.encoding, *(self.additional[output] for output in outputs if output in self.additional)]
        return float(sum(cost.once + images * cost.each for cost in costs))


@dataclass(frozen=True, slots=True)
class _Cost:
    """Seconds: `once` per batch, and `each` per image in it."""

    once: float
    each: float

    def __sub__(self, other: "_Cost") -> "_Cost":
        return _Cost(max(0.0, self.once - other.once), max(0.0, self.each - other.each))


def _measured(bundle: Bundle, outputs: Sequence[str], tries: int) -> _Cost:
    one = _best_time(bundle, 1, outputs, tries)
    if one > _MOST_ON_LOOP_S:  # it never runs on the loop, so a batch's cost per image need not be known
        return _Cost(0.0, one)
    each = max(0.0, _best_time(bundle, _BATCH, outputs, tries) - one) / (_BATCH - 1)
    return _Cost(max(0.0, one - each), each)


def _best_time(bundle: Bundle, images: int, outputs: Sequence[str], tries: int) -> float:
    """This thread's CPU time where possible: another model may be answering under full load meanwhile."""
    on_cpu = bundle.encoder.provider in CPU and sys.platform != "win32"
    clock = time.thread_time if on_cpu else time.perf_counter
    request = OutputRequest(
        np.zeros((images, *bundle.manifest.input.shape), np.uint8), frozenset({EMBEDDING, *outputs})
    )
    times: list[float] = []
    while len(times) < tries and sum(times) < _TIMED_S:
        start = clock()
        answer(bundle, [request])
        times.append(clock() - start)
    return min(times)
