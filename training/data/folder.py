"""Folders of image files: one folder per class, or images alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from app.bundle import ImageError, InputSpec, preprocess
from training import ranks
from training.data.imageset import ImageSet
from training.data.storage import shared, without
from training.errors import TrainingError
from training.progress import say, track

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MOST_BROKEN = 0.05  # of a folder's images; above it something else is wrong


def read_folder(folder: Path, spec: InputSpec, most_broken: float = MOST_BROKEN) -> ImageSet:
    """A folder per class, or images alone. Files that cannot be read are named, counted and left out."""
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and any(_images_in(entry))))
    files = [(path, index) for index, name in enumerate(classes) for path in sorted(_images_in(folder / name))]
    if not classes:
        files = [(path, -1) for path in sorted(_images_in(folder))]
    if not files:
        others = sorted({path.suffix for path in folder.rglob("*") if path.is_file() and path.suffix})[:5]
        found = f" (but {', '.join(others)})" if others else ""
        raise TrainingError(
            f"{folder}: no images in it, nor in the folders right below it{found}: "
            f"put images there, or a folder of them for each class ({', '.join(sorted(SUFFIXES))})"
        )

    def read(path: Path) -> np.ndarray | str:
        try:
            return preprocess(path.read_bytes(), spec)
        except (ImageError, OSError) as error:
            return f"{path}: {error}"

    place, places = ranks.here()
    mine = range(place, len(files), places)
    here: dict[int, str] = {}
    with shared((len(files), *spec.shape), np.uint8) as images, ThreadPoolExecutor() as pool:
        results = pool.map(read, (files[index][0] for index in mine))
        for index, result in track(zip(mine, results, strict=True), str(folder), len(mine)):
            if isinstance(result, str):
                here[index] = result
            else:
                images[index] = result
    broken = dict(sorted(pair for some in ranks.of_all(here) for pair in some.items()))
    for message in broken.values():
        say(f"left out {message}")
    if len(broken) > most_broken * len(files):
        first = next(iter(broken.values()))
        raise TrainingError(
            f"{folder}: {len(broken)} of {len(files)} images cannot be read, the first {first}; mend or remove them"
        )
    files = [file for index, file in enumerate(files) if index not in broken]
    labels = np.array([label for _, label in files] if classes else [], np.int64)
    names = tuple(str(path.relative_to(folder)) for path, _ in files)
    return ImageSet(without(images, broken), labels, classes, names)


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
