"""Images as the encoder takes them, with their labels and names."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.data.pictures import Pictures
from training.data.storage import Rows, chunks, take
from training.errors import TrainingError, printable


class Mask(NamedTuple):
    """The file that shows where an image has defects, or None; and the image's, whose size says where both lie."""

    file: Path | None
    image: Path


@dataclass(frozen=True)
class ImageSet:
    """`labels` index `classes`; both are empty where the images have none, `names` where they are not files.

    The target of a domain adaptation has the source's classes, and no labels. In a set that is listed and not yet
    decoded, `images` are the paths, (N,) objects, or the arrays of the data set's own size, (N, H, W) or (N, H, W, C).

    In a set for inspection `sound` names the class of images without a defect; the other classes are kinds of defect.

    Where an image may have several labels, or none, `several` says which of the classes each has; `labels` is empty.
    """

    # (N, H, W, C) uint8, as the encoder takes them; Rows where it is larger than memory, Pictures where tiles are cut.
    images: np.ndarray | Rows
    labels: np.ndarray  # (N,) int64, or (0,)
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()  # paths within the folder
    sound: str | None = None
    masks: tuple[Mask, ...] = ()  # of each image; empty where no image has one
    groups: tuple[str, ...] = ()  # of each image, where a table states them: images of a group stay in one part
    several: np.ndarray | None = None  # (N, K) bool

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> "ImageSet":
        labels = self.labels[indices] if len(self.labels) else self.labels
        several = None if self.several is None else self.several[indices]
        names, masks, groups = (
            tuple(each[index] for index in indices) if each else () for each in (self.names, self.masks, self.groups)
        )
        images = take(self.images, indices)
        return replace(self, images=images, labels=labels, names=names, masks=masks, groups=groups, several=several)

    def unlabelled(self, classes: tuple[str, ...]) -> "ImageSet":
        """The same images without their labels; they may be of these classes."""
        return ImageSet(self.images, np.array([], np.int64), classes, self.names, groups=self.groups)

    @property
    def labelled(self) -> bool:
        return len(self.labels) > 0 or self.several is not None

    @property
    def counts(self) -> np.ndarray:
        """(K,) images of each class."""
        if self.several is not None:
            return np.asarray(self.several.sum(axis=0))
        return np.bincount(self.labels, minlength=len(self.classes))

    @property
    def truth(self) -> np.ndarray:
        """(N,) labels, or (N, K) bool where an image may have several; (0,) without labels."""
        return self.labels if self.several is None else self.several

    @property
    def members(self) -> np.ndarray:
        """(N, K) bool: whether each image has each label."""
        return members_of(self.truth, len(self.classes))

    @property
    def strata(self) -> np.ndarray:
        """(N,) int64 that splits are stratified by; (0,) without labels."""
        return strata_of(self.truth)

    @property
    def defective(self) -> np.ndarray:
        """(N,) bool; none is where nothing is known of defects."""
        if self.sound is None or not len(self.labels):
            return np.zeros(len(self), bool)
        return np.asarray(self.labels != self.classes.index(self.sound))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of defect that there are images of."""
        if not len(self.labels):
            return ()
        return tuple(self.classes[label] for label in np.unique(self.labels[self.defective]))

    def without_defects(self) -> "ImageSet":
        """The sound images alone, of one class; the set itself where nothing is known of defects."""
        if self.sound is None or self.classes == (self.sound,):
            return self
        sound = self.take(np.flatnonzero(~self.defective))
        return replace(sound, labels=np.zeros(len(sound), np.int64), classes=(self.sound,))

    def name(self, index: int) -> str:
        return self.names[index] if self.names else f"number {index}"

    def hashes(self) -> Iterator[bytes]:
        """A hash per image, in order; identical images have the same. Images are read one at a time."""
        return iter(self.images.hashes) if isinstance(self.images, Pictures) else map(hash_of, self.images)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        if isinstance(self.images, Pictures):
            digest.update(b"".join(self.images.hashes))
        else:
            for part in chunks(self.images):
                digest.update(np.ascontiguousarray(part).data)
        digest.update(np.ascontiguousarray(self.truth).data)
        return digest.hexdigest()


def members_of(truth: np.ndarray, classes: int) -> np.ndarray:
    """(N, K) bool: whether each image has each label. `truth` is that of ImageSet."""
    return np.asarray(truth if truth.ndim == 2 else truth[:, None] == np.arange(classes))


def strata_of(labels: np.ndarray) -> np.ndarray:
    """(N,) labels as they are; of several, (N, K), the rarest that each image has, or K.

    So rare labels are dealt out evenly, and the others nearly so.
    """
    if labels.ndim == 1:
        return labels
    several = labels.astype(bool)
    rarest_first = np.argsort(several.sum(axis=0), kind="stable")
    first = several[:, rarest_first].argmax(axis=1)
    return np.asarray(np.where(several.any(axis=1), rarest_first[first], several.shape[1]))


def hash_of(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def refuse_bad_names(classes: tuple[str, ...], where: str) -> None:
    """Labels are written as UTF-8, each on a line of its own."""
    if len(set(classes)) < len(classes):
        twice = next(name for index, name in enumerate(classes) if name in classes[:index])
        raise TrainingError(f"{where}: the class {printable(twice)} occurs twice; rename one")
    for name in classes:
        if printable(name) != name:
            raise TrainingError(
                f"{where}: {printable(name)} cannot name a class: it has a control character, or a byte that is not "
                "UTF-8; rename it"
            )
