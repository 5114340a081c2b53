"""Parquet files cannot be appended to: rows are collected as JSON lines and converted at the end. Needs pyarrow."""

import importlib.util
import io
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from app.errors import CannotScore
from app.inference.results import Fields
from app.score import storage
from app.score.formats import Cells, as_text, flat, json_rows
from app.score.table import ANEW, require_same_run

_ROWS = 4096  # in memory at a time, and in a row group of the file
_STRINGS = ("path", "model", "digest", "label", "labels", "probabilities", "regions", "map")
_INTEGERS, _BOOLEANS = ("version", "index"), ("anomalous", "in_domain")


def require() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise CannotScore("parquet needs pyarrow: pip install pyarrow, or use an --out that ends in .csv or .jsonl")


def utf8_path(path: str) -> str:
    """The path as a string column can hold it: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def scored_paths(path: Path, example: Cells) -> set[str]:
    """The UTF-8 paths in the file of an earlier run. Raises CannotScore if its rows were not made like `example`."""
    if not path.exists():
        return set()
    if path.is_dir():
        raise CannotScore(f"{path}: is a folder, as --ray writes it; {ANEW}")
    return _paths_in(str(path), path, example)


def scored_paths_in(folder: str, example: Cells) -> set[str]:
    """As `scored_paths`, for a folder of parts, local or in object storage."""
    from pyarrow import fs

    system, inside = storage.filesystem(folder)
    if system.get_file_info(inside).type == fs.FileType.File:
        raise CannotScore(f"{folder}: is a file, but --ray writes a folder; {ANEW}")
    paths: set[str] = set()
    for part in system.get_file_info(fs.FileSelector(inside, allow_not_found=True)):
        if part.base_name.startswith("part-"):
            with system.open_input_file(part.path) as file:
                paths |= _paths_in(f"{folder}/{part.base_name}", file, example)
    return paths


def _paths_in(name: str, source: Any, example: Cells) -> set[str]:
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(1):
                [first] = batch.to_pylist()
                require_same_run(Path(name), as_text(first), example)
                break
            columns = (batch.column("path").to_pylist() for batch in file.iter_batches(_ROWS, columns=["path"]))
            return {path for column in columns for path in column}
    except (ValueError, OSError, LookupError) as error:  # the bases of pyarrow's exceptions
        raise CannotScore(f"{name}: not a parquet file written by this command ({error}); {ANEW}") from None


def as_file(rows: list[Fields], example: Fields, labels: tuple[str, ...]) -> bytes:
    """The bytes of a complete parquet file."""
    import pyarrow
    import pyarrow.parquet as parquet

    sink = io.BytesIO()
    columns = [flat(row, labels) | {"path": utf8_path(row["path"])} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(columns, _schema(example, labels)), sink)
    return sink.getvalue()


def _schema(example: Fields, labels: tuple[str, ...]) -> Any:
    import pyarrow

    return pyarrow.schema([(name, _type(pyarrow, name)) for name in flat(example, labels)])


def append_rows(lines: Path, path: Path, example: Fields, labels: tuple[str, ...]) -> None:
    """Appends the rows of `lines` to those in `path`, and deletes `lines`. `path` is replaced atomically."""
    import pyarrow
    import pyarrow.parquet as parquet

    schema = _schema(example, labels)
    writing = path.with_name(f".{path.name}.writing")
    try:
        written: set[str] = set()
        with parquet.ParquetWriter(writing, schema) as writer:
            if path.exists():
                with parquet.ParquetFile(path) as before:
                    for batch in before.iter_batches(_ROWS):
                        writer.write_batch(batch)
                        written |= set(batch.column("path").to_pylist())
            for rows in _chunks(lines, written, labels):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
        os.replace(writing, path)
    finally:
        writing.unlink(missing_ok=True)
    lines.unlink()


def _chunks(lines: Path, written: set[str], labels: tuple[str, ...]) -> Iterator[list[Fields]]:
    with lines.open("rb") as file:
        rows = (flat(row, labels) | {"path": utf8_path(row["path"])} for row, _ in json_rows(file))
        new = (row for row in rows if row["path"] not in written)
        while chunk := list(islice(new, _ROWS)):
            yield chunk


def _type(pyarrow: Any, column: str) -> Any:
    if column in _STRINGS:
        return pyarrow.string()
    if column in _INTEGERS:
        return pyarrow.int64()
    if column in _BOOLEANS:
        return pyarrow.bool_()
    return pyarrow.float32() if column[1:].isdigit() else pyarrow.float64()  # e0…: the embedding is float32
