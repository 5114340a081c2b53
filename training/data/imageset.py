"""Images as the encoder takes them, with their labels and names."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.data.storage import Rows, chunks, take
from training.errors import TrainingError, printable


@dataclass(frozen=True)
class ImageSet:
    """`labels` index `classes`; both are empty where the images have none, `names` where they are not files.

    The target of a domain adaptation has the source's classes, and no labels. In a set that is listed and not yet
    decoded, `images` are the paths, (N,) objects, or the arrays of the data set's own size, (N, H, W) or (N, H, W, C).
    """

    images: np.ndarray | Rows  # (N, H, W, C) uint8, as the encoder takes them; Rows where it is larger than memory
    labels: np.ndarray  # (N,) int64, or (0,)
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()  # paths within the folder

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> "ImageSet":
        labels = self.labels[indices] if len(self.labels) else self.labels
        names = tuple(self.names[index] for index in indices) if self.names else ()
        return ImageSet(take(self.images, indices), labels, self.classes, names)

    def unlabelled(self, classes: tuple[str, ...]) -> "ImageSet":
        """The same images without their labels; they may be of these classes."""
        return ImageSet(self.images, np.array([], np.int64), classes, self.names)

    def name(self, index: int) -> str:
        return self.names[index] if self.names else f"number {index}"

    def hashes(self) -> Iterator[bytes]:
        """A hash per image, in order; identical images have the same. Images are read one at a time."""
        return (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in self.images)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for part in (*chunks(self.images), self.labels):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


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
