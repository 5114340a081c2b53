"""Parquet, which cannot be added to: rows are gathered in lines of JSON, and turned at the end. Needs pyarrow."""

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
from app.score.rows import Cells, as_text, flat, json_rows
from app.score.table import ANEW, refuse_other

_ROWS = 4096  # that are in memory together, and a row group of the file
_TEXT = ("path", "model", "digest", "label", "probabilities")
_WHOLE, _TRUTH = ("version", "index"), ("anomalous", "in_domain")


def require() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise CannotScore("parquet needs pyarrow: pip install pyarrow, or give an --out that ends in .csv or .jsonl")


def named(path: str) -> str:
    """As a column of text can hold it: what is no UTF-8 is escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def done(path: Path, example: Cells) -> set[str]:
    """The `named` paths whose rows an earlier run brought there; rows made otherwise than `example` are refused."""
    if not path.exists():
        return set()
    if path.is_dir():
        raise CannotScore(f"{path}: a folder, as --ray writes it; {ANEW}")
    return _paths_in(str(path), path, example)


def done_in(folder: str, example: Cells) -> set[str]:
    """The same of a folder of parts, here or in object storage."""
    from pyarrow import fs

    system, inside = storage.filesystem(folder)
    if system.get_file_info(inside).type == fs.FileType.File:
        raise CannotScore(f"{folder}: a file, and --ray writes a folder of them; {ANEW}")
    found: set[str] = set()
    for part in system.get_file_info(fs.FileSelector(inside, allow_not_found=True)):
        if part.base_name.startswith("part-"):
            with system.open_input_file(part.path) as file:
                found |= _paths_in(f"{folder}/{part.base_name}", file, example)
    return found


def _paths_in(name: str, source: Any, example: Cells) -> set[str]:
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(1):
                [first] = batch.to_pylist()
                refuse_other(Path(name), as_text(first), example)
                break
            paths = (batch.column("path").to_pylist() for batch in file.iter_batches(_ROWS, columns=["path"]))
            return {each for some in paths for each in some}
    except (ValueError, OSError, LookupError) as error:  # pyarrow's own are of these
        raise CannotScore(f"{name}: not a parquet file of this command ({error}); {ANEW}") from None


def as_file(rows: list[Fields], example: Fields, labels: tuple[str, ...]) -> bytes:
    """A whole file of them."""
    import pyarrow
    import pyarrow.parquet as parquet

    sink = io.BytesIO()
    columns = [flat(row, labels) | {"path": named(row["path"])} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(columns, _schema(example, labels)), sink)
    return sink.getvalue()


def _schema(example: Fields, labels: tuple[str, ...]) -> Any:
    import pyarrow

    return pyarrow.schema([(name, _type(pyarrow, name)) for name in flat(example, labels)])


def turn(lines: Path, path: Path, example: Fields, labels: tuple[str, ...]) -> None:
    """The rows of `lines` behind those that `path` has; it is there whole, or as it was before."""
    import pyarrow
    import pyarrow.parquet as parquet

    schema = _schema(example, labels)
    writing = path.with_name(f".{path.name}.writing")
    try:
        there: set[str] = set()
        with parquet.ParquetWriter(writing, schema) as writer:
            if path.exists():
                with parquet.ParquetFile(path) as before:
                    for batch in before.iter_batches(_ROWS):
                        writer.write_batch(batch)
                        there |= set(batch.column("path").to_pylist())
            for rows in _some(lines, there, labels):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema))
        os.replace(writing, path)
    finally:
        writing.unlink(missing_ok=True)
    lines.unlink()


def _some(lines: Path, there: set[str], labels: tuple[str, ...]) -> Iterator[list[Fields]]:
    with lines.open("rb") as file:
        rows = (flat(row, labels) | {"path": named(row["path"])} for row, _ in json_rows(file))
        fresh = (row for row in rows if row["path"] not in there)
        while some := list(islice(fresh, _ROWS)):
            yield some


def _type(pyarrow: Any, column: str) -> Any:
    if column in _TEXT:
        return pyarrow.string()
    if column in _WHOLE:
        return pyarrow.int64()
    if column in _TRUTH:
        return pyarrow.bool_()
    return pyarrow.float32() if column[1:].isdigit() else pyarrow.float64()  # e0…, as the graph gave them
