"""The file that results are added to: every row whole or not there, and what an earlier run wrote is kept."""

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType

from app.errors import CannotScore
from app.inference.results import Fields
from app.score.rows import Cells, Form

try:
    import fcntl
except ImportError:  # Windows, where two runs that write one file are not told of each other
    fcntl = None  # type: ignore[assignment]

ANEW = "give another --out, or remove it to begin anew"
_MOST_TORN = 16 << 20  # bytes of a line


class Table:
    """`done` are the paths that it had rows of when it was opened; those of another model or options are refused."""

    def __init__(self, path: Path, form: Form, example: Cells) -> None:
        self.path, self._form = path, form
        if path.exists() and not path.is_file():
            raise CannotScore(f"{path}: not a file that can be written")
        self._file = path.open("ab+", buffering=0)
        try:
            self._lock()
            self.done = self._resumed(example)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Table":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, rows: list[Fields]) -> None:
        """All of them or, where the disk is full, none."""
        self._write(self._form.lines(rows))

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotScore(f"{self.path}: another run is writing it; wait for it, or give another --out") from None
        except OSError:  # a file system without locks
            pass

    def _resumed(self, example: Cells) -> set[str]:
        done: set[str] = set()
        head, first, whole = None, None, 0
        with self.path.open("rb") as file:
            for cells, end in self._form.read(file):
                head, whole = head or cells, end
                if path := cells.get("path"):
                    first = first or cells
                    done.add(path)
            file.seek(whole)
            torn = file.read(_MOST_TORN)
        if found := first or head:
            refuse_other(self.path, found, example)
        if b"\n" in torn or len(torn) == _MOST_TORN or not (found or self._form.begins(torn, example)):
            raise CannotScore(f"{self.path}: after {len(done):,} rows comes what no run has written; {ANEW}")
        self._file.truncate(whole)
        if not found:
            self._write(self._form.head(example))
        return done

    def _write(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) or 0 :]
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise


def refuse_other(path: Path, found: Cells, example: Cells) -> None:
    """Unless the row, or the head above rows that are to come, was made as the example was."""
    if not found.keys() >= {"path", "model", "version", "digest"}:
        raise CannotScore(f"{path} is no output of this command; {ANEW}")
    theirs, ours = ([row[name] for name in ("model", "version", "digest")] for row in (found, example))
    if found["path"] and theirs != ours:
        named = [f"{name}@{version} ({digest[:12]}…)" for name, version, digest in (theirs, ours)]
        raise CannotScore(
            f"{path} was made by {named[0]}, and this run is of {named[1]}: "
            f"go on with --model {theirs[0]}@{theirs[1]} as it was, or {ANEW}"
        )
    operations = [_operation(row) for row in (found, example)]
    if operations[0] != operations[1]:
        raise CannotScore(
            f"{path} was made with --operation {operations[0]}, and this run has {operations[1]}: "
            f"go on with --operation {operations[0]}, or {ANEW}"
        )
    if list(found) != list(example):
        of_labels = "probabilities" in found.keys() ^ example.keys()
        why = "made with another --top-k" if of_labels else "its columns are not those that this run gives"
        raise CannotScore(f"{path}: {why}; go on as it was begun, or {ANEW}")
    if not found["path"]:
        return
    if found.get("threshold") != example.get("threshold"):
        raise CannotScore(
            f"{path} was judged by the threshold {found['threshold']}, and this run would by {example['threshold']}: "
            f"go on with the --false-alarm-rate of then, or {ANEW}"
        )
    then, now = (len(json.loads(row.get("probabilities", "{}"))) for row in (found, example))
    if then != now:
        raise CannotScore(f"{path} was made with --top-k {then}, and this run has {now}: go on with {then}, or {ANEW}")


def _operation(row: Cells) -> str:
    marks = {"e0": "encode", "in_domain": "predict", "score": "anomaly"}
    return next((operation for column, operation in marks.items() if column in row), "classify")
