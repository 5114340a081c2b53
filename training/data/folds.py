"""Folds of images for cross-validation: pictures of one item lie in one fold."""

import re
from pathlib import PurePosixPath

import numpy as np

from training.data.imageset import ImageSet
from training.data.splits import groups_of
from training.errors import TrainingError, printable
from training.recipe import Split

_SEPARATOR = re.compile(r"[-_. ]+")


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
