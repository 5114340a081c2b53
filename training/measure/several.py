"""Measures of labels of which an image may have several."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.bundle.scoring import are_present
from training.data.imageset import ImageSet
from training.measure.detection import Curve, resampled

RESAMPLED = 500  # bootstrap samples of an interval


def share_right(logits: np.ndarray, data: ImageSet) -> float:
    """Accuracy; where an image may have several labels, the share of decisions that are right, at a half."""
    if data.several is not None:
        return float(np.mean((logits > 0) == data.several))
    return float(np.mean(logits.argmax(axis=1) == data.labels))


@dataclass(frozen=True)
class LabelMeasures:
    """(K,) of each label; an average precision without an image that has the label is nan."""

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    average_precision: np.ndarray
    images: np.ndarray  # that have the label
    micro_f1: float  # of all decisions together
    exact: float  # share of the images whose labels are all right

    @classmethod
    def of(
        cls,
        rows: np.ndarray,
        truth: np.ndarray,
        labels: tuple[str, ...],
        thresholds: tuple[float, ...],
        given: np.ndarray | None = None,
    ) -> "LabelMeasures":
        """(N, K) probabilities, and whether each image has each label.

        `given` are the labels that each image is given, where other thresholds than these decide.
        """
        found = are_present(rows, thresholds) if given is None else given
        hits, images, called = (found & truth).sum(axis=0), truth.sum(axis=0), found.sum(axis=0)
        return cls(
            labels=labels,
            thresholds=thresholds,
            precision=hits / np.maximum(called, 1),
            recall=hits / np.maximum(images, 1),
            f1=2 * hits / np.maximum(images + called, 1),
            average_precision=np.array([average_precision(*each) for each in zip(rows.T, truth.T, strict=True)]),
            images=images,
            micro_f1=micro_f1(found, truth),
            exact=float((found == truth).all(axis=1).mean()),
        )

    @property
    def mean_average_precision(self) -> float:
        """Over the labels that some image has."""
        known = self.average_precision[~np.isnan(self.average_precision)]
        return float(known.mean()) if len(known) else 0.0

    @property
    def macro_f1(self) -> float:
        """Over the same."""
        return float(self.f1[self.images > 0].mean()) if self.images.any() else 0.0

    @property
    def lacking(self) -> list[str]:
        """The labels that no image has."""
        return [label for label, images in zip(self.labels, self.images, strict=True) if not images]

    def rows(self) -> list[tuple[str, ...]]:
        """Of each label its threshold, precision, recall, F1, average precision and images, as text."""
        columns = (self.thresholds, self.precision, self.recall, self.f1, self.average_precision)
        return [
            (label, *("" if np.isnan(number) else f"{number:.4f}" for number in each), f"{images:,}")
            for label, each, images in zip(self.labels, np.stack(columns, axis=1), self.images.tolist(), strict=True)
        ]


HEADS = ("label", "threshold", "precision", "recall", "F1", "average precision", "images")


def text_table(measures: LabelMeasures) -> list[str]:
    lines = [HEADS, *measures.rows()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [_line(line, widths) for line in lines]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (f"{cell:{'<' if at == 0 else '>'}{widths[at]}}" for at, cell in enumerate(cells))
    return "  ".join((first, *others)).rstrip()


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean precision at the scores of the images that have the label; nan if none has it."""
    return float(average_precisions(scores, truth, np.ones((1, len(truth))))[0])


def average_precisions(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(samples,) average precision where each image counts as often as `weights` (samples, N) says."""
    if not truth.any():
        return np.full(len(weights), np.nan)
    curve = Curve.of(scores[~truth], scores[truth], (weights[:, ~truth], weights[:, truth]))
    true, false = (np.pad(counts, ((0, 0), (1, 0))) for counts in (curve.true, curve.false))
    precision = true[:, 1:] / np.maximum(true + false, 1)[:, 1:]
    with np.errstate(invalid="ignore"):  # a sample without an image that has the label
        return np.asarray((np.diff(true) * precision).sum(axis=1) / true[:, -1])


def micro_f1(given: np.ndarray, truth: np.ndarray) -> float:
    """F1 of all decisions together, (…, N, K) bool. Where each image has one label and is given one: the accuracy."""
    agreed, named = f1_terms(given, truth)
    return float(agreed.sum() / max(1, named.sum()))


def f1_terms(given: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(…, N) each, (twice the labels that are right, labels that are given or true): micro F1 is the ratio of sums."""
    return 2 * (given & truth).sum(axis=-1), given.sum(axis=-1) + truth.sum(axis=-1)


def drawn_again(images: int) -> np.ndarray:
    """(samples, N): how often each image counts in each bootstrap sample."""
    return resampled(np.random.default_rng(0), images, RESAMPLED)
