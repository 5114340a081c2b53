"""Which files are meant by the paths that a person gives."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import CannotScore

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is no image that can be scored; `kind` as the API names it."""

    path: str
    kind: str
    detail: str


def unreadable(path: str, error: OSError) -> Problem:
    return Problem(path, "unreadable", (error.strerror or str(error)).lower())


def find(given: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """The images, each once, in the order given and sorted within a folder; and the folders that cannot be read.

    A folder's images are known by their suffixes, what is named itself is one.
    """
    missing = [path for path in given if not os.path.exists(path)]
    if missing:
        raise CannotScore(f"{missing[0]}: there is no such file or folder")
    problems: list[Problem] = []
    images: dict[str, None] = {}
    for path in (str(Path(path)) for path in given):
        images.update(dict.fromkeys(_walk(path, problems) if os.path.isdir(path) else [path]))
    if not images:
        why = f"; {problems[0].path}: {problems[0].detail}" if problems else ""
        raise CannotScore(f"{', '.join(given)}: no image in it ({' '.join(SUFFIXES)}), nor in folders below it{why}")
    return list(images), problems


def _walk(top: str, problems: list[Problem]) -> Iterator[str]:
    """Links are followed; one that leads back to a folder that it lies in is not."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
    while waiting:
        path, above = waiting.pop()
        if not os.path.isdir(path):
            yield path
            continue
        try:
            status = os.stat(path)
            names = os.listdir(path)
        except OSError as error:
            problems.append(unreadable(path, error))
            continue
        folder = (status.st_dev, status.st_ino)
        if folder in above:
            continue
        below = [name if path == "." else os.path.join(path, name) for name in sorted(names, reverse=True)]
        waiting += [(p, above | {folder}) for p in below if p.lower().endswith(SUFFIXES) or os.path.isdir(p)]
