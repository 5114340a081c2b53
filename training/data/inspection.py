"""Sets for inspection: sound images to learn from, and to judge, others with kinds of defect.

    train/good   test/good   test/crack   ground_truth/crack/NAME_mask.png
    good   crack   scratch              side by side
    IMAGE or good/IMAGE                 sound images alone
    a CSV with the columns path, label, split, group, mask

A class is taken as the sound one where it is the only one of a training part, where `split.sound` names it, or, in a
recipe that learns no labels, where it has one of the usual names.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from training.data.imageset import ImageSet
from training.data.read import has_parts, lists_files, read_part
from training.errors import TrainingError, listed, printable
from training.progress import say
from training.recipe import DecoderMode, Recipe

USUAL = frozenset(
    {
        *("good", "ok", "okay", "sound", "normal", "intact", "healthy", "pass", "passed", "flawless", "perfect"),
        *("defect-free", "defect_free", "no-defect", "no_defect", "nodefect", "undamaged", "io", "gut"),
    }
)


def usual_sound(classes: Sequence[str]) -> str | None:
    """The class whose name says that it is sound; None if there is none, or more than one."""
    found = [name for name in classes if name.strip().lower() in USUAL]
    return found[0] if len(found) == 1 else None


def marked(data: ImageSet, sound: str | None, where: str) -> ImageSet:
    """A set without parts, with its sound class: the one that is named, or the only one."""
    if data.several is not None:
        _refuse_sound(sound, where)
        return data
    if sound is None and len(data.classes) == 1:
        sound = _only_class(data, where)
    if sound is not None and sound not in data.classes:
        raise _no_such_class(sound, data.classes, where)
    return replace(data, sound=sound)


def _refuse_sound(sound: str | None, where: str) -> None:
    if sound is not None:
        raise TrainingError(
            f"{printable(where)}: split.sound={printable(sound)} is for images of one label each, and here an image "
            "may have several: leave it out, or give each image one label"
        )


def _only_class(data: ImageSet, where: str) -> str:
    """The one class, which is taken as the sound one; unless its folders could be classes."""
    [sound] = data.classes
    parts = [PurePosixPath(name).parts for name in data.names]
    inner = sorted({each[1] for each in parts if len(each) > 2 and each[0] == sound})
    if len(inner) > 1 and all(len(each) > 2 for each in parts) and usual_sound([sound]) is None:
        raise TrainingError(
            f"{printable(where)}: all images are in folders inside one folder, {sound} ({listed(inner)}): if these are "
            f"the classes, name the folder {sound} itself; if all of its images are sound, set split.sound={sound}"
        )
    return sound


def marked_parts(train: ImageSet, test: ImageSet, sound: str | None, where: str) -> tuple[ImageSet, ImageSet]:
    """Both parts with their sound class if they are for inspection; the training part then has no other."""
    if train.several is not None:
        _refuse_sound(sound, where)
        return train, test
    if sound is None:
        if len(train.classes) == 1:
            sound = _only_class(train, where)
        elif not train.classes and len(test.classes) > 1:
            sound = usual_sound(test.classes)
    if sound is None:
        return train, test
    classes = tuple(dict.fromkeys((*train.classes, *test.classes)))
    if sound not in classes:
        raise _no_such_class(sound, classes, where)
    if not train.classes:
        train = replace(train, labels=np.zeros(len(train), np.int64), classes=(sound,))
    if sound not in train.classes:
        raise TrainingError(f"{printable(where)}: its training part has no images of {sound}, the sound class")
    train = replace(train, sound=sound).without_defects()
    if test.classes and sound not in test.classes:  # defects alone: a label that no image has
        test = replace(test, classes=(*test.classes, sound))
    return train, replace(test, sound=sound if test.classes else None)


def _no_such_class(sound: str, classes: Sequence[str], where: str) -> TrainingError:
    return TrainingError(
        f"{printable(where)}: no class {printable(sound)} to take as the sound one; it has {listed(classes) or 'none'}"
    )


def settled(recipe: Recipe) -> Recipe:
    """The recipe with the sound class that its target has, and without labels to learn where there are none."""
    mode, sound = recipe.transfer, recipe.split.sound
    if mode.adapts or not (lists_files(recipe.target) or sound is not None):
        return recipe
    where, parted = printable(recipe.target), has_parts(recipe.target)
    train = read_part(recipe.target, "train", None)
    if parted:
        train, _ = marked_parts(train, read_part(recipe.target, "test", None), sound, recipe.target)
        found = train.sound
    else:
        found = marked(train, sound, recipe.target).sound
        if found is None and not mode.labels and train.several is None:
            found = usual_sound(train.classes)
    if found is not None and found != sound:
        others = [name for name in train.classes if name != found]
        beside = f"; {listed(others)} are kinds of defect, and only tested on" if others else ""
        say(f"{where}: {found} is taken as the sound class{beside}")
        recipe = recipe.with_parts(split=recipe.split.model_copy(update={"sound": found}))
    if not mode.labels or (found is None and train.classes):
        return recipe
    say(f"{where}: its images are of one kind, and there is nothing to classify: transfer.mode=decoder is set")
    return recipe.with_parts(transfer=DecoderMode(reads=mode.reads))


def in_words(train: ImageSet, test: ImageSet, parted: bool) -> str:
    """What a data set was taken for."""
    if train.several is not None:
        shares = train.several.sum(axis=1)
        return (
            f"taken for: images that may have several labels, of {len(train.classes)}; the training images have "
            f"{shares.mean():.1f} each, and {int((shares == 0).sum()):,} of {len(train):,} have none"
        )
    if train.sound is None:
        if not train.classes:
            return "taken for: images without labels; for inspection, all of them are sound"
        usual = usual_sound(train.classes)
        hint = (
            f"; to learn from {usual} alone and find the others, take a recipe that learns no labels, or "
            f"set split.sound={usual}"
            if usual
            else ""
        )
        return f"taken for: images to classify, {len(train.classes)} classes{hint}"
    kinds = test.kinds
    how = "in parts of their own" if parted else "of which a part is held out to test on"
    first = f"taken for: inspection; {train.sound} are the sound images, {how}; "
    if not kinds:
        return first + "there are no images with defects"
    masked = sum(mask.file is not None for mask in test.masks)
    return first + f"images with defects: {int(test.defective.sum()):,} ({listed(kinds)}); masks of them: {masked:,}"
