"""The models folder: which versions it has, and which are completely copied and due to be loaded."""

from collections.abc import Mapping
from pathlib import Path

from app.bundle.manifest import MANIFEST_FILE
from app.bundle.store import names, versions

Key = tuple[str, int]  # name, version
FileState = tuple[tuple[str, int, int, int], ...]  # per file: name, inode, bytes, mtime in ns


def scan(models: Path) -> dict[Key, FileState]:
    """All versions in the folder, complete or not, with the state of their files."""
    return {
        (name, version): _state(models / name / str(version))
        for name in names(models)
        for version in versions(models / name)
    }


class Watch:
    """Finds versions to load: new or changed ones, once two polls in a row see the same files.

    A version that is still being copied changes between polls, or has no manifest yet. A version that was tried is not
    tried again until it changes.
    """

    def __init__(self, tried: Mapping[Key, FileState]) -> None:
        self._tried = self._before = dict(tried)

    def due(self, now: Mapping[Key, FileState]) -> list[Key]:
        """For each name the highest version first, so that the served version changes only once."""
        before, self._before = self._before, dict(now)
        self._tried = {key: state for key, state in self._tried.items() if key in now}
        due = [
            key
            for key, state in now.items()
            if before.get(key) == state != self._tried.get(key) and any(file == MANIFEST_FILE for file, *_ in state)
        ]
        self._tried |= {key: now[key] for key in due}
        return sorted(due, key=lambda key: (key[0], -key[1]))


def _state(folder: Path) -> FileState:
    try:
        return tuple(sorted(_file_state(entry) for entry in folder.iterdir()))
    except OSError:  # it was removed meanwhile, is a file, or is not readable
        return ()


def _file_state(file: Path) -> tuple[str, int, int, int]:
    status = file.stat()
    return file.name, status.st_ino, status.st_size, status.st_mtime_ns
