"""What lies in the models folder, and when it lies still: for whoever loads what comes while requests are answered."""

from collections.abc import Mapping
from pathlib import Path

from app.bundle.manifest import MANIFEST_FILE
from app.bundle.store import names, versions

Key = tuple[str, int]  # name, version
State = tuple[tuple[str, int, int, int], ...]  # of each file: name, inode, bytes, time of its last change


def found(models: Path) -> dict[Key, State]:
    """Every version's folder, whole or not."""
    return {
        (name, version): _state(models / name / str(version))
        for name in names(models)
        for version in versions(models / name)
    }


class Watch:
    """Which versions to load: those that are new or have changed, once two looks in a row find them the same.

    What is being copied changes from look to look, and has no manifest until somebody writes one. What was tried is not
    tried again until it changes.
    """

    def __init__(self, tried: Mapping[Key, State]) -> None:
        self._tried = self._before = dict(tried)

    def due(self, now: Mapping[Key, State]) -> list[Key]:
        """Of each name the highest version first, so that what answers changes once."""
        before, self._before = self._before, dict(now)
        self._tried = {key: state for key, state in self._tried.items() if key in now}
        due = [
            key
            for key, state in now.items()
            if before.get(key) == state != self._tried.get(key) and any(file == MANIFEST_FILE for file, *_ in state)
        ]
        self._tried |= {key: now[key] for key in due}
        return sorted(due, key=lambda key: (key[0], -key[1]))


def _state(folder: Path) -> State:
    try:
        return tuple(sorted(_of(entry) for entry in folder.iterdir()))
    except OSError:  # it went while we looked, is a file, or may not be read
        return ()


def _of(file: Path) -> tuple[str, int, int, int]:
    known = file.stat()
    return file.name, known.st_ino, known.st_size, known.st_mtime_ns
