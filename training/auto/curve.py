"""How many more labels would bring how much: what heads on ever larger parts of the labels reach, continued."""

from dataclasses import dataclass

import numpy as np

from training.learning.inference import in_batches
from training.learning.linear import head_on
from training.measure.several import f1_terms
from training.progress import quiet, track
from training.publish.crossed import given_across
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
    """Micro F1 by labelled images, on others that were not learnt from; of one label each, the accuracy."""

    labelled: tuple[int, ...]
    scores: tuple[float, ...]
    fitted: tuple[tuple[float, float, float], ...]  # low, expected, high (95 %) at `labelled`, and at twice `images`
    images: int

    @property
    def doubled(self) -> tuple[float, float, float]:
        """Low, expected, high: with twice as many labels as there are."""
        return self.fitted[-1]

    def series(self) -> tuple[Series, Series]:
        """For a chart."""
        low, expected, high = zip(*self.fitted, strict=True)
        at = (*self.labelled, 2 * self.images)
        return (
            Series("fitted, and continued to twice as many labels", x=at, y=expected, low=low, high=high),
            Series("measured", self.labelled, self.scores),
        )


def learning_curve(crossing: Crossing) -> LearningCurve | None:
    """None where a point would take a network of its own, or there are too few images for two points.

    Errors are taken as a power of the number of labels, as they are found for most tasks; the interval is that of
    images drawn again.
    """
    target = crossing.material.target
    if not crossing.encodes_once or len(target) > _MOST:
        return None
    smallest = int(target.counts.min()) * (1 - 1 / crossing.folds.count)
    shares = [share for share in SHARES if share * smallest >= _FEWEST]
    if not shares:
        return None
    few = len(target) < _FEW
    numbers = range(crossing.folds.count if few else _SOME_FOLDS)  # of the first deal
    counts, logits = _heads(crossing, shares, numbers, draws=_AGAIN if few else 1)
    judged = np.any([crossing.held(number) for number in numbers], axis=0)
    folds, members = crossing.folds.numbers[0][judged], target.members[judged]
    given = [[given_across(each[judged], target.truth[judged], folds) for each in drawn] for drawn in logits]
    agreed, named = (terms.mean(axis=1) for terms in f1_terms(np.array(given), members))  # (points, images), over draws
    rng = np.random.default_rng(0)
    drawn_again = (rng.integers(len(members), size=len(members)) for _ in range(_RESAMPLED))
    at = np.array([*counts, 2 * len(target)])
    again = [continued(counts, agreed[:, rows], named[:, rows], at) for rows in drawn_again]
    low, high = np.quantile(again, (0.025, 0.975), axis=0).tolist()
    expected = continued(counts, agreed, named, at).tolist()
    return LearningCurve(
        labelled=tuple(round(each) for each in counts),
        scores=tuple((agreed.sum(axis=1) / named.sum(axis=1)).tolist()),
        fitted=tuple(zip(low, expected, high, strict=True)),
        images=len(target),
    )


def _heads(crossing: Crossing, shares: list[float], numbers: range, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """((points,) how many images each head learnt from, (points, draws, N, K) logits of the images in the folds).

    The last point is of all images beside a fold.
    """
    target, points = crossing.material.target, crossing.points()
    counts = np.zeros(len(shares) + 1)
    logits = np.zeros((len(shares) + 1, draws, len(target), len(target.classes)), np.float32)
    steps = [(number, place, draw) for number in numbers for place in range(len(shares)) for draw in range(draws)]
    for number, place, draw in track(steps, "learning curve", len(steps)):
        held = crossing.held(number)
        others = np.flatnonzero(~held)
        rows = others[some_of_share(target.strata[others], shares[place], seed=draw)]
        with quiet():
            head = head_on(points[rows], target.truth[rows], classes=len(target.classes), maps=crossing.maps)
        logits[place, draw, held] = in_batches(head, points[held])
        counts[place] += len(rows) / len(steps) * len(shares)
    for number in numbers:
        held = crossing.held(number)
        logits[-1, :, held] = crossing.logits(number)[:, None]
        counts[-1] += (~held).sum() / len(numbers)
    return counts, logits


def some_of_share(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Sorted indices of that share of each class."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        chosen.append(own[: max(_FEWEST, round(share * len(own)))])
    return np.sort(np.concatenate(chosen))


def continued(counts: np.ndarray, agreed: np.ndarray, named: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Micro F1 at so many labels, by the line through the logarithms of what lacks to 1; more labels are no loss.

    `agreed` and `named` (points, images) are its terms, as in `training.measure.several`.
    """
    wrong = np.maximum(1 - agreed.sum(axis=1) / np.maximum(named.sum(axis=1), 1), _LEAST / agreed.shape[1])
    slope, level = np.polyfit(np.log(counts), np.log(wrong), 1)
    slope = min(0.0, float(slope))
    level = float((np.log(wrong) - slope * np.log(counts)).mean())
    return np.asarray(1 - np.exp(level + slope * np.log(at)))
