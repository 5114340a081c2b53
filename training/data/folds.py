"""Folds of images for cross-validation: pictures of one item lie in one fold."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from training.data.imageset import ImageSet
from training.data.splits import groups_and_copies, groups_of, stated_groups
from training.errors import TrainingError, listed, printable
from training.progress import say
from training.recipe import Split

_SEPARATOR = re.compile(r"[-_. ]+")


@dataclass(frozen=True)
class Folds:
    """Folds of labelled images, dealt once or several times."""

    numbers: np.ndarray  # (R, N): in each deal, the number of the fold that holds an image
    how: str  # they were grouped, for people

    @property
    def count(self) -> int:
        return int(self.numbers.max()) + 1

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """(the deal, (N,) bool: the images of a fold), fold by fold."""
        return ((deal, numbers == fold) for deal, numbers in enumerate(self.numbers) for fold in range(self.count))


def labelled_folds(data: ImageSet, rules: Split, seed: int) -> Folds:
    """`split.folds` folds, dealt `split.repeats` times, or as many as the rarest class can fill; every fold has its
    share of each class, or nearly so of labels of which an image may have several.

    Copies of an image are in one fold. Groups are those of `split.groups` or the data set's own; else of the beginning
    of file names, if every class has more of them than folds.
    """
    count, named, how = rules.folds, rules, ""
    if rules.groups is not None and data.names:
        how = f"grouped by split.groups={rules.groups}"
    elif data.groups:
        how = "grouped as the list states"
    elif (found := _prefixes_of_classes(data, count)) is not None:
        data = replace(data, groups=tuple(found.tolist()))
        how = f"grouped by the beginning of their names, as {printable(found[0])} of {printable(data.names[0])}"
    groups = groups_and_copies(data, stated_groups(data, named.groups))
    names, member_of = np.unique(groups, return_inverse=True)
    own = _groups_of_labels(data, member_of)
    if (fewest := min(own)) < count:
        name, what = printable(data.classes[own.index(fewest)]), "groups" if how else "different images"
        if fewest < 2:
            raise TrainingError(f"{name} has {fewest} {what}, and two are needed to learn and to judge it: add images")
        say(f"note: {name} has {fewest} {what}, which make {fewest} folds")
        count = fewest
    dealt = _dealt_by_class if data.several is None else _dealt_by_labels
    numbers = np.stack([dealt(member_of, data.truth, count, seed + deal) for deal in range(rules.repeats)])
    folds = Folds(numbers, f"{how}: {len(names)} groups" if how else "each image by itself")
    _refuse_unlearnable(data, folds)
    return folds


def _groups_of_labels(data: ImageSet, member_of: np.ndarray) -> list[int]:
    """How many groups the images of each label are of."""
    return [len(np.unique(member_of[own])) for own in data.members.T]


def _refuse_unlearnable(data: ImageSet, folds: Folds) -> None:
    """Every label is learnt beside each fold."""
    members = data.members
    for _, held in folds:
        lacking = [name for name, known in zip(data.classes, members[~held].any(axis=0), strict=True) if not known]
        if lacking:
            raise TrainingError(
                f"split.folds={folds.count}: all images of {listed(lacking)} came to lie in one fold: set another "
                "seed, or add images"
            )


def _prefixes_of_classes(data: ImageSet, count: int) -> np.ndarray | None:
    found = prefixes(data.names, count)
    if found is None:
        return None
    return found if min(_groups_of_labels(data, found), default=0) > count else None


def _dealt_by_class(member_of: np.ndarray, labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Whole groups, the largest first, each to the fold that lacks its classes most."""
    sizes, classes = np.bincount(member_of), int(labels.max()) + 1
    of_group = np.zeros((len(sizes), classes))
    np.add.at(of_group, (member_of, labels), 1)
    order = np.random.default_rng(seed).permutation(len(sizes))
    fold_of, held = np.empty(len(sizes), np.int64), np.zeros((count, classes))
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        own = of_group[group]
        chosen = np.lexsort((held.sum(axis=1), held @ own))[0]
        fold_of[group] = chosen
        held[chosen] += own
    return np.asarray(fold_of[member_of])


def _dealt_by_labels(member_of: np.ndarray, several: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Iterative stratification (Sechidis et al. 2011) of whole groups.

    The label that fewest waiting images have is dealt out next: its groups, the largest first, each to the fold that
    lacks the label most. Images of no label are dealt out like a label's.
    """
    sizes = np.bincount(member_of)
    of_group = np.zeros((len(sizes), several.shape[1] + 1))
    np.add.at(of_group, member_of, np.column_stack([several, ~several.any(axis=1)]))
    lacking = np.tile(of_group.sum(axis=0) / count, (count, 1))
    room = np.full(count, len(member_of) / count)
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of = np.full(len(sizes), -1)
    while len(waiting := order[fold_of[order] < 0]):
        left = of_group[waiting].sum(axis=0)
        label = int(np.where(left > 0, left, np.inf).argmin())
        for group in waiting[of_group[waiting, label] > 0]:
            chosen = np.lexsort((-room, -lacking[:, label]))[0]
            fold_of[group] = chosen
            lacking[chosen] -= of_group[group]
            room[chosen] -= sizes[group]
    return np.asarray(fold_of[member_of])


def folds_of(data: ImageSet, count: int, rules: Split, seed: int) -> tuple[np.ndarray, str]:
    """((N,) number of the fold that holds each image, how they were grouped, for people).

    Groups are those of `split.groups`; without it, of the beginning of the file names, where it groups them.
    """
    if len(data) < count:
        raise TrainingError(f"{len(data)} images cannot make {count} folds: lower anomaly.folds, or add images")
    if rules.groups is not None and data.names:
        groups, how = groups_of(data, rules.groups), f"grouped by split.groups={rules.groups}"
    else:
        found = prefixes(data.names, count)
        if found is None:
            return _dealt(np.arange(len(data)), count, seed), "each image by itself"
        groups = found
        how = f"grouped by the beginning of their names, as {printable(groups[0])} of {printable(data.names[0])}"
    names, member_of = np.unique(groups, return_inverse=True)
    if len(names) < count:
        raise TrainingError(
            f"split.groups={rules.groups}: {len(names)} groups cannot make {count} folds: lower anomaly.folds"
        )
    return _dealt(member_of, count, seed), f"{how}: {len(names)} groups"


def prefixes(names: tuple[str, ...], least: int) -> np.ndarray | None:
    """(N,) the shortest beginning of every name, up to a separator, that makes at least so many groups.

    None if there is none, or if it leaves most images to themselves.
    """
    stems = [PurePosixPath(name).stem for name in names]
    parts = [_SEPARATOR.split(stem) for stem in stems]
    for length in range(1, max((len(each) for each in parts), default=0)):
        # Of a name with fewer parts the last is not dropped: it would be the whole name.
        found = np.array(["_".join(each[: min(length, max(1, len(each) - 1))]) for each in parts])
        groups = len(np.unique(found))
        if groups >= least:
            return found if 2 * groups <= len(names) else None
    return None


def _dealt(member_of: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Whole groups, the largest first, each to the fold that has the fewest images yet."""
    sizes = np.bincount(member_of)
    order = np.random.default_rng(seed).permutation(len(sizes))
    fold_of, held = np.empty(len(sizes), np.int64), np.zeros(count, np.int64)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold_of[group] = held.argmin()
        held[held.argmin()] += sizes[group]
    return np.asarray(fold_of[member_of])
