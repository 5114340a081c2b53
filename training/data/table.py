"""A CSV of images: a line for each, under a line that names the columns.

    path    the image, from the CSV's own folder (or: file, image, filename)
    label   its class, or its kind of defect (or: class, kind)
    split   train or test (or: part)
    group   images of one group stay in one part
    mask    a file that shows where its defects are; empty where there is none

All columns but the path may be left out. Columns are separated by commas, semicolons or tabs.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.folder import Survey
from training.data.imageset import Mask, refuse_bad_names
from training.errors import TrainingError, listed, printable
from training.progress import say

SUFFIX = ".csv"
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # as written → the part
_COLUMNS = {  # as written → the column
    **dict.fromkeys(("path", "file", "image", "filename"), "path"),
    **dict.fromkeys(("label", "class", "kind"), "label"),
    **dict.fromkeys(("split", "part"), "split"),
    "group": "group",
    "mask": "mask",
}
_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Table:
    file: Path
    columns: tuple[str, ...]  # those that are read
    rows: tuple[tuple[int, dict[str, str]], ...]  # the line's number, column → value
    ignored: tuple[str, ...]  # columns of other names

    @property
    def has_test_part(self) -> bool:
        return any(PARTS.get(row.get("split", "").lower()) == "test" for _, row in self.rows)

    def survey(self, part: str | None) -> Survey:
        """The images of train or test; None for all of them."""
        found = Survey(self.file)
        rows = self._rows_of(part, found)
        for column in ("label", "group"):
            self._refuse_gaps(rows, column)
        found.classes = tuple(sorted({row["label"] for _, row in rows if row.get("label")}))
        refuse_bad_names(found.classes, printable(str(self.file)))
        missing = []
        for number, row in rows:
            path, mask = (self._path(row.get(column, "")) for column in ("path", "mask"))
            missing += [
                f"{printable(row[column])} (line {number})"
                for column, file in (("path", path), ("mask", mask))
                if row.get(column) and file is None
            ]
            if path is not None:
                found.files.append((path, found.classes.index(row["label"]) if found.classes else -1))
                found.names.append(printable(row["path"]))
                found.masks.append(Mask(mask, path))
        if missing:
            raise TrainingError(
                f"{printable(str(self.file))}: {len(missing):,} files are not there: {listed(missing)}: paths are read "
                "from the folder of the CSV"
            )
        if rows[0][1].get("group"):
            found.groups = [row["group"] for _, row in rows]
        if all(mask.file is None for mask in found.masks):
            found.masks = []
        return found

    def _rows_of(self, part: str | None, found: Survey) -> list[tuple[int, dict[str, str]]]:
        if part is None or "split" not in self.columns:
            return list(self.rows)
        rows = []
        for number, row in self.rows:
            own = PARTS.get(row["split"].lower())
            if own is None:
                found.leave_out("lines of another split than train and test", [f"line {number}"])
            elif own == part:
                rows.append((number, row))
        if not rows:
            raise TrainingError(f"{printable(str(self.file))}: no line has the split {part}: write train or test there")
        return rows

    def _refuse_gaps(self, rows: list[tuple[int, dict[str, str]]], column: str) -> None:
        """Every line has a value, or none has."""
        gap = next((number for number, row in rows if not row.get(column)), None)
        if gap is not None and any(row.get(column) for _, row in rows):
            raise TrainingError(
                f"{printable(str(self.file))}, line {gap}: no {column}, and other lines of its part have one: write "
                "one in each, or leave out the column"
            )

    def _path(self, text: str) -> Path | None:
        """The file, from the CSV's folder; a backslash may separate folders. None if it is not there."""
        for name in dict.fromkeys((text, text.replace("\\", "/"))) if text else ():
            try:
                if (path := self.file.parent / name).is_file():
                    return path
            except (OSError, ValueError):  # a name of thousands of characters, or with a zero byte
                continue
        return None


def is_table(data: str) -> bool:
    path = Path(data)
    try:
        return path.suffix.lower() == SUFFIX and path.is_file()
    except (OSError, ValueError):
        return False


def read_table(file: Path) -> Table:
    shown = printable(str(file))
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            lines = list(_numbered(text.read()))
    except UnicodeDecodeError:
        raise TrainingError(f"{shown}: not UTF-8: save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise TrainingError(f"{shown}: cannot be read: {error}") from None
    if not lines:
        raise TrainingError(f"{shown}: empty: its first line names the columns, as in path,label,split,group,mask")
    (_, heads), *rows = lines
    names = [_COLUMNS.get(head.strip().lower()) for head in heads]
    columns = tuple(name for name in names if name is not None)
    if "path" not in columns:
        raise TrainingError(
            f"{shown}, line 1: no column named path, file or image: the first line names the columns, as in "
            "path,label,split,group,mask"
        )
    for name in columns:
        if columns.count(name) > 1:
            raise TrainingError(f"{shown}, line 1: two columns hold the {name}: rename or remove one")
    table = Table(file, columns, tuple(_rows(rows, names, shown)), _ignored(heads))
    if not table.rows:
        raise TrainingError(f"{shown}: no line below the names of the columns: list an image in each")
    return table


def report_ignored(table: Table) -> None:
    if table.ignored:
        say(f"{printable(str(table.file))}: left out columns ({len(table.ignored):,}): {listed(table.ignored)}")


def _ignored(heads: list[str]) -> tuple[str, ...]:
    names = {at: head.strip() for at, head in enumerate(heads, 1)}
    return tuple(name or f"number {at}" for at, name in names.items() if name.lower() not in _COLUMNS)


def _numbered(text: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, values) of every record that is not blank."""
    head = text.lstrip().partition("\n")[0]
    reader = csv.reader(text.splitlines(keepends=True), delimiter=max(_SEPARATORS, key=head.count), strict=True)
    for row in reader:
        if any(value.strip() for value in row):
            yield reader.line_num, row


def _rows(
    lines: list[tuple[int, list[str]]], names: list[str | None], shown: str
) -> Iterator[tuple[int, dict[str, str]]]:
    first: dict[str, int] = {}
    for number, values in lines:
        if len(values) != len(names):
            raise TrainingError(f"{shown}, line {number}: {len(values)} values, and {len(names)} columns are named")
        row = {name: value.strip() for name, value in zip(names, values, strict=True) if name is not None}
        if not row["path"]:
            raise TrainingError(f"{shown}, line {number}: no path")
        if row["path"] in first:
            raise TrainingError(
                f"{shown}, line {number}: {printable(row['path'])} is in line {first[row['path']]} too: remove one"
            )
        first[row["path"]] = number
        yield number, row
