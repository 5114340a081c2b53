"""Prediction sets: labels that hold the truth at a stated rate, however good the model is. Pure numpy.

Split conformal prediction: every label has a score, and a set holds those whose score is not above the k-th smallest
of the true labels' scores of n calibration images, k = ⌈(n + 1) · coverage⌉. If a new image is exchangeable with these,
its set holds the truth with a probability of at least `coverage`, whatever n is.

    lac    1 - p. The smallest sets on average; an empty one says that no label is likely enough
    raps   the sum of all larger p, a random share of the label's own, and PENALTY for each label from the second on.
           Larger for images that are hard, smaller for easy ones

p are the bundle's probabilities. `lac` is that of Sadinle, Lei and Wasserman (2019), `raps` that of Angelopoulos et
al. (2021), randomised, so that it does not cover more than it states. With `conditional`, each label has the threshold
of the calibration images that have this label: the rate then holds for every class. A label with too few of them for
the coverage is in every set, as nothing rules it out.

The reference file holds an entry for each calibration image: `sets.labels`, its label; `sets.probabilities`, that of
the label; `sets.before`, the sum of all larger ones; `sets.ranks`, their number; `sets.confidences`, the largest.
"""

import hashlib
import math
from collections.abc import Iterable
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from app.bundle.scoring import likeliest_first

PENALTY = 0.01
ARRAYS = ("sets.labels", "sets.probabilities", "sets.before", "sets.ranks", "sets.confidences")
By = Literal["lac", "raps"]


class SetOptions(NamedTuple):
    coverage: float
    by: By = "lac"
    conditional: bool = False


class PredictionSets:
    def __init__(self, arrays: dict[str, np.ndarray], labels: int) -> None:
        """`labels` is their number. Raises ValueError naming the array that does not fit."""
        for name in ARRAYS:
            array, kind = arrays.get(name), "iu" if name in ("sets.labels", "sets.ranks") else "f"
            if array is None or array.dtype.kind not in kind or array.ndim != 1 or not np.isfinite(array).all():
                raise ValueError(f"array {name}: must be {'whole numbers' if kind == 'iu' else 'finite floats'}, (N,)")
            if not len(array) or len(array) != len(arrays[ARRAYS[0]]):
                raise ValueError(f"array {name}: must have a number for each calibration image")
        self.labels, self.probabilities, self.before, self.ranks, self.confidences = (arrays[name] for name in ARRAYS)
        if self.labels.min() < 0 or self.labels.max() >= labels:
            raise ValueError(f"array {ARRAYS[0]}: must be indices of the {labels} labels")
        self._count = labels

    def __len__(self) -> int:
        return len(self.labels)

    def require(self, options: SetOptions) -> None:
        """Raises ValueError if the calibration images are too few to promise the coverage."""
        most = int(self._counts.max()) if options.conditional else len(self)
        if _place(most, options.coverage) <= most:
            return
        of = "images of any label, which" if options.conditional else "calibration images, which"
        raise ValueError(
            f"{options.coverage:g} cannot be promised by {most:,} {of} reach {_floor(most / (most + 1))} at most"
        )

    def accuracy(self, confidence: float, images: int) -> tuple[float, float, float]:
        """(value, low, high) at 95 %: the accuracy on so many images like these, from the mean of their confidences.

        The calibration images say by how much confidence and accuracy differ.
        """
        errors = (self.ranks == 0) - self.confidences
        # As if one more image had been a toss-up: where all are right, they spread too little.
        variance = (np.square(errors - errors.mean()).sum() + 0.25) / len(errors)
        half = 2 * math.sqrt(variance * (1 / images + 1 / len(errors)))
        value = confidence + float(errors.mean())
        low, value, high = (min(1.0, max(0.0, each)) for each in (value - half, value, value + half))
        return value, low, high

    def members(self, rows: np.ndarray, options: SetOptions, shares: np.ndarray | None = None) -> np.ndarray:
        """(N, K) probabilities → (N, K) bool. `shares` (N,) in 0…1 are of `raps`: see `shares_of`."""
        thresholds = self._thresholds(options)
        if options.by == "lac":
            return np.asarray(rows >= -thresholds)  # p, not 1 - p: nothing is lost where p is near 1
        assert shares is not None
        order = likeliest_first(rows)
        ranked = np.take_along_axis(rows, order, axis=1)
        scores = np.empty(rows.shape)
        ranks = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
        by_rank = _raps(ranked, np.cumsum(ranked, axis=1) - ranked, ranks, shares[:, None])
        np.put_along_axis(scores, order, by_rank, axis=1)
        return np.asarray(scores <= thresholds)

    def _thresholds(self, options: SetOptions) -> np.ndarray:
        """(K,), or (1,) for all labels alike; infinite where there are too few images."""
        of_labels = self._sorted[options.by] if options.conditional else [self._sorted_together[options.by]]
        return np.array([_at(scores, options.coverage) for scores in of_labels])

    @cached_property
    def _scores(self) -> dict[By, np.ndarray]:
        """(n,) of the true labels."""
        shares = np.random.default_rng(0).random(len(self))
        return {"lac": -self.probabilities, "raps": _raps(self.probabilities, self.before, self.ranks, shares)}

    @cached_property
    def _sorted_together(self) -> dict[By, np.ndarray]:
        return {by: np.sort(scores) for by, scores in self._scores.items()}

    @cached_property
    def _sorted(self) -> dict[By, list[np.ndarray]]:
        """The same, for each label."""
        own = [self.labels == label for label in range(self._count)]
        return {by: [np.sort(scores[rows]) for rows in own] for by, scores in self._scores.items()}

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.bincount(self.labels, minlength=self._count)


def _raps(probabilities: np.ndarray, before: np.ndarray, ranks: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """`before`: the sum of all larger probabilities; `ranks`: their number."""
    return np.asarray(before + shares * probabilities + PENALTY * ranks)


def _place(count: int, coverage: float) -> int:
    return math.ceil((count + 1) * coverage - 1e-9)


def _at(scores: np.ndarray, coverage: float) -> float:
    """`scores` are sorted in ascending order."""
    place = _place(len(scores), coverage)
    return float(scores[place - 1]) if place <= len(scores) else math.inf


def _floor(share: float) -> str:
    """With as many nines as it takes: what is printed must not be more than what can be promised."""
    digits = max(2, math.ceil(-math.log10(1 - share)) + 1)
    return f"{math.floor(share * 10**digits) / 10**digits:g}"


def shares_of(images: Iterable[np.ndarray]) -> np.ndarray:
    """N images (H, W, C) uint8 → (N,) in 0…1, as if drawn at random, but the same for the same pixels at every call."""
    digests = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.array([int.from_bytes(digest) / 2**64 for digest in digests])


def arrays_of(rows: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """(N, K) probabilities of calibration images, and their (N,) labels → the arrays of a reference file."""
    at = np.arange(len(labels))
    order = likeliest_first(rows)
    ranks = (order == labels[:, None]).argmax(axis=1)
    ranked = np.take_along_axis(rows, order, axis=1)
    before = (np.cumsum(ranked, axis=1) - ranked)[at, ranks]
    values = (labels.astype(np.int32), rows[at, labels], before, ranks.astype(np.int32), rows.max(axis=1))
    return dict(zip(ARRAYS, values, strict=True))
