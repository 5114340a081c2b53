"""Whether answers are better than guesses."""

import math

import numpy as np

from training.publish.crossed import Crossed

BY_CHANCE = 1e-3  # probability of so many right answers by guessing, above which they count as guessed


def by_chance(right: int, images: int, commonest: float, tries: int = 1) -> bool:
    """Whether guessing the commonest class would be as good in one of a thousand cases, or more.

    `tries`: so many contenders had their chance.
    """
    if commonest >= 1:
        return True
    logs = [
        math.lgamma(images + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(images - hits + 1)
        + hits * math.log(commonest)
        + (images - hits) * math.log1p(-commonest)
        for hits in range(right, images + 1)
    ]
    return tries * math.fsum(map(math.exp, logs)) > BY_CHANCE


def labels_by_chance(crossed: Crossed, tries: int = 1) -> bool:
    """Whether always giving the same labels, or labels that have nothing to do with the images, would be as good.

    The latter in one of a thousand cases, or more, by a normal tail.
    """
    _, deviations = dealt_at_random(crossed)
    always, _ = same_for_all(crossed.members)
    return crossed.micro_f1 <= always or tries * math.erfc(deviations / math.sqrt(2)) / 2 > BY_CHANCE


def dealt_at_random(crossed: Crossed) -> tuple[float, float]:
    """(micro F1 to be expected if the images of a fold exchanged their answers at random, the standard deviations by
    which the answers are better than that); means over deals.

    If labels have nothing to do with the images, those of a fold may stand in any order: what answers there has not
    learnt from them. The mean and variance of right answers over all orders are known (Hoeffding 1951). The variance of
    all folds is twice the sum of theirs: what two images of two folds have in common by luck counts in both.
    """
    found = []
    for given, numbers in zip(crossed.given.astype(float), crossed.folds.numbers, strict=True):
        expected = better = variance = 0.0
        for number in np.unique(numbers):
            answers, truth = given[numbers == number], crossed.members[numbers == number]
            expected += float(answers.mean(axis=0) @ truth.sum(axis=0))
            answers, truth = answers - answers.mean(axis=0), truth - truth.mean(axis=0)
            better += float((answers * truth).sum())
            # The squares of all answers · truth, (n, n), by way of (K, K).
            squares = ((answers.T @ answers) * (truth.T @ truth)).sum()
            variance += 2 * float(squares) / max(1, len(answers) - 1)
        f1 = 2 * expected / max(1, given.sum() + crossed.members.sum())
        found.append((f1, better / math.sqrt(variance) if variance > 0 else 0.0))
    f1, deviations = np.mean(found, axis=0).tolist()
    return f1, deviations


def same_for_all(members: np.ndarray) -> tuple[float, np.ndarray]:
    """(the best micro F1 if each image is given the same labels, which those are), from (N, K) bool."""
    counts = members.sum(axis=0)
    order = np.argsort(-counts, kind="stable")
    f1 = 2 * np.cumsum(counts[order]) / (len(members) * np.arange(1, len(counts) + 1) + counts.sum())
    best = int(f1.argmax())
    return float(f1[best]), order[: best + 1]
