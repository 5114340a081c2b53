"""Which images to label next, or whose labels to check, and why these."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.bundle.scoring import probabilities
from training.errors import TrainingError, listed
from training.label.codes import Codes
from training.measure import review
from training.measure.clusters import k_means

Way = Literal["typical", "cover", "teach", "check"]
ENOUGH = 5  # labels a kind, on average, from which on a model's doubts are worth more than what it has not seen
FEWEST_TO_CHECK = 20  # labels: fewer cannot be held against each other
_MOST = 10_000  # images that are clustered: a sample of more stands for them
_LARGEST_GROUP = 12  # images under one heading, about


@dataclass(frozen=True)
class Chosen:
    """An image to look at, the heading it is shown under, and a few words about it."""

    row: int  # in Codes
    heading: str
    why: str
    guess: str = ""


@dataclass(frozen=True)
class Choice:
    way: Way
    why: str
    chosen: list[Chosen]  # in the order of labelling


def choose(codes: Codes, group: np.ndarray, count: int, check: bool) -> Choice:
    """`group` (N,) ids, equal for copies: one of them is asked, and none if one has a label."""
    labels, known, kinds = _labels(codes)
    labelled = labels != ""
    _, first = np.unique(group, return_index=True)
    waiting = np.zeros(len(labels), bool)
    waiting[first] = True
    waiting &= ~np.isin(group, group[labelled])
    if check or (labelled.any() and not waiting.any()):
        return _check(codes, group, count)
    rows = np.flatnonzero(waiting)
    points = review.on_main_directions(codes.codes, np.random.default_rng(0)).astype(np.float32)
    if len(kinds) < 2 or len(known) < ENOUGH * len(kinds):
        return _cover(points, rows, known, count=count, kinds=len(kinds))
    return _teach(codes, points, rows, count=count)


def _labels(codes: Codes) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """((N,) labels, "" where there is none, the rows that have one, the kinds in order)."""
    labels = np.array(codes.pool.labels, object)
    known = np.flatnonzero(labels != "")
    return labels, known, sorted(set(labels[known]))


def _numbers(labels: np.ndarray, kinds: list[str]) -> np.ndarray:
    return np.array([kinds.index(label) for label in labels], np.int64)


def _cover(points: np.ndarray, rows: np.ndarray, known: np.ndarray, count: int, kinds: int) -> Choice:
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(rows)[: max(count, _MOST - len(known))])
    both = np.concatenate([some, known])
    is_known = np.arange(len(both)) >= len(some)
    found, stands_for = review.typical(points[both], is_known, count)
    headings = _groups(points[both[found]])
    chosen = [
        Chosen(int(both[place]), f"Group {heading}", f"stands for {images:,} images" if images > 1 else "like no other")
        for place, images, heading in zip(found, stands_for, headings, strict=True)
    ]
    chosen.sort(key=lambda each: int(each.heading.split()[1]))
    if len(known):
        why = f"{len(known):,} labels of {kinds} kinds are few: the typical images of what no label is near yet"
        return Choice("cover", why, chosen)
    return Choice("typical", "no image has a label: the most typical images of as many groups", chosen)


def _groups(points: np.ndarray) -> list[int]:
    """(N,) numbers from 1 of headings under which the images look alike, in the order in which they first occur."""
    cluster = k_means(points, max(1, round(len(points) / _LARGEST_GROUP)))
    order = list(dict.fromkeys(cluster.tolist()))
    return [order.index(each) + 1 for each in cluster]


def _teach(codes: Codes, points: np.ndarray, rows: np.ndarray, count: int) -> Choice:
    from training.learning.inference import in_batches  # torch, which the other ways do without
    from training.learning.linear import head_on

    labels, known, kinds = _labels(codes)
    head = head_on(codes.codes[known], _numbers(labels[known], kinds), classes=len(kinds))
    chances = probabilities(in_batches(head, codes.codes[rows]), 1.0)
    found = review.worth_labelling(chances, points[rows], count)
    chosen = []
    for place in found:
        first, second = np.argsort(-chances[place], kind="stable")[:2]
        why = " or ".join(f"{kinds[each]} ({chances[place][each]:.0%})" for each in (first, second))
        chosen.append(Chosen(int(rows[place]), f"{kinds[first]}?", f"{why}?", kinds[first]))
    largest = [heading for heading, _ in Counter(each.heading for each in chosen).most_common()]
    chosen.sort(key=lambda each: largest.index(each.heading))
    why = f"{len(known):,} labels of {len(kinds)} kinds: what a linear model on them is least sure of, no two alike"
    return Choice("teach", why, chosen)


def _check(codes: Codes, group: np.ndarray, count: int) -> Choice:
    labels, known, kinds = _labels(codes)
    if len(kinds) < 2 or len(known) < FEWEST_TO_CHECK:
        raise TrainingError(
            f"{len(known):,} labels of {len(kinds)} kinds ({listed(kinds)}) cannot be held against each other: "
            f"{FEWEST_TO_CHECK} of two kinds can"
        )
    given = _numbers(labels[known], kinds)
    doubts = review.doubtful_labels(codes.codes[known], given, classes=len(kinds), count=count, groups=group[known])
    chosen = [
        Chosen(
            int(known[doubt.index]),
            "Most likely wrong first",
            f"is {kinds[doubt.given]}; {kinds[doubt.suggested]}?",
            kinds[doubt.suggested],
        )
        for doubt in doubts
    ]
    why = f"{len(known):,} labels of {len(kinds)} kinds: those that a model contradicts which was fitted without them"
    return Choice("check", why, chosen)
