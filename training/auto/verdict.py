"""What came of it, in a few sentences that flatter nobody."""

import math

import numpy as np

from app.bundle import Bundle
from training.auto.curve import LearningCurve
from training.auto.look import Found
from training.errors import printable
from training.measure import intervals
from training.measure.defects import Defects
from training.publish.draft import Crossed

NO_BETTER = "no better than chance"
_BY_CHANCE = 1e-3  # probability of so many right answers by guessing, above which they count as guessed
_NEXT_TO_ALL = 0.985  # accuracy
_ALONE, _SORTING = 0.95, 0.75  # lower ends of the expected accuracy


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
    return tries * math.fsum(map(math.exp, logs)) > _BY_CHANCE


def of_classes(
    found: Found,
    crossed: Crossed,
    *,
    tested: tuple[int, int] | None,
    pixels: float | None,
    chosen: str,
    others: list[str],
    curve: LearningCurve | None,
) -> list[str]:
    """`tested`: (right answers, images) of the test part. `pixels`: accuracy of a linear head on a few pixels, in the
    place of the network. `others`: what the contenders that were not chosen reached."""
    labels, classes = crossed.labels, found.train.classes
    right = crossed.right
    hits, images = round(float(right.sum())), len(labels)
    commonest = np.bincount(labels, minlength=len(classes))
    guessed, usual = commonest.max() / images, printable(classes[int(commonest.argmax())])
    low, high = intervals.across_folds(float(right.sum()), images)
    how = f"each of the {images:,} images was judged by what had learnt from other folds"
    if by_chance(hits, images, guessed, tries=1 + len(others)):
        first = (
            f"This is {NO_BETTER}: {right.mean():.0%} right, where always saying {usual} gets {guessed:.0%} ({how}). "
            "Do not use it: look whether the labels are right, and whether a person could tell these images apart."
        )
        return [first]
    expected = f"Of 100 new images like these, expect {_floor(low)} to {_ceil(high)} right ({how}; "
    sentences = [f"{_use(low)} {expected}always saying {usual} would get {guessed:.0%})."]
    if tested is not None:
        own = intervals.wilson(*tested)
        sentences.append(
            f"Of its test part, which was used for no choice, {tested[0] / tested[1]:.1%} of {tested[1]:,} are right "
            f"({own[0]:.1%} to {own[1]:.1%})."
        )
    sentences.append(_mistakes(crossed, classes))
    helped = f"Chosen: {chosen}"
    if pixels is not None:
        gain = right.mean() - pixels
        helped += f"; without it, by pixels alone, {pixels:.0%} would be right: it brings {100 * gain:+.0f} points"
    if others:
        helped += f". Beside it: {'; '.join(others)}"
    sentences.append(f"{helped}.")
    sentences.append(_more_labels(curve, float(right.mean())))
    return sentences


def _use(low: float) -> str:
    if low >= _ALONE:
        return f"Good enough to be left alone where up to {_ceil(1 - low)} of 100 answers may be wrong."
    if low >= _SORTING:
        return "Good enough to sort images for a person who checks them, not to be left alone."
    return "Not good enough to be relied on yet; it may save a person some of the sorting."


def _mistakes(crossed: Crossed, classes: tuple[str, ...]) -> str:
    said = crossed.logits.argmax(axis=2)
    pairs = np.zeros((len(classes), len(classes)))
    for deal in said:
        np.add.at(pairs, (crossed.labels, deal), 1 / len(said))
    np.fill_diagonal(pairs, 0)
    if pairs.max() < 0.5:
        return "None of these images is mistaken for another kind."
    told = []
    for place in np.argsort(-pairs, axis=None, kind="stable")[:2]:
        of, taken_for = np.unravel_index(place, pairs.shape)
        if pairs[of, taken_for] >= 0.5:
            total = int((crossed.labels == of).sum())
            told.append(
                f"{printable(classes[of])} is taken for {printable(classes[taken_for])} "
                f"({pairs[of, taken_for]:.0f} of {total:,})"
            )
    return f"Most often {', and '.join(told)}."


def _more_labels(curve: LearningCurve | None, now: float) -> str:
    if curve is None:
        return "What more labels would bring was not measured."
    if now > _NEXT_TO_ALL:
        return "More labels would change little: next to all are right."
    low, expected, high = curve.doubled
    reached = f"Twice as many labels, {2 * curve.images:,}, would bring it from {now:.0%} to about {expected:.0%}"
    more = f"{reached} ({low:.0%} to {high:.0%}, by the {len(curve.labels)} points of the learning curve)"
    advice = "label more" if expected - now > 0.02 else "more labels alone would change little"
    return f"{more}: {advice}."


def of_inspection(found: Found, bundle: Bundle, measured: Defects | None) -> list[str]:
    a = bundle.manifest.anomaly
    assert a is not None  # it inspects
    rate = (
        f"Of 100 new sound images, about {_ceil(a.false_alarm_rate)} will be called defective (the threshold comes "
        f"from {a.calibrated_on:,} sound images, each judged by what had learnt from others)."
    )
    if measured is None:
        return [
            "Whether it finds defects is not known: there is no image of one. Put some into test/KIND beside "
            "train/good, or into a folder beside the sound ones, and run this again.",
            rate,
        ]
    area = measured.groups[0].measures["image_auroc"]
    if area.low <= 0.5:
        return [
            f"This is {NO_BETTER}: a defective image scores higher than a sound one in {area.value:.0%} of pairs "
            f"({area.low:.0%} to {area.high:.0%}). Do not use it.",
            rate,
        ]
    caught = measured.groups[0].measures["recall_at_threshold"]
    use = (
        "Good enough to be left alone for defects like these"
        if caught.low >= _ALONE
        else "Good enough to point a person at images"
        if area.low >= _SORTING
        else "Not good enough to be relied on yet"
    )
    sentences = [
        f"{use}: it calls {caught.value:.0%} of the {measured.groups[0].images:,} defective images defective "
        f"({caught.low:.0%} to {caught.high:.0%}), and a defective image scores higher than a sound one in "
        f"{area.value:.1%} of pairs ({area.low:.1%} to {area.high:.1%}).",
        rate,
    ]
    kinds = measured.groups[1:]
    if kinds:
        worst = min(kinds, key=lambda each: each.measures["image_auroc"].value)
        value = worst.measures["image_auroc"].value
        sentences.append(f"Hardest to find: {printable(worst.name)} ({value:.1%} of pairs).")
    return sentences


def _floor(share: float) -> int:
    return math.floor(100 * share + 1e-9)


def _ceil(share: float) -> int:
    return math.ceil(100 * share - 1e-9)
