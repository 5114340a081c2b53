"""Rows of results ↔ lines of a file. JSON lines have the API's fields, CSV has flat columns."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Protocol

from app.inference.results import Fields

Cells = dict[str, str]  # column → text, as in CSV; two runs are compared by it
_ALIASES = ("reconstruction_error", "latent_distance")  # fields of the API that repeat entries of `distances`


def flat(row: Fields, labels: tuple[str, ...]) -> Fields:
    """Column → value. Probabilities become columns `p:<label>` in the order of `labels`, or JSON if top_k cut them.

    Several labels, and those of a set, are joined by `|`, as lists of images for training have them.
    """
    columns: Fields = {}
    for name, value in row.items():
        if name == "model":
            columns |= {"model": value["name"], "version": value["version"], "digest": value["digest"]}
        elif name == "probabilities":
            complete = set(value) == set(labels)
            columns |= {f"p:{label}": value[label] for label in labels} if complete else {name: _json(value)}
        elif name == "labels":
            columns[name] = "|".join(each["label"] for each in value)
        elif name == "set":
            columns[name] = "|".join(value)
        elif name == "distances":
            columns |= {f"distance:{distance}": number for distance, number in value.items()}
        elif name == "embedding":
            columns |= {f"e{index}": number for index, number in enumerate(value)}
        elif name == "regions":
            columns[name] = _json(value)
        elif name not in _ALIASES:
            columns[name] = value
    return columns


def cells(row: Fields, labels: tuple[str, ...]) -> Cells:
    return as_text(flat(row, labels))


def as_text(columns: Fields) -> Cells:
    """Values as JSON, except strings, which stay as they are."""
    return {name: _text(value) for name, value in columns.items()}


def _text(value: object) -> str:
    if isinstance(value, float):
        return repr(value)  # equals JSON, in a tenth of the time
    return value if isinstance(value, str) else _json(value)


class Format(Protocol):
    def head(self, example: Cells) -> bytes: ...

    def lines(self, rows: Iterable[Fields]) -> bytes: ...

    def read(self, file: BinaryIO) -> Iterator[tuple[Cells, int]]:
        """Yields (row, offset of its end) for each complete row; stops before the first bytes that are not one.

        A row is complete if its line break is there. The first may be a header, with empty cells.
        """

    def begins(self, torn: bytes, example: Cells) -> bool:
        """Whether a file of this format can begin with `torn`: only then may it be truncated."""


class Csv:
    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels

    def head(self, example: Cells) -> bytes:
        return _csv([example])

    def lines(self, rows: Iterable[Fields]) -> bytes:
        return _csv(cells(row, self._labels).values() for row in rows)

    def read(self, file: BinaryIO) -> Iterator[tuple[Cells, int]]:
        end = 0

        def complete_lines() -> Iterator[str]:
            nonlocal end
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield line.decode("utf-8", "surrogateescape")

        records = csv.reader(complete_lines(), strict=True)
        columns: list[str] | None = None
        try:
            for record in records:
                if columns is None:
                    columns = record
                    yield dict.fromkeys(columns, ""), end
                elif len(record) != len(columns):
                    return
                else:
                    yield dict(zip(columns, record, strict=True)), end
        except csv.Error:
            return

    def begins(self, torn: bytes, example: Cells) -> bool:
        return self.head(example).startswith(torn)


class JsonLines:
    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels

    def head(self, example: Cells) -> bytes:
        return b""

    def lines(self, rows: Iterable[Fields]) -> bytes:
        return b"".join(_bytes(row) + b"\n" for row in rows)

    def read(self, file: BinaryIO) -> Iterator[tuple[Cells, int]]:
        end = 0
        for row, length in json_rows(file):
            end += length
            yield cells(row, self._labels), end

    def begins(self, torn: bytes, example: Cells) -> bool:
        start = b'{"path": '
        return torn[: len(start)] == start[: len(torn)]


def json_rows(file: BinaryIO) -> Iterator[tuple[Fields, int]]:
    """Yields (row, its length in bytes) for each complete row, up to the first line that is not one."""
    for line in file:
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            row["path"], row["model"]["name"], row["model"]["version"], row["model"]["digest"]
        except (ValueError, TypeError, LookupError):
            return
        yield row, len(line)


_json = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would create an encoder per call


def _bytes(row: Fields) -> bytes:
    try:
        return _json(row).encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8; escaped, it is valid JSON
        return json.dumps(row).encode()


def _csv(records: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue().encode("utf-8", "surrogateescape")


PARQUET = ".parquet"
# By a file's suffix; a parquet file is made of JSON lines at the end.
FORMATS: dict[str, type[Csv] | type[JsonLines]] = {".csv": Csv, ".jsonl": JsonLines, PARQUET: JsonLines}
