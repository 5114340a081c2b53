"""What there is to label: the images of a folder or of a list, and the labels that some of them have."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from training.data.folder import LOOSE, Survey, read_folder, survey
from training.data.read import lists_files
from training.data.table import BETWEEN, PARTS, Table, is_table, labels_in, read_table
from training.data.table import UNLABELLED as UNKNOWN
from training.errors import TrainingError, listed, printable
from training.progress import say

UNLABELLED = frozenset({"unlabelled", "unlabeled"})  # a class folder of this name has no label
LIST = "labels.csv"
NONE = BETWEEN  # the label of an image that has none of several labels


@dataclass(frozen=True)
class Pool:
    """`found` lists the files as if none had a label; `labels` has "" where nobody has looked.

    Where an image may have several labels, they are joined in order; NONE is where it has none of them.
    """

    found: Survey
    labels: tuple[str, ...]
    several: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paths(self) -> list[Path]:
        return [path for path, _ in self.found.files]

    @property
    def names(self) -> list[str]:
        return self.found.names

    def take(self, rows: Iterable[int]) -> "Pool":
        files = [(self.found.files[row], self.names[row], self.labels[row]) for row in rows]
        found = replace(self.found, files=[file for file, _, _ in files], names=[name for _, name, _ in files])
        return replace(self, found=found, labels=tuple(label for _, _, label in files))


def read_pool(data: str, out: Path) -> Pool:
    """The training part of a folder or a list. Labels in `out`/labels.csv come before those of the data."""
    if not lists_files(data):
        raise TrainingError(f"{printable(data) or repr(data)}: label takes a folder of image files, or a CSV of them")
    pool = _of_table(read_table(Path(data))) if is_table(data) else _of_folder(Path(data))
    pool = pool.take(_listable(pool))
    own = out / LIST
    if not own.is_file():
        return pool
    table = read_table(own)
    if set(table.columns) != {"path", "label"} or table.ignored:
        raise TrainingError(
            f"{printable(str(own))}: has columns beside path and label, which would be lost: give another --out, or "
            "move it elsewhere and name it in the place of the folder"
        )
    return replace(pool, labels=_with_filled_in(pool, table), several=pool.several or table.several)


def _of_folder(folder: Path) -> Pool:
    if (folder / "train").is_dir():
        if (folder / "test").is_dir():
            say(f"{printable(str(folder))}: the images of train are labelled; test is left for measuring")
        folder = folder / "train"
    found = survey(folder)
    if not found.files:
        read_folder(folder, None)  # raises, and says what is there instead
    loose = found.left_out.pop(LOOSE, [])
    labels = [found.classes[label] if label >= 0 else "" for _, label in found.files]
    labels = ["" if label.lower() in UNLABELLED else label for label in labels] + [""] * len(loose)
    if len(found.classes) == 1 and labels[0] and not loose:
        say(f"note: {printable(found.classes[0])} is the only folder of images: it is not taken for a label")
        labels = [""] * len(labels)
    files = [(path, -1) for path, _ in found.files] + [(folder / name, -1) for name in loose]
    names = [*found.names, *map(printable, loose)]
    return Pool(replace(found, files=files, names=names, classes=(), masks=[]), tuple(labels))


def _of_table(table: Table) -> Pool:
    kept = tuple((number, row) for number, row in table.rows if PARTS.get(row.get("split", "").lower()) != "test")
    shown = printable(str(table.file))
    if not kept:
        raise TrainingError(f"{shown}: every line is of the test part, which is left for measuring")
    if len(kept) < len(table.rows):
        say(f"{shown}: {len(table.rows) - len(kept):,} lines of the test part are left for measuring")
    labels = tuple(_label(row.get("label", UNKNOWN if table.several else ""), table.several) for _, row in kept)
    bare = tuple((number, {"path": row["path"]}) for number, row in kept)  # a list with gaps is read here alone
    found = replace(table, columns=("path",), rows=bare, several=False).survey(None)
    return Pool(found, labels, table.several)


def _label(cell: str, several: bool) -> str:
    """As a pool has it, of a cell of a list."""
    if not several:
        return cell
    return "" if cell == UNKNOWN else BETWEEN.join(sorted(labels_in(cell))) or NONE


def cell_of(label: str, several: bool) -> str:
    """As a list has it: in one of several labels an empty cell would say that the image has none of them."""
    return label or (UNKNOWN if several else "")


def _listable(pool: Pool) -> list[int]:
    """Those whose names a CSV can hold."""
    odd = {row for row, path in enumerate(pool.paths) if printable(str(path)) != str(path) or _edged(path)}
    if odd:
        shown = listed([pool.names[row] for row in sorted(odd)])
        say(f"{printable(str(pool.found.root))}: left out names that no CSV can hold ({len(odd):,}): {shown}")
    return [row for row in range(len(pool)) if row not in odd]


def _edged(path: Path) -> bool:
    return str(path) != str(path).strip()


def place_of(path: Path) -> str:
    """Equal for two ways to write a path, and not for a link and what it leads to."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _with_filled_in(pool: Pool, own: Table) -> tuple[str, ...]:
    shown = printable(str(own.file))
    at = {place_of(path): row for row, path in enumerate(pool.paths)}
    labels, several = list(pool.labels), pool.several or own.several
    # A list that was written before the first of several labels was filled in has empty cells where nobody has looked.
    empty_is_none = pool.several or any(line["label"] == UNKNOWN for _, line in own.rows)
    for number, line in own.rows:
        label = _label(line["label"], several)
        if not label or not (line["label"] or empty_is_none):
            continue
        row = at.get(place_of(own.file.parent / line["path"]))
        if row is None:
            raise TrainingError(
                f"{shown}, line {number}: {printable(line['path'])} has a label, and is not among the images of "
                f"{printable(str(pool.found.root))}: remove the line, or give another --out"
            )
        labels[row] = label
    return tuple(labels)
