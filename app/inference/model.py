"""A bundle as it is served: with its batcher, and what it was measured to take."""

import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.session import CPU
from app.inference.answer import DISTANCES, EMBEDDING, EXPLANATION, LOGITS, RECONSTRUCTION, Outputs, Wish, answer
from app.inference.batcher import Batcher
from app.inference.drift import Window

_MOST_ON_LOOP_S = 0.002  # for which nobody notices that the event loop stands still; a thread costs 30 µs a request
_SOME = 16  # images, of which a batch is timed beside one of a single image
_TRIES, _TRIED_S = 5, 0.05  # the best of some tries, for the first are cold; slow models are tried less
_BY_OPERATION = {"classify": LOGITS, "reconstruct": RECONSTRUCTION, "anomaly": DISTANCES, "explain": EXPLANATION}

Ran = Callable[[str, int, int, float], None]  # hears of every batch: model, version, images, seconds


class Model:
    """Nothing that it holds holds it in turn: with the last request that uses it, it is freed at once."""

    def __init__(self, bundle: Bundle, most: int, pool: Executor, ran: Ran) -> None:
        """`most` images make a batch."""
        self.bundle = bundle
        self.name = f"{bundle.name}@{bundle.version}"
        costs = _Costs(bundle)
        everything = frozenset(costs.beyond)
        self.seconds = costs.expected(1, everything)  # to answer everything of one image
        self.most_on_loop = next(n for n in range(most, -1, -1) if costs.expected(n, everything) <= _MOST_ON_LOOP_S)
        self.drift = window = None if bundle.drift is None else Window(bundle, bundle.drift)
        self.batcher: Batcher[Wish, Outputs] = Batcher(
            lambda wishes: answer(bundle, wishes) if window is None else window.saw(answer(bundle, wishes)),
            most,
            pool,
            costs.on_loop,
            lambda images, seconds: ran(bundle.name, bundle.version, images, seconds),
        )


class _Costs:
    """What a bundle was measured to take: `encoding`, and `beyond` it by output."""

    def __init__(self, bundle: Bundle) -> None:
        able = [output for operation, output in _BY_OPERATION.items() if operation in bundle.operations]
        self.encoding = _measured(bundle, [])
        self.beyond = {output: _measured(bundle, [output]) - self.encoding for output in able}

    def on_loop(self, wishes: Sequence[Wish]) -> bool:
        """Whether they take so short a time together that the loop may run them itself."""
        outputs = wishes[0].outputs.union(*(wish.outputs for wish in wishes[1:]))
        return self.expected(sum(map(len, wishes)), outputs) <= _MOST_ON_LOOP_S

    def expected(self, images: int, outputs: Collection[str]) -> float:
        """Seconds, if all of the images want all of the outputs."""
        if not images:
            return 0.0
        costs = [self.encoding, *(self.beyond[output] for output in outputs if output in self.beyond)]
        return float(sum(cost.once + images * cost.each for cost in costs))


@dataclass(frozen=True, slots=True)
class _Cost:
    """Seconds that a batch takes, and each image in it."""

    once: float
    each: float

    def __sub__(self, other: "_Cost") -> "_Cost":
        return _Cost(max(0.0, self.once - other.once), max(0.0, self.each - other.each))


def _measured(bundle: Bundle, outputs: Sequence[str]) -> _Cost:
    one = _best_of_some(bundle, 1, outputs)
    if one > _MOST_ON_LOOP_S:  # never on the loop: how little more a batch takes is of no interest
        return _Cost(0.0, one)
    each = max(0.0, _best_of_some(bundle, _SOME, outputs) - one) / (_SOME - 1)
    return _Cost(max(0.0, one - each), each)


def _best_of_some(bundle: Bundle, images: int, outputs: Sequence[str]) -> float:
    """Of this thread alone, where that can be told: while a model is measured, another may answer under full load."""
    alone = bundle.encoder.provider in CPU and sys.platform != "win32"
    clock = time.thread_time if alone else time.perf_counter
    wish = Wish(np.zeros((images, *bundle.manifest.input.shape), np.uint8), frozenset({EMBEDDING, *outputs}))
    times: list[float] = []
    while len(times) < _TRIES and sum(times) < _TRIED_S:
        start = clock()
        answer(bundle, [wish])
        times.append(clock() - start)
    return min(times)
