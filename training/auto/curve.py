"""How many more labels would bring how much: the accuracy of heads on ever larger parts of the labels, continued."""

from dataclasses import dataclass

import numpy as np
import torch

from training.learning.linear import head_on
from training.progress import quiet, track
from training.report.charts import Series
from training.search.crossing import Crossing

SHARES = (0.125, 0.25, 0.5)
_FEWEST = 2  # images of each class
_FEW, _AGAIN = 300, 3  # images below which each share is drawn so many times, and every fold judged
_SOME_FOLDS = 2  # where there are more images
_MOST = 3_000  # images: a curve is none of the tasks that take long
_RESAMPLED = 500
_LEAST = 0.5  # wrong images: of none, no logarithm is known


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy by labels, on images that were not learnt from."""

    labels: tuple[int, ...]
    accuracies: tuple[float, ...]
    fitted: tuple[tuple[float, float, float], ...]  # low, expected, high (95 %) at `labels`, and at twice `images`
    images: int

    @property
    def doubled(self) -> tuple[float, float, float]:
        """Low, expected, high: with twice as many labels as there are."""
        return self.fitted[-1]

    def series(self) -> tuple[Series, Series]:
        """For a chart."""
        low, expected, high = zip(*self.fitted, strict=True)
        return (
            Series(
                "fitted, and continued to twice as many labels", (*self.labels, 2 * self.images), expected, low, high
            ),
            Series("measured", self.labels, self.accuracies),
        )


def learning_curve(crossing: Crossing) -> LearningCurve | None:
    """None where a point would take a network of its own, or there are too few images for two points.

    Errors are taken as a power of the number of labels, as they are found for most tasks; the interval is that of
    images drawn again.
    """
    target = crossing.material.target
    if not crossing.encodes_once or len(target) > _MOST:
        return None
    points = crossing.points()
    smallest = int(np.bincount(target.labels, minlength=len(target.classes)).min()) * (1 - 1 / crossing.folds.count)
    shares = [share for share in SHARES if share * smallest >= _FEWEST]
    if not shares:
        return None
    right = np.zeros((len(shares) + 1, len(target)))
    counts = np.zeros(len(shares) + 1)
    few = len(target) < _FEW
    numbers = range(crossing.folds.count if few else _SOME_FOLDS)  # of the first deal
    draws = _AGAIN if few else 1
    steps = [(number, place, draw) for number in numbers for place in range(len(shares)) for draw in range(draws)]
    for number, place, draw in track(steps, "learning curve", len(steps)):
        held = crossing.held(number)
        others = np.flatnonzero(~held)
        own = target.take(others)
        kept = some_of_share(own.labels, shares[place], seed=draw)
        with quiet():
            head = head_on(points[others[kept]], own.labels[kept], classes=len(target.classes), maps=crossing.maps)
        with torch.no_grad():
            said = head(torch.from_numpy(points[held])).argmax(dim=1).numpy()
        right[place, held] += (said == target.labels[held]) / draws
        counts[place] += len(kept) / len(steps) * len(shares)
    for number in numbers:
        held = crossing.held(number)
        right[-1, held] = crossing.logits(number).argmax(axis=1) == target.labels[held]
        counts[-1] += (~held).sum() / len(numbers)
    judged = np.any([crossing.held(number) for number in numbers], axis=0)
    right = right[:, judged]
    at = np.array([*counts, 2 * len(target)])
    rng = np.random.default_rng(0)
    again = [
        continued(counts, right[:, rng.integers(right.shape[1], size=right.shape[1])], at) for _ in range(_RESAMPLED)
    ]
    low, high = np.quantile(again, (0.025, 0.975), axis=0)
    return LearningCurve(
        labels=tuple(round(each) for each in counts),
        accuracies=tuple(right.mean(axis=1).tolist()),
        fitted=tuple(zip(low.tolist(), continued(counts, right, at).tolist(), high.tolist(), strict=True)),
        images=len(target),
    )


def some_of_share(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of that share of each class."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(own[: max(_FEWEST, round(share * len(own)))])
    return np.sort(np.concatenate(chosen))


def continued(counts: np.ndarray, right: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The accuracies at so many labels, by the line through the logarithms of the errors; more labels are no loss."""
    wrong = np.maximum(1 - right.mean(axis=1), _LEAST / right.shape[1])
    slope, level = np.polyfit(np.log(counts), np.log(wrong), 1)
    slope = min(0.0, float(slope))
    level = float((np.log(wrong) - slope * np.log(counts)).mean())
    return np.asarray(1 - np.exp(level + slope * np.log(at)))
