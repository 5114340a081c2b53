"""A folder in, a page and a list out: the images to label next, or the labels to check."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np

from training.errors import TrainingError, listed, printable
from training.label import sheet
from training.label.choose import Choice, choose
from training.label.codes import Codes, codes_of, copies, encoder
from training.label.pool import LIST, NONE, Pool, cell_of, place_of, read_pool
from training.progress import say
from training.shots.bases import called

PAGE = "sheet.html"


def label(data: str, *, count: int, out: Path, base: Path | None, outside: bool, check: bool) -> Path:
    """The list, in `out`."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"--out {out}: a file: name a folder")
    pool = read_pool(data, out)
    bundle = encoder(base, outside, out)
    codes = codes_of(bundle, pool, out)
    group = copies(codes)
    _describe(codes, group, printable(data), called(bundle))
    choice = choose(codes, group, count, check)
    rows = _rows(pool, codes, choice, out)
    _write(out / LIST, rows)
    kinds = sorted({*pool.labels} - {"", NONE})
    title = f"{printable(Path(data).resolve().name)}: {_TITLES[choice.way]}"
    page = sheet.page(codes.pool, choice, rows, kinds=kinds, title=title)
    (out / PAGE).write_text(page, encoding="utf-8")
    _say_next(choice, count, out, several=pool.several)
    return out / LIST


_TITLES = {
    "typical": "to label first",
    "cover": "to label next",
    "teach": "to label next",
    "check": "labels to check",
}


def _describe(codes: Codes, group: np.ndarray, shown: str, encoded_by: str) -> None:
    labels = codes.pool.labels
    counts = Counter(label for label in labels if label)
    names = {NONE: "none of them"}
    kinds = listed([f"{names.get(name, name)} {number:,}" for name, number in counts.most_common()])
    say(f"{shown}: {len(labels):,} images, {counts.total():,} with a label{f' ({kinds})' if counts else ''}")
    if twins := len(labels) - len(np.unique(group)):
        say(f"copies of others, to the pixel or nearly: {twins:,}; of each picture one is asked at the most")
    differing = [
        [row for row in np.flatnonzero(group == each) if labels[row]] for each in np.flatnonzero(np.bincount(group) > 1)
    ]
    for rows in differing:
        if len({labels[row] for row in rows}) > 1:
            pair = " and ".join(f"{codes.pool.names[row]} ({printable(labels[row])})" for row in rows[:2])
            say(f"note: copies with two labels: {pair}")
    say(f"codes by {encoded_by}")


def _rows(pool: Pool, codes: Codes, choice: Choice, out: Path) -> list[tuple[str, str]]:
    """(path from `out`, label) of the list: what was chosen, and all that has a label, each once.

    What is to be labelled comes last, below what is done; what is to be checked comes first. A label stays, though its
    image cannot be read any more.
    """
    here = os.path.realpath(out)
    chosen = {codes.pool.paths[each.row]: codes.pool.labels[each.row] for each in choice.chosen}
    done = {path: label for path, label in zip(pool.paths, pool.labels, strict=True) if label and path not in chosen}
    order = {**chosen, **done} if choice.way == "check" else {**done, **chosen}
    return [(os.path.relpath(place_of(path), here), cell_of(label, pool.several)) for path, label in order.items()]


def _write(file: Path, rows: list[tuple[str, str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with part.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("path", "label"))
        writer.writerows(rows)
    os.replace(part, file)


def _say_next(choice: Choice, count: int, out: Path, several: bool) -> None:
    say(f"{choice.way}: {choice.why}")
    found = len(choice.chosen)
    if choice.way == "check" and not found:
        say("the model contradicts no label")
    elif choice.way == "check":
        say(f"{found:,} labels to look at, the first lines of {out / LIST}: correct those that are wrong")
    elif found < count:
        say(f"{count:,} images were asked for, and {found:,} are left to label")
    if found:
        say(f"look at {out / PAGE} in a browser, and type the labels there or into {out / LIST}")
        say(f"then run the same command again: it reads {out / LIST}")
    when = "" if choice.way == "check" or several else "when every line has a label, "
    say(f"{when}train on it: graft-train run photos --set source={out / LIST} --set target={out / LIST}")
