"""Paths on the command line → image files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import CannotScore

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file that could not be scored; `kind` is the API's name of the problem, such as not-an-image."""

    path: str
    kind: str
    detail: str


def unreadable(path: str, error: OSError) -> FileProblem:
    return FileProblem(path, "unreadable", (error.strerror or str(error)).lower())


def find(paths: Sequence[str]) -> tuple[list[str], list[FileProblem]]:
    """The images, and the folders that cannot be read. Each image is listed once, sorted within its folder.

    Files in a folder are images if they have one of SUFFIXES; a file that `paths` names always is.
    """
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise CannotScore(f"{missing[0]}: there is no such file or folder")
    problems: list[FileProblem] = []
    images: dict[str, None] = {}
    for path in (str(Path(path)) for path in paths):
        images.update(dict.fromkeys(_walk(path, problems) if os.path.isdir(path) else [path]))
    if not images:
        reason = f"; {problems[0].path}: {problems[0].detail}" if problems else ""
        raise CannotScore(f"{', '.join(paths)}: no image ({' '.join(SUFFIXES)}) in it or in folders below it{reason}")
    return list(images), problems


def _walk(top: str, problems: list[FileProblem]) -> Iterator[str]:
    """The images below `top`. Symbolic links are followed, except one to a folder that contains it."""
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
