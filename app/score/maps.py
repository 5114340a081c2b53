"""`--maps FOLDER`: for every picture a PNG of it with its heatmap and regions."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from app.bundle.header import read_header, require_memory
from app.bundle.heatmaps import decoding_spec, overlay
from app.bundle.manifest import InputSpec
from app.bundle.regions import Size
from app.errors import CannotScore, GraftError
from app.inference.results import Fields
from app.score.batches import Budget, read_file
from app.score.paths import FileProblem, problem_of

_READABLE = 48  # characters of a name that are of the picture's path; a hash of the whole path makes it unique


def file_name(path: str) -> str:
    """Of a picture's map: photos/bag/0.jpg → bag-0-7abe….png. It has no folder, whatever the path is."""
    known = Path(path)
    readable = re.sub(r"[^\w.]+", "-", f"{known.parent.name}-{known.stem}")[-_READABLE:].strip("-.")
    return f"{readable or 'map'}-{_hash(path)}.png"


def _hash(path: str) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def require_folder(folder: Path, paths: Sequence[str]) -> None:
    """Raises CannotScore unless maps of the pictures under `paths` can be written into it."""
    if folder.exists() and not folder.is_dir():
        raise CannotScore(f"--maps {folder}: is a file; give a folder")
    if not folder.parent.is_dir():
        raise CannotScore(f"--maps {folder}: there is no folder {folder.parent}; create it, or give another --maps")
    inside = os.path.realpath(folder)
    for path in paths:
        if os.path.isdir(path) and Path(inside).is_relative_to(os.path.realpath(path)):
            raise CannotScore(
                f"--maps {folder}: lies in {path}, so that the next run would score the maps; give a folder outside it"
            )


class Map(NamedTuple):
    heatmap: np.ndarray  # (H, W) uint8, of the encoder's input
    size: Size  # of the upright picture


@dataclass(frozen=True, slots=True)
class Maps:
    folder: Path
    out: Path  # the file of rows, which one run at a time writes
    spec: InputSpec
    max_pixels: int
    max_bytes: int
    budget: Budget  # for all images that are being decoded

    def write(self, row: Fields, map_: Map) -> FileProblem | None:
        """Returns the problem if the picture cannot be decoded again. Raises OSError if the map cannot be written."""
        try:
            drawn = self._drawn(row, map_)
        except (OSError, MemoryError, GraftError) as error:
            return problem_of(row["path"], error)
        self._replace(row["map"], drawn)
        return None

    def _drawn(self, row: Fields, map_: Map) -> bytes:
        data = read_file(row["path"], self.max_bytes)
        needed = require_memory(read_header(data, self.max_pixels), decoding_spec(self.spec), self.budget.most)
        boxes = [region["box"] for region in row.get("regions", ())]
        with self.budget.hold(needed):
            return overlay(
                data,
                map_.size,
                map_.heatmap,
                boxes=boxes,
                spec=self.spec,
                max_pixels=self.max_pixels,
            )

    def _replace(self, name: str, data: bytes) -> None:
        """Every map in the folder is complete. What a run that was killed left is overwritten when it is resumed."""
        writing = self.folder / f".{_hash(os.path.abspath(self.out))}.writing"
        writing.unlink(missing_ok=True)
        try:
            with writing.open("xb") as file:  # follows no link that others put there
                file.write(data)
            writing.replace(self.folder / name)
        except OSError as error:  # as of a full disk, which names no file
            raise OSError(error.errno, error.strerror, str(self.folder / name)) from None
        finally:
            writing.unlink(missing_ok=True)
