"""Paths on the command line → image files."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import CannotScore, GraftError, kebab

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file that could not be scored; `kind` is the API's name of the problem, such as not-an-image."""

    path: str
    kind: str
    detail: str


def unreadable(path: str, error: OSError) -> FileProblem:
    return FileProblem(path, "unreadable", (error.strerror or str(error)).lower())


def problem_of(path: str, error: OSError | MemoryError | GraftError) -> FileProblem:
    if isinstance(error, OSError):
        return unreadable(path, error)
    if isinstance(error, MemoryError):
        return FileProblem(path, "unreadable", "not enough memory to decode it")
    return FileProblem(path, kebab(type(error).__name__), str(error))


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
    """The images below `top`. Symbolic links are followed, to places outside it too, as training does.

    Each folder is read once, under its own path where it lies below `top`: links in a circle end, and folders that link
    to each other are not read once for each way between them.
    """
    waiting, links = [top], deque[str]()  # linked folders come last
    known: set[tuple[int, int]] = set()
    while waiting or links:
        path = waiting.pop() if waiting else links.popleft()
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
        if folder in known:
            continue
        known.add(folder)
        below = [name if path == "." else os.path.join(path, name) for name in sorted(names)]
        folders = {p for p in below if os.path.isdir(p)}
        links += [p for p in below if p in folders and os.path.islink(p)]
        waiting += [
            p
            for p in reversed(below)
            if (p in folders and not os.path.islink(p)) or (p not in folders and _is_image(p))
        ]


def _is_image(path: str) -> bool:
    return path.lower().endswith(SUFFIXES)
