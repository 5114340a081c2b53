"""Pictures of many sizes, of a spec that cuts tiles: decoded whenever they are read, as they are larger than memory.

To decode one takes a small part of the time that its tiles take.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.bundle import ImageError, InputSpec, preprocess
from training.data.storage import Rows
from training.errors import TrainingError, printable


@dataclass(frozen=True, eq=False)
class Files:
    """What was learnt of the files when each was decoded once."""

    paths: Sequence[Path]
    sizes: np.ndarray  # (N, 2) height and width as `preprocess` gives them
    hashes: Sequence[bytes]  # of the pixels
    spec: InputSpec


class Pictures(Rows):
    """Some of the files. An index gives a picture, (h, w, C) uint8; indices give Pictures again."""

    def __init__(self, files: Files, rows: np.ndarray | None = None) -> None:
        self.files = files
        self.rows = np.arange(len(files.paths)) if rows is None else rows
        self.shape = (len(self.rows),)
        self.dtype = np.dtype(np.uint8)

    def __getitem__(self, index: Any) -> Any:
        rows = self.rows[index]
        return self._decoded(int(rows)) if np.ndim(rows) == 0 else Pictures(self.files, rows)

    def take(self, rows: np.ndarray) -> "Pictures":
        return Pictures(self.files, self.rows[rows])

    def chunks(self) -> Iterator[np.ndarray]:
        return (picture[None] for picture in self)

    @property
    def hashes(self) -> list[bytes]:
        return [self.files.hashes[row] for row in self.rows]

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) height and width."""
        return np.asarray(self.files.sizes[self.rows])

    def _decoded(self, row: int) -> np.ndarray:
        path = self.files.paths[row]
        try:
            picture = preprocess(path.read_bytes(), self.files.spec)
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TrainingError(f"{printable(str(path))}: could be read before, and now not: {reason}") from None
        if picture.shape[:2] != tuple(self.files.sizes[row]):
            raise TrainingError(f"{printable(str(path))}: has changed since it was read first: start again")
        return picture
