"""Seeded, stratified splits: no image in two parts, no group in two parts."""

import contextlib
import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.bundle import InputSpec, Manifest
from training.data.imageset import ImageSet
from training.data.inspection import marked, marked_parts, usual_sound
from training.data.read import has_parts, read_part
from training.errors import TrainingError
from training.progress import say
from training.recipe import Recipe, Split


def split(data: ImageSet, sizes: tuple[int, ...], seed: int, groups: np.ndarray | None = None) -> tuple[ImageSet, ...]:
    """(the remainder, a set of each size). With `groups`, an id per image, sizes are met to within a group."""
    if sum(sizes) >= len(data):
        raise TrainingError(f"{len(data)} images cannot give {' + '.join(map(str, sizes))} and leave any to train on")
    rng = np.random.default_rng(seed)
    if groups is None:
        order = _dealt(data.strata, len(data), rng)
        ends: list[int] = np.cumsum(sizes).tolist()
    else:
        order, ends = _by_group(groups, sizes, rng)
    parts = [data.take(np.sort(part)) for part in np.split(order, ends)]
    if not len(parts[-1]):
        raise TrainingError("the groups are too large: nothing is left to train on; hold out less")
    return (parts[-1], *parts[:-1])


def train_and_test(data: str, spec: InputSpec, rules: Split, seed: int) -> tuple[ImageSet, ImageSet]:
    """The data set's own parts; without them, a share of every class is held out as the test part.

    Of a set for inspection the training part has the sound images alone; all images with defects are in the test part.
    """
    train = read_part(data, "train", spec)
    if has_parts(data):
        return marked_parts(train, read_part(data, "test", spec), rules.sound, data)
    return _divided(marked(train, rules.sound, data), rules, seed)


def read_and_split(data: str, spec: InputSpec, rules: Split, seed: int) -> tuple[ImageSet, ImageSet]:
    """As `train_and_test`, with every class in both parts: where labels are learnt, none is a defect."""
    train = read_part(data, "train", spec)
    if has_parts(data):
        return train, read_part(data, "test", spec)
    return _divided(train, rules, seed)


def list_training_part(data: str, rules: Split, seed: int) -> ImageSet:
    """The training part of `train_and_test`, listed and not decoded: see ImageSet.

    In a folder without parts of its own, an image that turns out broken moves others to the other part.
    """
    part = read_part(data, "train", None)
    if has_parts(data):
        sound = rules.sound if rules.sound in part.classes else None
        return replace(part, sound=sound).without_defects()
    return _divided(marked(part, rules.sound, data), rules, seed)[0]


def _divided(whole: ImageSet, rules: Split, seed: int) -> tuple[ImageSet, ImageSet]:
    if rules.folds and not whole.defective.any():
        return whole, whole.take(np.array([], np.int64))
    if whole.sound is None:
        return split(whole, (round(rules.test * len(whole)),), seed, _groups(whole, rules))  # type: ignore[return-value]
    groups, defective = _groups(whole, rules), whole.defective
    # A group with a defect is tested on as a whole.
    tested = defective if groups is None else np.isin(groups, groups[defective])
    free = np.flatnonzero(~tested)
    count = round(rules.test * int((~defective).sum())) - int((tested & ~defective).sum())
    if not len(free):
        raise TrainingError("every group has an image with a defect: no sound image is left to train on")
    if count > 0:
        numbers = replace(whole.take(free), images=free)  # in the place of the images, their places in `whole`
        train, test = split(numbers, (count,), seed, None if groups is None else groups[free])
        free, held_out = np.asarray(train.images), np.asarray(test.images)
    else:
        held_out = np.array([], np.int64)
    chosen = np.sort(np.concatenate([held_out, np.flatnonzero(tested)]))
    return whole.take(free).without_defects(), whole.take(chosen)


def part_to_measure(
    data: str | None, part: str, manifest: Manifest, sound: str | None = None
) -> tuple[ImageSet, ImageSet | None]:
    """(images to measure a bundle on, its training images if they are known); without `data`, the bundle's own.

    If the bundle was trained on a folder without parts, the folder is split by the bundle's recipe, so that no training
    image is measured by mistake. `sound` names the class of sound images where the others are defects.
    """
    name, spec = data or manifest.provenance.target, manifest.input
    stated = None
    with contextlib.suppress(ValueError):  # a recipe of another kind
        stated = Recipe.stored(manifest.provenance.recipe).split.sound
    if has_parts(name):
        train, test = read_part(name, "train", spec), read_part(name, "test", spec)
        sound = stated if sound is None and stated in (*train.classes, *test.classes) else sound
        train, test = marked_parts(train, test, sound, name)
        return (train if part == "train" else test), train
    whole = read_part(name, part, spec)
    labels = manifest.classifier.labels if manifest.classifier else ()
    if sound is None and whole.classes != labels:
        sound = stated if stated in whole.classes else usual_sound(whole.classes)
    whole = marked(whole, sound, name)
    with contextlib.suppress(ValueError, TrainingError):  # a recipe of another kind; groups or sizes that do not fit
        trained = Recipe.stored(manifest.provenance.recipe)
        train, test = _divided(whole, trained.split, trained.seed)
        trained_on = train.unlabelled(train.classes) if trained.transfer.adapts else train
        if trained_on.fingerprint() == manifest.provenance.data.get("target/train"):
            if not len(test):
                say(
                    f"note: the bundle has learnt from all images of {name}: these numbers are too good; its card has "
                    "those of images that networks had not seen"
                )
                return whole, train
            say(f"note: {name} is what the bundle was trained on; its {part} part, split as in training, is measured")
            return (train if part == "train" else test), train
    say(
        f"note: {name} has no test part, and is not exactly what the bundle was trained on: all of it is measured; "
        "if it contains training images, the numbers are too good"
    )
    return whole, None


def train_and_held_out(data: ImageSet, rules: Split, seed: int) -> tuple[ImageSet, ImageSet, ImageSet]:
    """(train, validation, calibration) of a training part."""
    sizes = min(rules.validation, len(data) // 10), min(rules.calibration, len(data) // 5)
    return split(data, sizes, seed, _groups(data, rules))  # type: ignore[return-value]


def train_and_validation(data: ImageSet, rules: Split, seed: int) -> tuple[ImageSet, ImageSet]:
    """(train, validation) of a source: it needs no calibration part."""
    return split(data, (min(rules.validation, len(data) // 10),), seed, _groups(data, rules))  # type: ignore[return-value]


def some_of_each(data: ImageSet, count: int, seed: int) -> np.ndarray:
    """Sorted indices of `count` images per class; a larger count includes those of a smaller one."""
    order = np.random.default_rng(seed).permutation(len(data))
    labels = data.labels[order]
    chosen = [order[labels == label][:count] for label in range(len(data.classes))]
    return np.sort(np.concatenate(chosen))


def _groups(data: ImageSet, rules: Split) -> np.ndarray | None:
    return stated_groups(data, rules.groups)


def stated_groups(data: ImageSet, rule: str | None) -> np.ndarray | None:
    """(N,) ids by `split.groups` or else by the data set's own table; None if neither states groups."""
    if rule is None:
        return np.array(data.groups) if data.groups else None
    return groups_of(data, rule) if data.names else None


def groups_and_copies(data: ImageSet, stated: np.ndarray | None) -> np.ndarray:
    """(N,) ids, equal for images of one stated group and for exact copies, across groups too."""
    named = np.arange(len(data)) if stated is None else stated
    _, group = np.unique(named, return_inverse=True)
    first: dict[bytes, int] = {}
    parent = np.arange(group.max(initial=-1) + 1)  # union-find: a group that this one is joined with, or itself

    def root(of: int) -> int:
        while parent[of] != of:
            of = parent[of]
        return of

    for key, own in zip(data.hashes(), group, strict=True):
        parent[root(own)] = root(first.setdefault(key, own))
    return np.array([root(own) for own in group], np.int64)


def _dealt(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """An order in which every prefix holds every class in its proportion.

    Within a shuffled order each image has its rank in its class, as a share of the class; sorting by that share deals
    every class out evenly.
    """
    shuffled = rng.permutation(count)
    if not len(labels):
        return shuffled
    share = np.empty(count)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        share[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return shuffled[np.argsort(share, kind="stable")]


def _by_group(groups: np.ndarray, sizes: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """(order of images by whole groups, where each part ends): a part ends once it has its size."""
    names, member_of = np.unique(groups, return_inverse=True)
    order: list[np.ndarray] = []
    ends: list[int] = []
    taken = 0
    for group in rng.permutation(len(names)):
        if len(ends) < len(sizes) and taken >= sum(sizes[: len(ends) + 1]):
            ends.append(taken)
        members = np.flatnonzero(member_of == group)
        order.append(members)
        taken += len(members)
    ends += [taken] * (len(sizes) - len(ends))
    return np.concatenate(order), ends


def groups_of(data: ImageSet, rule: str) -> np.ndarray:
    """An id per image: from a CSV of `file,group` lines, or the first group of a regular expression on its path."""
    if not data.names:
        raise TrainingError(f"split.groups={rule}: only images from a folder have names to group by")
    if rule.endswith(".csv"):
        return _from_csv(data.names, Path(rule))
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise TrainingError(f"split.groups={rule}: not a regular expression: {error}") from None
    if not pattern.groups:
        raise TrainingError(f"split.groups={rule}: put the part that names the group in brackets, as in (\\d+)_")
    found = [pattern.search(name) for name in data.names]
    for name, match in zip(data.names, found, strict=True):
        if match is None:
            raise TrainingError(f"split.groups={rule}: does not match {name}")
    return np.array([match[1] for match in found if match is not None])


def _from_csv(names: tuple[str, ...], path: Path) -> np.ndarray:
    try:
        with path.open(newline="") as file:
            table = {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) >= 2}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"split.groups={path}: {error}") from None
    missing = [name for name in names if name not in table and Path(name).name not in table]
    if missing:
        raise TrainingError(f"split.groups={path}: no line for {missing[0]} ({len(missing)} files in all)")
    return np.array([table.get(name) or table[Path(name).name] for name in names])
