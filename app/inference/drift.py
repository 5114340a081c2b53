"""What a model was served lately, held to its reference: whoever answers only keeps what was computed anyway."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.drift import DriftReference, stability
from app.bundle.scoring import probabilities
from app.inference.answer import DISTANCES, EMBEDDING, LOGITS, Outputs

ALARM = 0.01  # p-value below which images are said to have drifted
_FEWEST = 50  # values whose stability is told


@dataclass(frozen=True, slots=True)
class Drift:
    """None is not known: too few images yet, or none on which that was asked."""

    images: int  # that were looked at
    window: int  # that it takes
    discrepancy: float | None
    p_value: float | None
    confidence: float | None  # population stability
    anomaly_score: float | None  # likewise


class Window:
    """The latest requests' codes, logits and distances, of at most `window` requests: no more is kept of them."""

    def __init__(self, bundle: Bundle, reference: DriftReference) -> None:
        self._bundle, self._reference = bundle, reference
        self._latest: deque[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = deque(maxlen=reference.window)
        self._requests = self._told = 0

    def saw(self, batch: list[Outputs]) -> list[Outputs]:
        self._latest.extend((each[EMBEDDING], each.get(LOGITS), each.get(DISTANCES)) for each in batch)
        self._requests += len(batch)
        return batch

    @property
    def has_news(self) -> bool:
        """Since it was last judged."""
        return self._requests != self._told

    def judge(self) -> Drift:
        """Milliseconds, and more the first time: not for the event loop."""
        self._told, size = self._requests, self._reference.window
        latest = list(self._latest)
        codes = _last((codes for codes, _, _ in latest), size)
        far, chance = self._reference.discrepancy(codes) if len(codes) == size else (None, None)
        return Drift(
            len(codes),
            size,
            far,
            chance,
            self._confidence(_last((logits for _, logits, _ in latest), size)),
            self._anomaly_score(_last((distances for _, _, distances in latest), size)),
        )

    def _confidence(self, logits: np.ndarray) -> float | None:
        classifier, reference = self._bundle.manifest.classifier, self._reference.confidences
        if classifier is None or reference is None or len(logits) < _FEWEST:
            return None
        return stability(probabilities(logits, classifier.temperature).max(axis=1), reference)

    def _anomaly_score(self, distances: np.ndarray) -> float | None:
        scorer = self._bundle.scorer
        if scorer is None or len(distances) < _FEWEST:
            return None
        return stability(scorer.combine(distances), scorer.calibration)


def _last(parts: Iterable[np.ndarray | None], most: int) -> np.ndarray:
    """The last rows of all, those that are not finite left out."""
    there = [part for part in parts if part is not None]
    if not there:
        return np.empty((0, 0))
    rows = np.concatenate(there)
    return np.asarray(rows[np.isfinite(rows).all(axis=1)][-most:])
