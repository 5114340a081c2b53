"""What networks say of images that they have not learnt from, fold by fold, and what it is worth."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from app.bundle.manifest import Metric
from app.bundle.scoring import are_present, sigmoid
from training.data.folds import Folds
from training.data.imageset import members_of
from training.measure import intervals
from training.measure.detection import Measured
from training.measure.several import average_precisions, drawn_again, f1_terms
from training.score import label_thresholds

ACROSS = "_across_folds"  # ends the names of metrics


@dataclass(frozen=True)
class Crossed:
    """In the order of the target's images."""

    folds: Folds
    logits: np.ndarray  # (R, N, K): in each deal of the folds
    distances: np.ndarray | None  # (N, D) raw, of the anomaly score; None where all folds have the same encoder
    labels: np.ndarray  # (N,), or (N, K) bool where an image may have several

    @property
    def several(self) -> bool:
        return self.labels.ndim == 2

    @cached_property
    def members(self) -> np.ndarray:
        """(N, K) bool: whether each image has each label."""
        return members_of(self.labels, self.logits.shape[2])

    @cached_property
    def given(self) -> np.ndarray:
        """(R, N, K) bool: the labels that each image is given in each deal."""
        deals = zip(self.logits, self.folds.numbers, strict=True)
        return np.stack([given_across(logits, self.labels, numbers) for logits, numbers in deals])

    @property
    def right(self) -> np.ndarray:
        """(N,) the share of the deals in which an image is classified correctly; where it may have several labels, of
        the decisions on them that are right at a half."""
        if self.several:
            return np.asarray(((self.logits > 0) == self.labels).mean(axis=(0, 2)))
        return np.asarray((self.logits.argmax(axis=2) == self.labels).mean(axis=0))

    @property
    def all_right(self) -> np.ndarray:
        """(N,) the share of the deals in which an image is given exactly its labels."""
        return np.asarray((self.given == self.members).all(axis=2).mean(axis=0))

    @property
    def f1_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) each, as in `training.measure.several`; means over deals."""
        agreed, named = f1_terms(self.given, self.members)
        return agreed.mean(axis=0), named.mean(axis=0)

    @property
    def micro_f1(self) -> float:
        """Of one label each, the accuracy."""
        agreed, named = self.f1_terms
        return float(agreed.sum() / max(1, named.sum()))


def given_across(logits: np.ndarray, labels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(N, K) bool: the labels that images are given by (N, K) logits, each by what learnt from other folds.

    `numbers` (N,) are the folds'. Where an image may have several, the other folds' logits set temperature and
    thresholds.
    """
    if labels.ndim == 1:
        return members_of(logits.argmax(axis=1), logits.shape[1])
    given = np.empty(logits.shape, bool)
    for number in np.unique(numbers):
        held = numbers == number
        temperature, thresholds = label_thresholds.fit_with_temperature(logits[~held], labels[~held])
        given[held] = are_present(sigmoid(logits[held], temperature), thresholds)
    return given


def metrics_across(crossed: Crossed) -> list[Metric]:
    """Each named after the metric on a test part whose place it takes."""
    images, right = len(crossed.labels), crossed.right
    if not crossed.several:
        return [_metric("accuracy", _of_images(right), crossed)]
    weights = drawn_again(images)
    honest = "at temperature and thresholds of the other folds"
    decisions = _resampled(right.mean(), weights @ right / images, images)
    return [
        _metric("mean_average_precision", precision_across(crossed), crossed, "the mean over labels"),
        _metric("micro_f1", micro_f1_across(crossed), crossed, honest),
        _metric("all_labels_right", _of_images(crossed.all_right), crossed, honest),
        _metric("label_accuracy", decisions, crossed, "each decision at a half"),
    ]


def micro_f1_across(crossed: Crossed) -> Measured:
    agreed, named = crossed.f1_terms
    weights = drawn_again(len(agreed))
    return _resampled(crossed.micro_f1, (weights @ agreed) / np.maximum(1, weights @ named), len(agreed))


def precision_across(crossed: Crossed) -> Measured:
    """Mean average precision: the mean over labels and deals."""
    images = len(crossed.labels)
    weights = np.concatenate([np.ones((1, images)), drawn_again(images)])
    found = [
        average_precisions(scores, own, weights)
        for logits in crossed.logits
        for scores, own in zip(logits.T, crossed.members.T, strict=True)
    ]
    value, *samples = np.nanmean(found, axis=0)
    return _resampled(value, np.array(samples), images)


def _resampled(value: float, samples: np.ndarray, images: int) -> Measured:
    return Measured(float(value), *intervals.across_folds_resampled(value, samples, images))


def _of_images(right: np.ndarray) -> Measured:
    """Of a share of images: (N,) that of the deals."""
    return Measured(float(right.mean()), *intervals.across_folds(float(right.sum()), len(right)))


def _metric(name: str, measured: Measured, crossed: Crossed, remark: str = "") -> Metric:
    folds, beside = crossed.folds, f", {remark}" if remark else ""
    deals = "" if len(folds.numbers) == 1 else f", dealt {len(folds.numbers)} times"
    return Metric(
        name=f"{name}{ACROSS}",
        value=measured.value,
        images=len(crossed.labels),
        how=(
            f"{folds.count} folds{deals}, {folds.how}; each image by what learnt from the other folds{beside}; "
            f"of new images, {measured.low:.2f} to {measured.high:.2f} is to be expected (95 %)"
        ),
    )
