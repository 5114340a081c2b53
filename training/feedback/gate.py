"""The gate before a version that learnt from feedback: each check compares it with the version before. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SURE = 0.05  # how likely chance alone may be to give as much


@dataclass(frozen=True)
class Check:
    what: str
    before: str
    after: str
    passed: bool
    reason: str  # why it did not pass


def table(checks: Sequence[Check]) -> list[str]:
    rows = [("check", "before", "after", "")]
    rows += [(each.what, each.before, each.after, "passed" if each.passed else "FAILED") for each in checks]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def better(what: str, before: np.ndarray, after: np.ndarray) -> Check:
    """(N,) bool, whether each image is judged rightly: more are than before, and not by chance."""
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    p = by_chance(gained, gained + lost)
    reason = f"{gained} images are judged rightly that were not, and {lost} no longer: as many by chance (p = {p:.2g})"
    return Check(what, _share(before), _share(after), passed=p < SURE, reason=reason)


def no_worse(what: str, before: np.ndarray, after: np.ndarray) -> Check:
    """(N,) bool: no more are judged wrongly than chance explains."""
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    p = by_chance(lost, gained + lost)
    reason = f"{lost} images are no longer judged rightly, and {gained} newly: more than by chance (p = {p:.2g})"
    return Check(what, _share(before), _share(after), passed=p >= SURE, reason=reason)


def more_than_a_constant(what: str, after: np.ndarray, labels: np.ndarray) -> Check:
    """Better than naming the commonest label of all: else nothing was learnt but how often labels are given."""
    constant = labels == np.bincount(labels).argmax()
    p = by_chance(int((after & ~constant).sum()), int((after != constant).sum()))
    reason = f"always naming the commonest label would be right of {_share(constant)}"
    return Check(what, _share(constant), _share(after), passed=p < SURE, reason=reason)


def plausible(logits: np.ndarray, labels: np.ndarray) -> Check:
    """Where the model and a person differ, the person's label is among the model's next guesses more than by chance.

    A right label is, even of a model whose first guess is wrong; one that was drawn, or exchanged with another, is not.
    Logits count relative to their means over these images, as another camera may favour one label everywhere.
    """
    count = logits.shape[1] - 1  # labels beside the first guess
    differ = logits.argmax(axis=1) != labels
    what, rows = "labels beside the model's next guesses", (logits - logits.mean(axis=0))[differ]
    if count < 2:  # there is no next guess: images with either label must be ordered by the model's margin
        margins = logits[:, 1] - logits[:, 0]
        reason = "the labels do not go with the model's margin: are they right? Confirm right answers, too"
        return replace(
            ordered("labels beside the model's margin", margins[labels == 0], margins[labels == 1]), reason=reason
        )
    if not len(rows):
        return Check(what, "-", "-", passed=True, reason="")
    own = rows[np.arange(len(rows)), labels[differ]]
    rows[np.arange(len(rows)), logits[differ].argmax(axis=1)] = np.inf  # the first guess is not one of the next
    below = (rows < own[:, None]).sum(axis=1) / (count - 1)  # 1: the likeliest of the others, 0: the last
    middle, spread = 0.5, math.sqrt((count + 1) / (12 * (count - 1)))
    z = (float(below.mean()) - middle) * math.sqrt(len(rows)) / spread
    reason = (
        f"of {len(rows)} images that the model sees otherwise, the labels given are not those that it takes for "
        "likelier: are they right?"
    )
    return Check(what, f"{middle:.2f} by chance", f"{float(below.mean()):.2f}", passed=z > _z(SURE), reason=reason)


def ordered(what: str, sound: np.ndarray, defect: np.ndarray) -> Check:
    """Images that are said to be defects score higher than sound ones, and not by chance (Mann and Whitney)."""
    pairs = len(sound) * len(defect)
    if not pairs:
        return Check(what, "-", "-", passed=True, reason="")
    wins = float((defect[:, None] > sound).sum() + 0.5 * (defect[:, None] == sound).sum())
    spread = math.sqrt(pairs * (len(sound) + len(defect) + 1) / 12)
    reason = "images said to be defects do not score higher than those said to be sound: are the verdicts right?"
    passed = (wins - pairs / 2) / spread > _z(SURE)
    return Check(what, "0.50 by chance", f"{wins / pairs:.2f}", passed=passed, reason=reason)


def by_chance(hits: int, trials: int) -> float:
    """The probability of at least so many heads in so many throws of a coin."""
    return float(sum(math.comb(trials, each) for each in range(hits, trials + 1)) / 2**trials)


def _share(right: np.ndarray) -> str:
    return f"{right.mean():.1%} of {len(right):,}"


def _z(tail: float) -> float:
    """Of the normal distribution, by bisection."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if 0.5 * math.erfc(middle / math.sqrt(2)) < tail else (middle, high)
    return high
