"""A bundle as it is served: with its batcher, and what it was measured to take."""

import time
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from app.bundle.bundle import Bundle
from app.inference.answer import DISTANCES, EMBEDDING, LOGITS, RECONSTRUCTION, Outputs, Wish, answer
from app.inference.batcher import Batcher

_MOST_ON_LOOP_S = 0.002  # for which nobody notices that the event loop stands still; a thread costs 30 µs a request
_TRIES = 5


Ran = Callable[[str, int, int, float], None]  # hears of every batch: model, version, images, seconds


class Model:
    def __init__(self, bundle: Bundle, most: int, pool: Executor, ran: Ran) -> None:
        """`most` images make a batch."""
        self.bundle = bundle
        self.name = f"{bundle.name}@{bundle.version}"
        self.seconds = self._measured()
        self.most_on_loop = int(_MOST_ON_LOOP_S / self.seconds)
        self.batcher: Batcher[Wish, Outputs] = Batcher(
            lambda wishes: answer(bundle, wishes),
            most,
            pool,
            self.most_on_loop,
            lambda images, seconds: ran(bundle.name, bundle.version, images, seconds),
        )

    def _measured(self) -> float:
        """Seconds to answer everything of one image: the best of a few, for the first ones are cold."""
        image = np.zeros((1, *self.bundle.manifest.input.shape), np.uint8)
        able = {"classify": LOGITS, "reconstruct": RECONSTRUCTION, "anomaly": DISTANCES}
        wished = {output for operation, output in able.items() if operation in self.bundle.operations}
        wish = Wish(image, frozenset({EMBEDDING, *wished}))
        times = []
        for _ in range(_TRIES):
            start = time.perf_counter()
            answer(self.bundle, [wish])
            times.append(time.perf_counter() - start)
        return min(times)
