"""A bundle as it is served: with its batcher, and what it was measured to take."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from app.bundle.bundle import Bundle
from app.inference.answer import DISTANCES, EMBEDDING, EXPLANATION, LOGITS, RECONSTRUCTION, Outputs, Wish, answer
from app.inference.batcher import Batcher

_MOST_ON_LOOP_S = 0.002  # for which nobody notices that the event loop stands still; a thread costs 30 µs a request
_TRIES, _TRIED_S = 5, 0.05  # the best of some tries, for the first are cold; slow models are tried less
_BY_OPERATION = {"classify": LOGITS, "reconstruct": RECONSTRUCTION, "anomaly": DISTANCES, "explain": EXPLANATION}

Ran = Callable[[str, int, int, float], None]  # hears of every batch: model, version, images, seconds


class Model:
    def __init__(self, bundle: Bundle, most: int, pool: Executor, ran: Ran) -> None:
        """`most` images make a batch."""
        self.bundle = bundle
        self.name = f"{bundle.name}@{bundle.version}"
        self._encoding = self._measured([])
        self._beyond = {
            output: max(0.0, self._measured([output]) - self._encoding)
            for operation, output in _BY_OPERATION.items()
            if operation in bundle.operations
        }
        self.seconds = self._encoding + sum(self._beyond.values())  # to answer everything of one image
        self.most_on_loop = int(_MOST_ON_LOOP_S / self.seconds)
        self.batcher: Batcher[Wish, Outputs] = Batcher(
            lambda wishes: answer(bundle, wishes),
            most,
            pool,
            self._on_loop,
            lambda images, seconds: ran(bundle.name, bundle.version, images, seconds),
        )

    def _on_loop(self, wishes: Sequence[Wish]) -> bool:
        """Whether they take so short a time together that the loop may run them itself."""
        total = 0.0
        for wish in wishes:
            each = self._encoding + sum(self._beyond.get(output, 0.0) for output in wish.outputs)
            total += len(wish) * each
        return total <= _MOST_ON_LOOP_S

    def _measured(self, outputs: Sequence[str]) -> float:
        """Seconds to answer these of one image."""
        wish = Wish(np.zeros((1, *self.bundle.manifest.input.shape), np.uint8), frozenset({EMBEDDING, *outputs}))
        times: list[float] = []
        while len(times) < _TRIES and sum(times) < _TRIED_S:
            start = time.perf_counter()
            answer(self.bundle, [wish])
            times.append(time.perf_counter() - start)
        return min(times)
