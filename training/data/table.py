"""A list of images: a CSV with a line for each under a line that names the columns, or JSON lines with the same keys.

    path    the image, from the list's own folder (or: file, image, filename)
    label   its class, or its kind of defect (or: class, kind, labels)
    split   train or test (or: part)
    group   images of one group stay in one part
    mask    a file that shows where its defects are; empty where there is none

All columns but the path may be left out. Columns are separated by commas, semicolons or tabs.

A label with `|` in it, or a list of labels in JSON, makes a list of images that may have several labels each. There, an
empty label says that the image has none of them; `?`, or null or no label in JSON, that nobody has looked: such lines
are left out.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data import json_lines
from training.data.folder import Survey
from training.data.imageset import Mask, refuse_bad_names
from training.errors import TrainingError, listed, printable
from training.progress import say

SUFFIX = ".csv"
BETWEEN = "|"  # several labels
UNLABELLED = "?"  # in a list of images that may have several
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # as written → the part
_COLUMNS = {  # as written → the column
    **dict.fromkeys(("path", "file", "image", "filename"), "path"),
    **dict.fromkeys(("label", "class", "kind", "labels"), "label"),
    **dict.fromkeys(("split", "part"), "split"),
    "group": "group",
    "mask": "mask",
}
_QUANTITIES = ("target", "value")  # columns that hold numbers to predict
_MOST_NUMBERS = 10  # different numbers that may be names of classes, whatever they are
_SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Table:
    file: Path
    columns: tuple[str, ...]  # those that are read
    rows: tuple[tuple[int, dict[str, str]], ...]  # the line's number, column → value
    ignored: tuple[str, ...]  # columns of other names
    several: bool = False  # whether an image may have several labels

    @property
    def has_test_part(self) -> bool:
        return any(PARTS.get(row.get("split", "").lower()) == "test" for _, row in self.rows)

    @property
    def several_classes(self) -> tuple[str, ...]:
        """Of images that may have several labels: those of both parts."""
        return tuple(sorted({label for _, row in self.rows for label in labels_in(row.get("label", UNLABELLED))}))

    def survey(self, part: str | None) -> Survey:
        """The images of train or test; None for all of them."""
        found = Survey(self.file)
        rows = self._rows_of(part, found)
        if self.several:
            rows = self._looked_at(rows, found)
            found.classes = self.several_classes
        else:
            self._refuse_gaps(rows, "label")
            found.classes = tuple(sorted({row["label"] for _, row in rows if row.get("label")}))
        self._refuse_gaps(rows, "group")
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
                single = found.classes and not self.several
                found.files.append((path, found.classes.index(row["label"]) if single else -1))
                found.names.append(printable(row["path"]))
                found.masks.append(Mask(mask, path))
        if missing:
            raise TrainingError(
                f"{printable(str(self.file))}: {len(missing):,} files are not there: {listed(missing)}: paths are read "
                "from the folder of the list"
            )
        if self.several:
            shares = [[name in labels_in(row["label"]) for name in found.classes] for _, row in rows]
            found.several = np.array(shares, bool)
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
            own = PARTS.get(row.get("split", "").lower())
            if own is None:
                found.leave_out("lines of another split than train and test", [f"line {number}"])
            elif own == part:
                rows.append((number, row))
        if not rows:
            raise TrainingError(f"{printable(str(self.file))}: no line has the split {part}: write train or test there")
        return rows

    def _looked_at(self, rows: list[tuple[int, dict[str, str]]], found: Survey) -> list[tuple[int, dict[str, str]]]:
        """The lines whose labels are stated, those without any among them."""
        unknown = [number for number, row in rows if row.get("label", UNLABELLED) == UNLABELLED]
        found.leave_out(f"lines without a label ({UNLABELLED})", [f"line {number}" for number in unknown])
        rows = [(number, row) for number, row in rows if row.get("label", UNLABELLED) != UNLABELLED]
        if not rows:
            raise TrainingError(
                f"{printable(str(self.file))}: no line of a part has labels: write them, or nothing where the image "
                "has none of them"
            )
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
        return path.suffix.lower() in (SUFFIX, *json_lines.SUFFIXES) and path.is_file()
    except (OSError, ValueError):
        return False


def labels_in(text: str) -> list[str]:
    """The labels that a cell names, in a list of images that may have several."""
    return [] if text == UNLABELLED else [label.strip() for label in text.split(BETWEEN) if label.strip()]


def read_table(file: Path) -> Table:
    shown = printable(str(file))
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            table = _of_json(file, text.read()) if file.suffix.lower() != SUFFIX else _of_csv(file, text.read())
    except UnicodeDecodeError:
        raise TrainingError(f"{shown}: not UTF-8: save it in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise TrainingError(f"{shown}: cannot be read: {error}") from None
    if not table.several:
        _refuse_quantities(table, shown)
    elif len(table.several_classes) < 2:
        found = listed(table.several_classes) or "none"
        raise TrainingError(
            f"{shown}: its lines name {len(table.several_classes)} labels ({found}), and two are needed: to tell "
            "images with one thing from those without it, give each image one of two labels"
        )
    return table


def _of_json(file: Path, text: str) -> Table:
    shown, rows, several = printable(str(file)), [], False
    columns: dict[str, None] = {}
    ignored: dict[str, None] = {}
    first: dict[str, int] = {}
    for number, found in json_lines.objects(text, shown):
        row: dict[str, str] = {}
        for head, value in found.items():
            name = _COLUMNS.get(head.strip().lower())
            if name is None:
                _refuse_quantity(head, found, f"{shown}, line {number}")
                ignored[head] = None
                continue
            if name in row:
                raise TrainingError(f"{shown}, line {number}: two keys hold the {name}: rename or remove one")
            columns[name] = None
            several = several or (name == "label" and isinstance(value, list))
            cell = json_lines.cell(value, name, BETWEEN, f"{shown}, line {number}: {name}")
            if cell is not None:
                row[name] = cell
        _refuse_row(row, first, number, shown)
        rows.append((number, row))
    if not rows:
        raise TrainingError(f'{shown}: empty: write an object in each line, as in {{"path": "a.png", "label": "cat"}}')
    return Table(file, tuple(columns), rows=tuple(rows), ignored=tuple(ignored), several=several or _has_several(rows))


def _has_several(rows: Sequence[tuple[int, dict[str, str]]]) -> bool:
    return any(BETWEEN in row.get("label", "") for _, row in rows)


def _refuse_quantity(head: str, others: Sequence[str] | dict[str, object], where: str) -> None:
    labelled = any(_COLUMNS.get(name.strip().lower()) == "label" for name in others)
    if head.strip().lower() in _QUANTITIES and not labelled:
        raise TrainingError(
            f"{where}: {printable(head)}: regression is not offered: Graft learns classes, and predicts no numbers; if "
            "these are names of classes, call it label"
        )


def _refuse_quantities(table: Table, shown: str) -> None:
    """Labels that are numbers to predict, and no names of classes."""
    labels = [(number, row["label"]) for number, row in table.rows if row.get("label")]
    try:
        values = {float(label) for _, label in labels}
    except ValueError:
        return
    fraction = next((each for each in labels if not float(each[1]).is_integer()), None)
    if len(values) > _MOST_NUMBERS and (fraction is not None or 2 * len(values) > len(labels)):
        number, label = fraction or labels[0]
        raise TrainingError(
            f"{shown}, line {number}: label {label}: the labels are {len(values):,} different numbers, and regression "
            "is not offered: Graft learns classes; write the name of a class in each line, as of a range of numbers"
        )


def _of_csv(file: Path, text: str) -> Table:
    shown, lines = printable(str(file)), list(_numbered(text))
    if not lines:
        raise TrainingError(f"{shown}: empty: its first line names the columns, as in path,label,split,group,mask")
    (_, heads), *rows = lines
    for head in heads:
        _refuse_quantity(head, heads, f"{shown}, line 1")
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
    read = tuple(_rows(rows, names, shown))
    if not read:
        raise TrainingError(f"{shown}: no line below the names of the columns: list an image in each")
    return Table(file, columns, rows=read, ignored=_ignored(heads), several=_has_several(read))


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
        _refuse_row(row, first, number, shown)
        yield number, row


def _refuse_row(row: dict[str, str], first: dict[str, int], number: int, shown: str) -> None:
    """`first` are the lines of the paths so far."""
    if not row.get("path"):
        raise TrainingError(f"{shown}, line {number}: no path")
    if row["path"] in first:
        raise TrainingError(
            f"{shown}, line {number}: {printable(row['path'])} is in line {first[row['path']]} too: remove one"
        )
    first[row["path"]] = number
