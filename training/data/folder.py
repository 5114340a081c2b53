"""Folders of image files: one folder per class, or images alone.

    FOLDER/CLASS/IMAGE          images in a class's folder
    FOLDER/CLASS/FOLDER/IMAGE   and in folders inside it, at any depth: the outermost folder is the class
    FOLDER/IMAGE                images without labels, where no folder has any

Beside the class folders, or beside train and test, ground_truth/CLASS/NAME_mask.png (or NAME.png) shows where the image
CLASS/NAME has defects.

Everything else is left out, counted and named: hidden entries, masks inside class folders, other files, broken links.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from app.bundle import ImageError, InputSpec, preprocess
from training import ranks
from training.data.imageset import ImageSet, Mask, hash_of, refuse_bad_names
from training.data.pictures import Files, Pictures
from training.data.storage import shared, without
from training.errors import TrainingError, listed, printable
from training.progress import say, track

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MOST_BROKEN = 0.05  # share of unreadable images above which a folder is refused
HIDDEN = "hidden entries"
OTHER = "other files"
NO_FILE = "broken links and special files"
EMPTY = "folders without images"
INNER_MASKS = "folders of masks inside class folders"
CIRCLE = "links back to a parent folder"
LOOSE = "images beside class folders"
STRAY = "masks without an image"
MASKS = "ground_truth"
_MASK_ENDING = "_mask"
Result = TypeVar("Result")


@dataclass
class Survey:
    """The images of a folder in the order of their names, and the entries that are left out."""

    root: Path  # begins messages
    classes: tuple[str, ...] = ()
    files: list[tuple[Path, int]] = field(default_factory=list)  # the path, the index of its class or -1
    names: list[str] = field(default_factory=list)  # of the files, within the folder
    masks: list[Mask] = field(default_factory=list)  # of each file; empty where none has one
    groups: list[str] = field(default_factory=list)  # of each file, where a table states them
    several: np.ndarray | None = None  # as in ImageSet
    nested: list[str] = field(default_factory=list)  # names of files in folders inside class folders
    left_out: dict[str, list[str]] = field(default_factory=dict)  # reason → names within the folder

    def leave_out(self, reason: str, names: list[str]) -> None:
        if names:
            self.left_out.setdefault(reason, []).extend(names)


def survey(folder: Path, masks: Path | None = None) -> Survey:
    """`masks` is the folder of masks, by default the one in it."""
    found = Survey(folder)
    loose, folders = _entries(folder, "", found)
    classes: list[str] = []
    for name in folders:
        if name == MASKS and len(folders) > 1:
            continue
        inside = _survey_class(folder / name, name, found)
        if inside:
            found.files += [(path, len(classes)) for path in inside]
            found.nested += [_within(folder, path) for path in inside if path.parent != folder / name]
            classes.append(name)
    if classes:
        found.leave_out(LOOSE, loose)
        refuse_bad_names(tuple(classes), printable(str(folder)))
    else:
        found.files = [(folder / name, -1) for name in loose]
    found.classes = tuple(classes)
    found.names = [_within(folder, path) for path, _ in found.files]
    masks = folder / MASKS if masks is None else masks
    if classes and os.path.isdir(masks):
        _match_masks(found, masks)
    return found


def _match_masks(found: Survey, folder: Path) -> None:
    """Fills `found.masks` from the folder of masks."""
    of: dict[tuple[str, Path], Path] = {}  # (class, name within its folder) → the mask
    ignored = Survey(folder)  # its odd entries are those of no image
    for name in _entries(folder, f"{MASKS}/", ignored)[1]:
        for path in _survey_class(folder / name, name, ignored):
            of[name, path.relative_to(folder / name).with_suffix("")] = path
    taken = set()
    for path, label in found.files:
        kind = found.classes[label]
        own = path.relative_to(found.root / kind).with_suffix("")
        keys = ((kind, each) for each in (own.with_name(own.name + _MASK_ENDING), own))
        key = next((key for key in keys if key in of), None)
        found.masks.append(Mask(None if key is None else of[key], path))
        taken.add(key)
    stray = [of[key] for key in sorted(of.keys() - taken)]
    found.leave_out(STRAY, [f"{MASKS}/{path.relative_to(folder)}" for path in stray])
    if all(mask.file is None for mask in found.masks):
        found.masks = []


def _survey_class(folder: Path, name: str, found: Survey) -> list[Path]:
    """The images in it, and in the folders inside it."""
    circles = len(found.left_out.get(CIRCLE, ()))
    inside = _images(folder, name, found, _with_parents(folder.parent))
    if not inside and len(found.left_out.get(CIRCLE, ())) == circles:
        found.leave_out(EMPTY, [name])
    return inside


def _images(folder: Path, name: str, found: Survey, above: set[str]) -> list[Path]:
    """`above` are the folders that lead here, from the root of the file system on: a link may lead back to one."""
    real = os.path.realpath(folder)
    if real in above:
        found.leave_out(CIRCLE, [name])
        return []
    images, folders = _entries(folder, f"{name}/", found)
    inside = [folder / image for image in images]
    for each in folders:
        if each == MASKS:
            found.leave_out(INNER_MASKS, [f"{name}/{each}"])
        else:
            inside += _images(folder / each, f"{name}/{each}", found, above | {real})
    return inside


def _within(folder: Path, path: Path) -> str:
    return printable(str(path.relative_to(folder)))


def _with_parents(folder: Path) -> set[str]:
    real = Path(os.path.realpath(folder))
    return {str(real), *map(str, real.parents)}


def _entries(folder: Path, prefix: str, found: Survey) -> tuple[list[str], list[str]]:
    """(names of images, names of folders), sorted; other entries are recorded in `found`."""
    images, folders = [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise TrainingError(f"{printable(str(folder))}: cannot be read: {error.strerror}") from None
    for entry in entries:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            found.leave_out(HIDDEN, [prefix + entry.name])
        elif os.path.isdir(entry):  # entry.is_dir() raises where a link leads in a circle
            folders.append(entry.name)
        elif not os.path.isfile(entry):
            found.leave_out(NO_FILE, [prefix + entry.name])
        elif suffix not in SUFFIXES:
            found.leave_out(OTHER, [prefix + entry.name])
        else:
            images.append(entry.name)
    return images, folders


def read_folder(
    folder: Path, spec: InputSpec | None, most_broken: float = MOST_BROKEN, masks: Path | None = None
) -> ImageSet:
    """Images that cannot be read are left out, unless they are more than a share of `most_broken`.

    Without a spec, all are listed and none is decoded. `masks` is as in `survey`.
    """
    found = survey(folder, masks)
    if not found.files:
        raise TrainingError(
            f"{printable(str(folder))}: no images in it, nor in the folders directly below it{_but(found)}: "
            f"put images there, or a folder of them for each class ({', '.join(sorted(SUFFIXES))})"
        )
    return read_survey(found, spec, most_broken)


def read_survey(found: Survey, spec: InputSpec | None, most_broken: float = MOST_BROKEN) -> ImageSet:
    """The images of a survey, as `read_folder` reads them."""
    if spec is None:
        return _undecoded(found)
    files, shown = found.files, printable(str(found.root))
    for reason, names in found.left_out.items():
        say(f"{shown}: left out {reason} ({len(names):,}): {listed(names)}")
    if found.nested:
        say(
            f"{shown}: images in folders inside class folders ({len(found.nested):,}) have the class of the outermost "
            f"folder: {listed(found.nested)}"
        )

    if spec.tiles is not None:
        pictures, broken = _looked_at([path for path, _ in files], spec, shown)
    else:
        pictures, broken = None, {}
        with shared((len(files), *spec.shape), np.uint8) as images:
            for index, result in _each(
                [path for path, _ in files], lambda path: preprocess(path.read_bytes(), spec), shown
            ):
                if isinstance(result, str):
                    broken[index] = result
                else:
                    images[index] = result
    broken = dict(sorted(pair for some in ranks.of_all(broken) for pair in some.items()))
    reasons = [f"{found.names[index]} ({reason})" for index, reason in broken.items()]
    if len(broken) > most_broken * len(files):
        raise TrainingError(
            f"{shown}: {len(broken):,} of {len(files):,} images cannot be read: {listed(reasons)}: repair or "
            "remove them"
        )
    if broken:
        say(f"{shown}: left out unreadable images ({len(broken):,} of {len(files):,}): {listed(reasons)}")
    kept = [index for index in range(len(files)) if index not in broken]
    if found.several is not None:
        labels, classes = np.array([], np.int64), found.classes
    elif found.classes:
        labels, classes = _there(np.array([files[index][1] for index in kept], np.int64), found.classes, shown)
    else:
        labels, classes = np.array([], np.int64), ()
    return ImageSet(
        images=without(images, broken) if pictures is None else pictures.take(np.array(kept, np.int64)),
        labels=labels,
        classes=classes,
        names=tuple(found.names[index] for index in kept),
        masks=tuple(found.masks[index] for index in kept) if found.masks else (),
        groups=tuple(found.groups[index] for index in kept) if found.groups else (),
        several=None if found.several is None else found.several[kept],
    )


def _there(labels: np.ndarray, classes: tuple[str, ...], shown: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and classes without those that have lost all of their images."""
    there = np.unique(labels)
    if len(there) < len(classes):
        lost = [name for label, name in enumerate(classes) if label not in there]
        say(f"{shown}: left out classes without a readable image ({len(lost):,}): {listed(lost)}")
    return np.searchsorted(there, labels), tuple(classes[label] for label in there)


def _each(paths: Sequence[Path], work: Callable[[Path], Result], shown: str) -> Iterator[tuple[int, Result | str]]:
    """(index, what `work` gave or the reason why it failed) of this rank's share of the files, several at a time."""

    def tried(path: Path) -> Result | str:
        try:
            return work(path)
        except ImageError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    place, places = ranks.here()
    mine = range(place, len(paths), places)
    with ThreadPoolExecutor() as pool:
        results = pool.map(tried, (paths[index] for index in mine))
        yield from track(zip(mine, results, strict=True), shown, len(mine))


def _looked_at(paths: Sequence[Path], spec: InputSpec, shown: str) -> tuple[Pictures, dict[int, str]]:
    """(the pictures, which stay files; the reasons of those of this rank's share that cannot be read)."""

    def look(path: Path) -> tuple[int, int, bytes]:
        picture = preprocess(path.read_bytes(), spec)
        return *picture.shape[:2], hash_of(picture)

    here: dict[int, tuple[int, int, bytes]] = {}
    broken: dict[int, str] = {}
    for index, result in _each(paths, look, shown):
        if isinstance(result, str):
            broken[index] = result
        else:
            here[index] = result
    facts = {index: each for some in ranks.of_all(here) for index, each in some.items()}
    known = [facts.get(index, (0, 0, b"")) for index in range(len(paths))]
    sizes = np.array([each[:2] for each in known], np.int64).reshape(-1, 2)
    return Pictures(Files(paths, sizes, [each[2] for each in known], spec)), broken


def _undecoded(found: Survey) -> ImageSet:
    paths = np.empty(len(found.files), object)
    paths[:] = [path for path, _ in found.files]
    return ImageSet(
        images=paths,
        labels=np.array(
            [label for _, label in found.files] if found.classes and found.several is None else [], np.int64
        ),
        classes=found.classes,
        names=tuple(found.names),
        masks=tuple(found.masks),
        groups=tuple(found.groups),
        several=found.several,
    )


def _but(found: Survey) -> str:
    reasons = [f"{reason} ({len(names):,}): {listed(names)}" for reason, names in found.left_out.items()]
    return f" (but it has {'; '.join(reasons)})" if reasons else ""
