"""Compares a model's latest images with its reference. Only outputs that requests computed anyway are stored."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.drift import DriftReference, stability
from app.bundle.scoring import confidences, label_probabilities
from app.inference.answer import DISTANCES, EMBEDDING, LOGITS, Outputs
from app.inference.watch import Watch, Watched

ALARM = 0.01  # images with a p-value below this have drifted
_FEWEST = 50  # fewest values for a population stability


@dataclass(frozen=True, slots=True)
class Drift:
    """None means unknown: too few images yet, or no request for that output."""

    images: int  # compared
    window: int  # needed for a discrepancy
    discrepancy: float | None
    p_value: float | None
    confidence: float | None  # population stability
    anomaly_score: float | None  # population stability
    watched: Watched | None = None  # None: the bundle has no scores for a martingale

    @property
    def drifted(self) -> bool | None:
        return None if self.p_value is None else self.p_value < ALARM

    @property
    def accuracy(self) -> tuple[float, float, float] | None:
        """Estimate, low and high; withheld once images are not those that it holds for."""
        if self.watched is None or self.drifted or self.watched.alarm_at is not None:
            return None
        return self.watched.accuracy


class Window:
    """Embeddings, logits and distances of the latest requests, at most `window` of them; nothing else is stored."""

    def __init__(self, bundle: Bundle, reference: DriftReference, workers: int = 1) -> None:
        self._bundle, self._reference = bundle, reference
        self._latest: deque[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = deque(maxlen=reference.window)
        self._requests = self._computed = 0
        self._watch = None if reference.stream is None else Watch(reference.stream, bundle.sets, workers)

    def add(self, batch: list[Outputs]) -> list[Outputs]:
        self._latest.extend((out[EMBEDDING], out.get(LOGITS), out.get(DISTANCES)) for out in batch)
        self._requests += len(batch)
        if self._watch is not None:
            self._watch.add(batch)
        return batch

    @property
    def has_new_requests(self) -> bool:
        """Whether requests have come since the last `compute`."""
        return self._requests != self._computed

    def compute(self) -> Drift:
        """Takes milliseconds, and longer the first time: do not call it on the event loop."""
        self._computed, size = self._requests, self._reference.window
        latest = list(self._latest)
        embeddings = _last((embeddings for embeddings, _, _ in latest), size)
        enough = len(embeddings) == size
        discrepancy, p_value = self._reference.discrepancy(embeddings) if enough else (None, None)
        return Drift(
            images=len(embeddings),
            window=size,
            discrepancy=discrepancy,
            p_value=p_value,
            confidence=self._confidence(_last((logits for _, logits, _ in latest), size)),
            anomaly_score=self._anomaly_score(_last((distances for _, _, distances in latest), size)),
            watched=None if self._watch is None else self._watch.state(),
        )

    def _confidence(self, logits: np.ndarray) -> float | None:
        classifier, reference = self._bundle.manifest.classifier, self._reference.confidences
        if classifier is None or reference is None or len(logits) < _FEWEST:
            return None
        return stability(confidences(label_probabilities(logits, classifier), classifier), reference)

    def _anomaly_score(self, distances: np.ndarray) -> float | None:
        scorer = self._bundle.scorer
        if scorer is None or len(distances) < _FEWEST:
            return None
        return stability(scorer.combine(distances), scorer.calibration)


def _last(batches: Iterable[np.ndarray | None], most: int) -> np.ndarray:
    """The last `most` finite rows."""
    present = [batch for batch in batches if batch is not None]
    if not present:
        return np.empty((0, 0))
    rows = np.concatenate(present)
    return np.asarray(rows[np.isfinite(rows).all(axis=1)][-most:])
