"""A named data set, a folder or a list of images → the images of one of its parts."""

import os
from pathlib import Path

from app.bundle import InputSpec
from training.data import idx, npz
from training.data.folder import MASKS, read_folder, read_survey
from training.data.imageset import ImageSet
from training.data.named import CLASSES, NAMES, TEXTURED, read_named
from training.data.table import is_table, read_table, report_ignored
from training.errors import TrainingError, listed, printable
from training.progress import say

PARTS = ("train", "test")


def has_parts(data: str) -> bool:
    """Whether the data set itself has a training and a test part."""
    folder = Path(data)
    if data not in NAMES and is_table(data):
        return read_table(folder).has_test_part
    return (
        data in (*CLASSES, *TEXTURED)
        or (folder / "test").is_dir()
        or (folder / npz.FILES["test"]).is_file()
        or idx.find(folder, idx.FILES["test"][0]) is not None
    )


def lists_files(data: str) -> bool:
    """Whether the data set is a folder of image files, or a list of them: its classes are known without decoding."""
    folder = Path(data)
    if data in NAMES or is_table(data):
        return data not in NAMES
    stems = (idx.FILES[each][0] for each in PARTS)
    return (
        bool(data)
        and folder.is_dir()
        and all(idx.find(folder, stem) is None for stem in stems)
        and not any((folder / npz.FILES[each]).is_file() for each in PARTS)
    )


def read_part(data: str, part: str, spec: InputSpec | None) -> ImageSet:
    """`data` is a named data set, a list of images, or a folder: of IDX files, of train.npz and test.npz, of class
    folders, or of images.

    `part` is train or test; a folder without parts is read whole. Without a spec the images are listed, not decoded:
    see ImageSet.
    """
    if spec is not None and spec.tiles is not None and not lists_files(data):
        raise TrainingError(
            f"{printable(data) or repr(data)}: input.tiles is for a folder of pictures, or a CSV of them: leave it out"
        )
    if data in NAMES:
        return read_named(data, part, spec)
    folder, shown = Path(data), printable(data)
    if is_table(data):
        table = read_table(folder)
        if part == "train" and spec is not None:
            report_ignored(table)
        return read_survey(table.survey(part if table.has_test_part else None), spec)
    if not data or not folder.is_dir():  # "" would be the current folder
        raise TrainingError(
            f"{shown or repr(data)}: neither a named data set ({', '.join(NAMES)}) nor a folder, nor a list of images "
            "(CSV, JSON lines)"
        )
    if any(idx.find(folder, stem) is not None for stem in (idx.FILES[each][0] for each in PARTS)):
        return idx.read_idx_set(folder, part, spec, ())
    if any((folder / npz.FILES[each]).is_file() for each in PARTS):
        return npz.read_npz(folder / npz.FILES[part], spec)
    parts = [each for each in PARTS if (folder / each).is_dir()]
    if not parts:
        return read_folder(folder, spec)
    if parts == ["test"] and part == "train":
        raise TrainingError(f"{shown}: it has a folder test, but no folder train: put the images to train on there")
    if part == "train" and spec is not None:
        _report_left_out(folder, parts)
    own = part if part in parts else "train"
    return read_folder(folder / own, spec, masks=folder / MASKS if own == "test" else None)


def _report_left_out(folder: Path, parts: list[str]) -> None:
    beside = sorted(set(os.listdir(folder)) - {*parts, MASKS})
    if beside:
        where = f"{printable(str(folder))}: left out entries beside {' and '.join(parts)}"
        say(f"{where} ({len(beside):,}): {listed(beside)}")
