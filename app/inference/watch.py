"""Watches every image that a model answers, whatever was asked: a martingale over its embeddings, and its confidences.

A worker watches at most 256 images a second, chosen by nothing but the time: that costs less than 1 % of a core.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

import numpy as np

from app.bundle.drift import StreamScores
from app.bundle.martingale import FALSE_ALARM, Martingale
from app.bundle.sets import PredictionSets
from app.inference.answer import EMBEDDING, PROBABILITIES, Outputs

_TOGETHER, _EVERY_S = 64, 0.25  # images that are scored together, and the least seconds between
_FEWEST = 100  # fewest images for an estimate of the accuracy
_LARGEST = 700.0  # of a logarithm, so that the number is finite


@dataclass(frozen=True, slots=True)
class Watched:
    images: int
    martingale: float
    threshold: float  # raises the alarm
    alarm_at: int | None  # images after which it was raised
    history: list[tuple[int, float]]  # (images, martingale)
    accuracy: tuple[float, float, float] | None  # estimate, low and high


class Watch:
    def __init__(
        self,
        scores: StreamScores,
        sets: PredictionSets | None,
        workers: int = 1,
        rng: np.random.Generator | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With several `workers` each has a martingale of its own, and needs as many times the capital for the alarm:
        so together they raise a false one as rarely as one alone."""
        assert scores.calibration is not None
        self._scores, self._sets, self._clock = scores, sets, clock
        self._threshold = workers / FALSE_ALARM
        self._martingale = Martingale(scores.calibration, rng or np.random.default_rng())
        self._waiting: list[Outputs] = []
        self._count, self._due = 0, 0.0
        self._confidence, self._classified = 0.0, 0
        self._lock = Lock()

    def add(self, batch: list[Outputs]) -> None:
        with self._lock:
            if self._count >= _TOGETHER:
                now = self._clock()
                if now < self._due:
                    return
                self._due = now + _EVERY_S
                self._look()
            self._waiting += batch
            self._count += sum(len(outputs[EMBEDDING]) for outputs in batch)

    def state(self) -> Watched:
        with self._lock:
            self._look()
            martingale, sets, count = self._martingale, self._sets, self._classified
            known = sets is not None and count >= _FEWEST
            points = dict([*martingale.history, (martingale.images, martingale.log_capital)])
            return Watched(
                images=martingale.images,
                martingale=_number(martingale.log_capital),
                threshold=self._threshold,
                alarm_at=martingale.alarm_at,
                history=[(images, _number(log_capital)) for images, log_capital in points.items()],
                accuracy=sets.accuracy(self._confidence / count, count) if sets is not None and known else None,
            )

    def _look(self) -> None:
        waiting, self._waiting, self._count = self._waiting, [], 0
        if not waiting:
            return
        embeddings = np.concatenate([outputs[EMBEDDING] for outputs in waiting])
        finite = np.isfinite(embeddings).all(axis=1)
        self._martingale.add(self._scores.of(embeddings[finite]), self._threshold)
        for outputs in waiting:
            if PROBABILITIES in outputs:
                self._confidence += float(outputs[PROBABILITIES].max(axis=1).sum())
                self._classified += len(outputs[PROBABILITIES])


def _number(logarithm: float) -> float:
    return math.exp(min(logarithm, _LARGEST))
