"""Warnings about a data set before training: few images, imbalance, unequal parts, masks, duplicates across parts."""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from app.bundle import ImageError
from app.bundle.decode import read_dimensions
from training.data.imageset import ImageSet, Mask
from training.data.masks import open_mask
from training.data.storage import Rows, chunks
from training.errors import TrainingError, listed
from training.progress import track

FEW = 10  # images per class below which its accuracy means little
UNEVEN = 5  # times as many images in the largest class as in the smallest
NEAR = 4.0  # grey levels of 255, root mean square: the same picture, saved twice
_FEW_SOUND = 100  # sound images: a fifth of them holds a threshold at 5 % false alarms
_SAME_ASPECT = 0.02
_MOSTLY = 0.5  # share of an image above which its mask is doubted
_THUMBNAIL = 8
_CHUNK = 1024


def table(train: ImageSet, test: ImageSet) -> list[str]:
    """A line for each class: its images in both parts, and the masks where there are any."""
    classes = (*train.classes, *(name for name in test.classes if name not in train.classes))
    if not classes:
        return [f"{len(train):,} images without labels to train on, {len(test):,} to test on"]
    of_train, of_test = _counts(train), _counts(test)
    if test.masks and test.classes and test.several is None:
        with_mask = np.array([mask.file is not None for mask in test.masks])
        masks = dict(zip(test.classes, np.bincount(test.labels[with_mask], minlength=len(test.classes)), strict=True))
        width = max(len("class"), *map(len, classes))
        columns = (of_train, of_test, masks)
        lines = [f"{name:{width}}" + "".join(f" {each.get(name, 0):8,}" for each in columns) for name in classes]
        return [f"{'class':{width}}    train     test    masks", *lines]
    rows = [(name, of_train.get(name, 0), of_test.get(name, 0)) for name in classes]
    if not train.classes or not test.classes:
        rows.append(("(no label)", len(train) - sum(of_train.values()), len(test) - sum(of_test.values())))
    width = max(len(name) for name, _, _ in rows)
    return [f"{'class':{width}}    train     test", *(f"{name:{width}} {a:8,} {b:8,}" for name, a, b in rows)]


def _counts(part: ImageSet) -> dict[str, int]:
    return dict(zip(part.classes, part.counts.tolist(), strict=True))


def warnings(train: ImageSet, test: ImageSet) -> Iterator[str]:
    """Sentences, each naming the problem and the remedy."""
    yield from class_warnings(train)
    yield from part_warnings(train, test)
    yield from mask_warnings(test)
    yield from duplicate_warnings(train, test)


def class_warnings(train: ImageSet, folds: int = 0) -> Iterator[str]:
    """About classes with few images, a single class, and imbalance; `folds` as in anomaly.folds."""
    if not train.classes:
        return
    if train.sound is not None:
        if not folds:
            yield from _sound_warnings(train)
        return
    counts = _counts(train)
    few = sorted((count, name) for name, count in counts.items() if count < FEW)
    if few:
        names = listed([f"{name} ({count})" for count, name in few])
        yield f"classes with few images: {names}; with fewer than {FEW}, no number about a class can be trusted"
    if len(counts) == 1:
        yield f"{train.classes[0]} is the only class: there is nothing to classify; train with transfer.mode=decoder"
        return
    large, small = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if train.several is None and counts[small] and counts[large] >= UNEVEN * counts[small]:
        yield (
            f"{large} has {counts[large] / counts[small]:.0f} times the images of {small}: "
            "set transfer.class_weights=true, and read balanced_accuracy"
        )


def _sound_warnings(train: ImageSet) -> Iterator[str]:
    held_out = len(train) // 5
    if len(train) < _FEW_SOUND:
        lowest = f"{held_out} images bear no rate of false alarms below {1 / (held_out + 1):.1%}"
        yield (
            f"few sound images ({len(train):,}): where a fifth is held out to set the threshold, {lowest}; with "
            f"{_FEW_SOUND} it could be 5 %; the recipe inspect holds none out"
        )


def part_warnings(train: ImageSet, test: ImageSet) -> Iterator[str]:
    """About classes that only one part has."""
    if not train.classes or not test.classes or train.sound is not None:
        return
    of_test = [name for name in test.classes if name not in train.classes]
    of_train = [name for name in train.classes if name not in test.classes]
    if of_test:
        yield (
            f"in the test part only: {listed(of_test)}. If these are defects to detect, train on the training part "
            "alone (name its folder as source and target) with transfer.mode=decoder; if they are classes to learn, "
            "put images of them into the training part"
        )
    if of_train:
        yield f"in the training part only: {listed(of_train)}. Put images of them into the test part to measure them"


def mask_warnings(test: ImageSet) -> Iterator[str]:
    """About masks that are missing, cannot be read, or do not fit their images."""
    if not test.masks:
        return
    wrong: dict[str, list[str]] = {}
    paired = list(zip(test.names, test.masks, test.defective, strict=True))
    for name, mask, defective in track(paired, "masks", len(paired)):
        problem = mask_problem(mask) if mask.file is not None and defective else None
        if mask.file is None and defective:
            problem = "defects without a mask: where they are is not known, and not measured"
        elif mask.file is not None and not defective and test.sound is not None:
            problem = "sound images with a mask, which is ignored"
        if problem is not None:
            wrong.setdefault(problem, []).append(name)
    for problem, names in wrong.items():
        yield f"{problem} ({len(names):,}): {listed(names)}"


def mask_problem(mask: Mask) -> str | None:
    """What is wrong with a mask, beside its image."""
    try:
        size = read_dimensions(mask.image)[:2]
        marked = open_mask(mask)
    except TrainingError as error:
        return f"masks that cannot be read, as {error}"
    except ImageError:
        return None  # the image cannot be read, and it is left out
    if not marked.any():
        return "masks without a white pixel"
    if marked.mean() > _MOSTLY:
        return f"masks that are white over more than {_MOSTLY:.0%} of the image: white must be the defect"
    if marked.shape != size and abs(marked.shape[0] * size[1] / (marked.shape[1] * size[0]) - 1) > _SAME_ASPECT:
        return "masks of another aspect than their image: they are stretched to it"
    if marked.shape != size:
        return "masks of another size than their image: they are scaled to it"
    return None


def duplicate_warnings(train: ImageSet, test: ImageSet) -> Iterator[str]:
    """About test images that are also in the training part."""
    exact, near = duplicates(train, test)
    for pairs, what in ((exact, "is, to the pixel,"), (near, f"is within {NEAR:g} grey levels of")):
        if pairs:
            first, second = pairs[0]
            shown = f"the first: {test.name(first)} {what} {train.name(second)}"
            yield (
                f"of {len(test):,} test images the training part has {len(pairs):,} too ({shown}): "
                f"accuracy on them is too high; remove them, or keep images that belong together with split.groups"
            )


def duplicates(train: ImageSet, test: ImageSet) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(exact, near): (test image, training image) pairs, each test image once at the most."""
    seen: dict[bytes, int] = {}
    for index, key in enumerate(train.hashes()):
        seen.setdefault(key, index)
    exact = [(index, seen[key]) for index, key in enumerate(test.hashes()) if key in seen]
    if not len(train) or not len(test):
        return exact, []
    known = {index for index, _ in exact}
    small_train, small_test = thumbnails(train.images), thumbnails(test.images)
    norms = np.square(small_train).sum(axis=1)
    near = []
    starts = range(0, len(test), _CHUNK)
    for start in track(starts, "duplicates", len(starts)):
        part = small_test[start : start + _CHUNK]
        distances = np.square(part).sum(axis=1)[:, None] + norms - 2 * part @ small_train.T  # (chunk, train)
        nearest = distances.argmin(axis=1)
        for offset in np.flatnonzero(distances.min(axis=1) <= NEAR**2 * part.shape[1]):
            pair = int(start + offset), int(nearest[offset])
            if pair[0] not in known and _difference(test.images[pair[0]], train.images[pair[1]]) <= NEAR:
                near.append(pair)
    return exact, near


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """The root of the mean square, in grey levels; without bound between pictures of two sizes."""
    if one.shape != other.shape:
        return math.inf
    return float(np.sqrt(np.square(one.astype(np.float32) - other).mean()))


def thumbnails(images: np.ndarray | Rows, side: int = _THUMBNAIL) -> np.ndarray:
    """(N, H, W, C) uint8 → (N, side²) float32, the means over a grid of the mean over channels."""
    return np.concatenate([_thumbnails_of(part, side) for part in chunks(images)])


def _thumbnails_of(images: np.ndarray, side: int) -> np.ndarray:
    grey = images.mean(axis=3, dtype=np.float32)
    rows, columns = (np.linspace(0, length, side + 1).astype(int) for length in grey.shape[1:])
    cells = [
        grey[:, a : max(b, a + 1), c : max(d, c + 1)].mean(axis=(1, 2))
        for a, b in pairwise(rows)
        for c, d in pairwise(columns)
    ]
    return np.stack(cells, axis=1)
