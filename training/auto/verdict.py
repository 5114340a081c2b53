"""What came of it, in a few sentences that flatter nobody."""

import math

import numpy as np

from app.bundle import Bundle
from training.auto.chance import by_chance, dealt_at_random, labels_by_chance, same_for_all
from training.auto.curve import LearningCurve
from training.auto.look import Found
from training.errors import listed, printable
from training.measure import intervals
from training.measure.defects import Defects
from training.publish.crossed import Crossed, micro_f1_across, precision_across

NO_BETTER = "no better than chance"
_NEXT_TO_ALL = 0.985  # accuracy
_ALONE, _SORTING = 0.95, 0.75  # lower ends of the expected accuracy


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
    place of the network. `others`: what the contenders that were not chosen reached. Of one label each."""
    labels, classes = crossed.labels, found.train.classes
    right = crossed.right
    hits, images = round(float(right.sum())), len(labels)
    commonest = np.bincount(labels, minlength=len(classes))
    guessed, usual = commonest.max() / images, printable(classes[int(commonest.argmax())])
    low, high = intervals.across_folds(float(right.sum()), images)
    how = _how(images)
    if by_chance(hits, images, guessed, tries=1 + len(others)):
        return [
            f"This is {NO_BETTER}: {right.mean():.0%} right, where always saying {usual} gets {guessed:.0%} ({how}). "
            f"{_LOOK if pixels is None or by_chance(round(pixels * images), images, guessed) else _untaught(pixels)}"
        ]
    expected = f"Of 100 new images like these, expect {_floor(low)} to {_ceil(high)} right ({how}; "
    return [
        f"{_use(low)} {expected}always saying {usual} would get {guessed:.0%}).",
        *([] if tested is None else [_of_test_part(*tested, "right")]),
        _mistakes(crossed, classes),
        _helped(chosen, float(right.mean()), pixels, others),
        _more_labels(curve, float(right.mean())),
    ]


def of_labels(
    found: Found,
    crossed: Crossed,
    *,
    tested: tuple[int, int] | None,
    pixels: float | None,
    chosen: str,
    others: list[str],
    curve: LearningCurve | None,
) -> list[str]:
    """As `of_classes`, by micro F1, where an image may have several labels. `tested`: (images that are given exactly
    their labels, images)."""
    members, how, f1 = crossed.members, _how(len(crossed.labels)), micro_f1_across(crossed)
    always, usual = same_for_all(members)
    every = len(usual) == members.shape[1]
    named = f"all {len(usual)} labels" if every else listed([found.train.classes[label] for label in usual])
    same = f"always saying {named}"
    if labels_by_chance(crossed, tries=1 + len(others)):
        exchanged, _ = dealt_at_random(crossed)
        return [
            f"This is {NO_BETTER}: micro F1 of its labels is {f1.value:.0%}; it is {exchanged:.0%} if the images "
            f"exchange their answers at random, and {always:.0%} by {same} ({how}). {_LOOK}"
        ]
    hits, precision = (crossed.given & members).sum(), precision_across(crossed)
    right, recall = 100 * hits / max(1, crossed.given.sum()), 100 * hits / (len(crossed.given) * members.sum())
    return [
        f"{_use(f1.low, 'labels')} Of 100 labels that it gives, about {right:.0f} are right; of 100 that images have, "
        f"it gives about {recall:.0f}. Micro F1 is {f1.value:.0%}: of new images like these, expect {f1.low:.0%} to "
        f"{f1.high:.0%} ({how}; {same} would get {always:.0%}).",
        f"Exactly its labels are given to {crossed.all_right.mean():.0%} of the images. Mean average precision is "
        f"{precision.value:.0%} ({precision.low:.0%} to {precision.high:.0%}; by chance {members.mean():.0%}).",
        *([] if tested is None else [_of_test_part(*tested, "given exactly their labels")]),
        _found_worst(crossed, found.train.classes),
        _helped(chosen, f1.value, pixels, others),
        _more_labels(curve, f1.value, "micro F1"),
    ]


_LOOK = "Do not use it: look whether the labels are right, and whether a person could tell these images apart."


def _untaught(pixels: float) -> str:
    return (
        f"Do not use it: by pixels alone, {pixels:.0%} would be right, so it was the training that failed. Give more "
        "--minutes or more images, or let it take published weights."
    )


def _how(images: int) -> str:
    return f"each of the {images:,} images was judged by what had learnt from other folds"


def _of_test_part(right: int, images: int, what: str) -> str:
    low, high = intervals.wilson(right, images)
    return (
        f"Of its test part, which was used for no choice, {right / images:.1%} of {images:,} are {what} "
        f"({low:.1%} to {high:.1%})."
    )


def _helped(chosen: str, reached: float, pixels: float | None, others: list[str]) -> str:
    """What the network brought over pixels alone, and over other contenders."""
    helped = f"Chosen: {chosen}"
    if pixels is not None:
        gain = 100 * (reached - pixels)
        helped += f"; without it, by pixels alone, {pixels:.0%} would be right: it brings {gain:+.0f} points"
    if others:
        helped += f". Beside it: {'; '.join(others)}"
    return f"{helped}."


def _use(low: float, what: str = "answers") -> str:
    if low >= _ALONE:
        return f"Good enough to be left alone where up to {_ceil(1 - low)} of 100 {what} may be wrong."
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


def _found_worst(crossed: Crossed, classes: tuple[str, ...]) -> str:
    """The labels of the lowest F1; counts are means over deals."""
    members, given = crossed.members, crossed.given.mean(axis=0)
    hits, wrong, images = (given * members).sum(axis=0), (given * ~members).sum(axis=0), members.sum(axis=0)
    f1 = 2 * hits / (hits + wrong + images)
    worst = [
        f"{printable(classes[label])} (given to {hits[label]:.0f} of its {images[label]:,} images, and to "
        f"{wrong[label]:.0f} others)"
        for label in np.argsort(f1, kind="stable")[:2]
        if f1[label] < 1
    ]
    return f"Found worst: {', and '.join(worst)}." if worst else "None of the labels is missed or given wrongly."


def _more_labels(curve: LearningCurve | None, now: float, what: str = "it") -> str:
    if curve is None:
        return "What more labels would bring was not measured."
    if now > _NEXT_TO_ALL:
        return "More labels would change little: next to all are right."
    low, expected, high = curve.doubled
    reached = f"Twice as many labels, {2 * curve.images:,}, would bring {what} from {now:.0%} to about {expected:.0%}"
    more = f"{reached} ({low:.0%} to {high:.0%}, by the {len(curve.labelled)} points of the learning curve)"
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
