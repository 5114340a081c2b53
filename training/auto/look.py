"""What a folder has, and what it is therefore taken for."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.data import inspection
from training.data.imageset import ImageSet
from training.data.material import refuse_other_classes
from training.data.read import has_parts, read_part
from training.data.resolution import examined, measure
from training.errors import TrainingError, listed, printable

Purpose = Literal["classify", "inspect"]
_FEWEST = 4  # images of a class, to be learnt and judged
_SHOWN = 8  # classes


@dataclass(frozen=True)
class Found:
    """A data set, listed and not decoded."""

    data: str
    train: ImageSet  # without images of defects, where it is for inspection
    test: ImageSet | None  # its own part, if it has one
    sound: str | None
    defects: int  # images of, beside the sound ones or in the test part
    short_side: float  # pixels, of the median training image

    @property
    def purposes(self) -> tuple[Purpose, ...]:
        """What its images can be used for, the usual first."""
        if self.train.several is not None:
            return ("classify",)
        if self.sound is not None or len(self.train.classes) < 2:
            return ("inspect",)
        return ("classify", "inspect")

    def words(self) -> str:
        count, where = len(self.train), printable(self.data)
        own = (
            "" if self.test is None else f", and a test part of {len(self.test):,}, which is measured once, at the end"
        )
        if self.sound is not None:
            beside = (
                f", {self.defects:,} images of defects to be tested on" if self.defects else ", no image of a defect"
            )
            return f"{where}: {count:,} sound images ({printable(self.sound)}) to learn from{beside}"
        if not self.train.classes:
            return f"{where}: {count:,} images without labels, taken as sound{own}"
        pairs = zip(self.train.classes, self.train.counts, strict=True)
        each = listed([f"{name} {n:,}" for name, n in pairs], _SHOWN)
        if self.train.several is None:
            return f"{where}: {count:,} images of {len(self.train.classes)} kinds ({each}){own}"
        shares = self.train.several.sum(axis=1)
        return (
            f"{where}: {count:,} images that may have several labels, of {len(self.train.classes)} ({each}); they have "
            f"{shares.mean():.1f} each, and {int((shares == 0).sum()):,} have none{own}"
        )


def look(data: str, classify: bool = False) -> Found:
    """`classify`: a class that is named as sound ones are is a class like the others."""
    parted = has_parts(data)
    train = read_part(data, "train", None)
    test = read_part(data, "test", None) if parted else None
    defects = 0
    if train.several is None and (not classify or len(train.classes) < 2):
        if test is not None:
            train, test = inspection.marked_parts(train, test, None, data)
        elif (usual := inspection.usual_sound(train.classes)) is not None or len(train.classes) == 1:
            whole = inspection.marked(train, usual, data)
            defects, train = int(whole.defective.sum()), whole.without_defects()
    if test is not None:
        defects = int(test.defective.sum())
    if len(train) < _FEWEST:
        raise TrainingError(f"{printable(data)}: {len(train)} images to learn from, and {_FEWEST} are needed: add some")
    if train.sound is None:
        _refuse_small(train, data)
        if test is not None:
            refuse_other_classes(train, test, data)
    some = measure([dimensions for _, dimensions in examined(train, printable(data))])
    return Found(data, train, test, sound=train.sound, defects=defects, short_side=some.short_side)


def _refuse_small(train: ImageSet, data: str) -> None:
    small = [f"{name} ({n})" for name, n in zip(train.classes, train.counts, strict=True) if n < _FEWEST]
    if small:
        mend = "take the folder away" if train.several is None else "take the label out of the list"
        raise TrainingError(
            f"{printable(data)}: fewer than {_FEWEST} images of {listed(small)}: they cannot be learnt and judged; add "
            f"images, or {mend}"
        )


def model_name(data: str) -> str:
    """A bundle's name, from a folder's."""
    name = re.sub(
        r"[^a-z0-9._-]+", "-", Path(data).resolve().name.lower().removesuffix(".csv").removesuffix(".jsonl")
    ).strip("-._")
    return (name or "images")[:64]
