"""<out>.errors.csv: the files that could not be scored, with the reasons."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from app.errors import CannotScore
from app.score.paths import FileProblem

_COLUMNS = ["path", "problem", "detail"]


class ProblemsFile:
    """The file is appended to. Rows of an earlier run for files that this run tries again are removed first."""

    def __init__(self, out: Path, paths: Sequence[str]) -> None:
        """`paths`: the files and folders of this run."""
        self.path = out.with_name(f"{out.name}.errors.csv")
        self.count = 0
        kept = [row for row in self._earlier_rows() if not any(Path(row[0]).is_relative_to(path) for path in paths)]
        if kept:
            writing = self.path.with_name(f".{self.path.name}.writing")
            with _opened(writing, "w") as file:
                csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *kept])
            os.replace(writing, self.path)
        else:
            self.path.unlink(missing_ok=True)

    def add(self, problems: Sequence[FileProblem]) -> None:
        if not problems:
            return
        self.count += len(problems)
        with _opened(self.path, "a") as file:
            rows = _rows(problems)
            csv.writer(file, lineterminator="\n").writerows(rows if file.tell() else [_COLUMNS, *rows])

    def _earlier_rows(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        with _opened(self.path, "r") as file:
            rows = list(csv.reader(file))
        if rows and rows[0] != _COLUMNS:
            raise CannotScore(f"{self.path} was not written by this command: remove it, or give another --out")
        return [row for row in rows[1:] if len(row) == len(_COLUMNS)]


def as_csv(problems: Sequence[FileProblem]) -> bytes:
    """The bytes of a complete file, for storage that cannot be appended to."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *_rows(problems)])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _rows(problems: Sequence[FileProblem]) -> list[list[str]]:
    return [[problem.path, problem.kind, problem.detail] for problem in problems]


def _opened(path: Path, mode: str) -> IO[str]:
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="")
