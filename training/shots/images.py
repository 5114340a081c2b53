"""Reading shots: a folder per class, a few images in each. No torch."""

from pathlib import Path

import numpy as np

from app.bundle import InputSpec
from training.data.folder import EMPTY, read_folder, survey
from training.data.imageset import ImageSet
from training.errors import TrainingError, printable

FEWEST = 2  # images of a class: one to leave out, one to classify it by


def read_shots(folder: Path, spec: InputSpec) -> ImageSet:
    """A folder per class. With so few images, one that cannot be read is an error, not a warning."""
    folder = folder / "train" if (folder / "train").is_dir() else folder
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; give one with a folder of images in it for each class")
    empty = survey(folder).left_out.get(EMPTY, [])
    if empty:
        raise TrainingError(
            f"{printable(str(folder / empty[0]))}: no images in it; put some there, or remove the folder"
        )
    images = read_folder(folder, spec, most_broken=0)
    if len(images.classes) < 2:
        found = f"one class, {images.classes[0]}" if images.classes else "images, but no folders of them"
        raise TrainingError(
            f"{folder}: {found}; put the images of each class, of two at least, into a folder of its own"
        )
    counts = np.bincount(images.labels)
    if counts.min() < FEWEST:
        single = images.classes[int(counts.argmin())]
        raise TrainingError(f"{folder / single}: a single image; {FEWEST} are needed, 5 are better")
    return images
