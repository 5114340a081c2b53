"""Feedback on disk: a folder with one file to which lines of JSON are appended, by several processes at once.

A line is stored whole or not at all: it is written under a lock, and answered for when it is on the disk. What a crash
left of a line is cut off by the next writer, and passed over by readers. The file may be moved or removed at any time:
the next line begins a new one. Files with other names that end in .jsonl are read too.
"""

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from app.bundle.manifest import Manifest
from app.errors import NotStored, SettingsInvalid

FILE = "feedback.jsonl"
SOUND, DEFECT = "sound", "defect"
_LOOKED_BACK = 1 << 16  # bytes at a time, for the end of the last whole line


@dataclass(frozen=True)
class Record:
    """What a person said of one image, and what a model made of it."""

    request_id: str
    index: int  # of the image in its request
    model: str
    version: int
    digest: str
    encoder: str  # SHA-256 of the encoder's file: `tensors` hold for every version that has it
    scorer: str | None  # likewise of the anomaly score, for which `distances` hold
    image: str  # SHA-256 of the file: the same image is judged once
    label: str  # one of the model's labels, SOUND or DEFECT
    of_anomaly: bool  # whether SOUND and DEFECT are meant, and no label of that name
    predicted: str | None  # the label or verdict that the model gave
    tensors: Mapping[str, np.ndarray]  # (D,) float32: the embedding, and what the head reads
    distances: np.ndarray | None  # (distances,) raw, of the anomaly score
    picture: bytes | None = None  # the file, where pictures are kept

    def to_line(self) -> bytes:
        fields = {name: getattr(self, name) for name in _PLAIN}
        fields["tensors"] = {name: _packed(values) for name, values in self.tensors.items()}
        fields["distances"] = None if self.distances is None else self.distances.tolist()
        fields["picture"] = None if self.picture is None else base64.b64encode(self.picture).decode()
        return json.dumps(fields, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> "Record":
        """Raises ValueError for anything that `to_line` does not write."""
        try:
            fields: dict[str, Any] = json.loads(line)
            plain = {name: fields[name] for name in _PLAIN}
            if any(not isinstance(plain[name], kind) for name, kind in _PLAIN.items()):
                raise ValueError("a field has another type")
            picture, distances = fields["picture"], fields["distances"]
            return cls(
                **plain,
                tensors={name: _unpacked(values) for name, values in fields["tensors"].items()},
                distances=None if distances is None else np.array(distances, np.float64),
                picture=None if picture is None else base64.b64decode(picture, validate=True),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a line of feedback: {error!r}") from None


_PLAIN: dict[str, Any] = {
    **dict.fromkeys(("request_id", "model", "digest", "encoder", "image", "label"), str),
    **dict.fromkeys(("index", "version"), int),
    "of_anomaly": bool,
    **dict.fromkeys(("scorer", "predicted"), str | None),
}


def encoder_of(manifest: Manifest) -> str:
    """`Record.encoder`."""
    return manifest.files[manifest.graphs.encoder.file]


def scorer_of(manifest: Manifest) -> str | None:
    """`Record.scorer`: the same where distances are."""
    if manifest.anomaly is None or manifest.reference is None:
        return None
    parts = [manifest.graphs.encoder, manifest.graphs.decoder, manifest.graphs.patches]
    files = [manifest.files[each.file] for each in parts if each is not None]
    stated = [(each.measure, each.takes) for each in manifest.anomaly.distances]
    return sha256(json.dumps([files, stated]).encode()).hexdigest()


class Spool:
    def __init__(self, folder: Path, most_bytes: int, setting: str) -> None:
        """Makes the folder. Raises SettingsInvalid, which names `setting`, if nothing can be written there."""
        self._path, self._most = folder / FILE, most_bytes
        if fcntl is None:
            raise SettingsInvalid(f"{setting}: feedback needs locks on files, which this system lacks")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise SettingsInvalid(f"{setting}={folder}: nothing can be written there: {error.strerror}") from None

    def append(self, records: Sequence[Record]) -> None:
        """All of them or, with NotStored, none. Waits for the disk, and for other writers: not for the event loop."""
        data = b"".join(record.to_line() for record in records)
        try:
            with self._locked() as file:
                end = _end_of_lines(file)
                if end + len(data) > self._most:
                    raise NotStored(
                        f"the feedback was not stored: the spool has {end:,} of at most {self._most:,} bytes "
                        "(FEEDBACK_MB): learn from it, and move its file away"
                    )
                os.ftruncate(file, end)
                try:
                    _write(file, data, end)
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, end)
                    raise
        except OSError as error:
            raise NotStored(f"the feedback was not stored: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file, which no other writer has, and which has not been moved away."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if _is_at(file, self._path):
                    yield file
                    return
            finally:
                os.close(file)  # which ends the lock


def _is_at(file: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)


def _end_of_lines(file: int) -> int:
    """Where the last whole line ends."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - _LOOKED_BACK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def read(folder: Path) -> Iterator[Record | ValueError]:
    """Of every file in the order of their names, line by line; a ValueError for a line that cannot be read."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # being written, or left by a crash; nobody was told that it is stored
                try:
                    yield Record.of_line(line)
                except ValueError as error:
                    yield ValueError(f"{path.name}, line {number:,}: {error}")


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
