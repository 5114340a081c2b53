"""The file that rows are appended to, each completely or not at all. Rows of an earlier run are kept."""

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType

from app.errors import CannotScore
from app.inference.results import Fields
from app.score.formats import Cells, Format

try:
    import fcntl
except ImportError:  # Windows; there, two runs that write one file are not detected
    fcntl = None  # type: ignore[assignment]

ANEW = "give another --out, or remove it to start again"
_MOST_TORN = 16 << 20  # most bytes of an incomplete last line


class Table:
    """`done`: the paths with a row when the file was opened. Raises CannotScore if another model or options made it."""

    def __init__(self, path: Path, row_format: Format, example: Cells) -> None:
        self.path, self._format = path, row_format
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
        """Appends all rows, or none if the disk is full."""
        self._write(self._format.lines(rows))

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotScore(f"{self.path}: another run is writing it; wait for it, or give another --out") from None
        except OSError:  # the file system has no locks
            pass

    def _resumed(self, example: Cells) -> set[str]:
        """The paths with a row. Truncates an incomplete last line, and writes the header into an empty file."""
        done: set[str] = set()
        head, first, complete = None, None, 0
        with self.path.open("rb") as file:
            for cells, end in self._format.read(file):
                head, complete = head or cells, end
                if path := cells.get("path"):
                    first = first or cells
                    done.add(path)
            file.seek(complete)
            torn = file.read(_MOST_TORN)
        if row := first or head:
            require_same_run(self.path, row, example)
        if b"\n" in torn or len(torn) == _MOST_TORN or not (row or self._format.begins(torn, example)):
            raise CannotScore(f"{self.path}: after {len(done):,} rows come lines that are not of this command; {ANEW}")
        self._file.truncate(complete)
        if not row:
            self._write(self._format.head(example))
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


def require_same_run(path: Path, row: Cells, example: Cells) -> None:
    """Raises CannotScore unless `row`, or the header of a file without rows, was made like `example`."""
    if not row.keys() >= {"path", "model", "version", "digest"}:
        raise CannotScore(f"{path} was not written by this command; {ANEW}")
    before, now = ([cells[name] for name in ("model", "version", "digest")] for cells in (row, example))
    if row["path"] and before != now:
        models = [f"{name}@{version} ({digest[:12]}…)" for name, version, digest in (before, now)]
        raise CannotScore(
            f"{path} was made by {models[0]}, but this run has {models[1]}: "
            f"resume with --model {before[0]}@{before[1]} as it was, or {ANEW}"
        )
    operations = [_operation(cells) for cells in (row, example)]
    if operations[0] != operations[1]:
        raise CannotScore(
            f"{path} was made with --operation {operations[0]}, but this run has {operations[1]}: "
            f"resume with --operation {operations[0]}, or {ANEW}"
        )
    if list(row) != list(example):
        differing = row.keys() ^ example.keys()
        reason = "its columns differ from those of this run"
        if "probabilities" in differing:
            reason = "made with another --top-k"
        elif "sets" in differing:
            reason = "made with --coverage" if "sets" in row else "made without --coverage"
        elif "map" in differing:
            reason = "made with --maps" if "map" in row else "made without --maps"
        raise CannotScore(f"{path}: {reason}; resume with the options of the first run, or {ANEW}")
    if not row["path"]:
        return
    if row.get("threshold") != example.get("threshold"):
        raise CannotScore(
            f"{path} was made with the threshold {row['threshold']}, but this run has {example['threshold']}: "
            f"resume with the --false-alarm-rate of the first run, or {ANEW}"
        )
    if row.get("sets") != example.get("sets"):
        raise CannotScore(
            f"{path} was made with sets by {row['sets']}, but this run has {example['sets']}: "
            f"resume with --coverage, --sets and --conditional of the first run, or {ANEW}"
        )
    top_k = [len(json.loads(cells.get("probabilities", "{}"))) for cells in (row, example)]
    if top_k[0] != top_k[1]:
        raise CannotScore(
            f"{path} was made with --top-k {top_k[0]}, but this run has {top_k[1]}: "
            f"resume with --top-k {top_k[0]}, or {ANEW}"
        )


def _operation(row: Cells) -> str:
    marks = {"e0": "encode", "in_domain": "predict", "score": "anomaly"}
    return next((operation for column, operation in marks.items() if column in row), "classify")
