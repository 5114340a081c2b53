"""The images of a recipe, split so that no choice is measured on the images that it was based on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from app.bundle import InputSpec
from app.bundle.scoring import threshold_at
from training.data import checks
from training.data.folds import Folds, labelled_folds
from training.data.imageset import ImageSet
from training.data.splits import read_and_split, train_and_held_out, train_and_test, train_and_validation
from training.errors import TrainingError, listed, printable
from training.progress import say
from training.recipe import DistilMode, Recipe

_SHOWN = 256  # images


@dataclass(frozen=True)
class Material:
    """target = train + validation + calibration, without `test`; source likewise, without a calibration part.

    If the recipe adapts, only `test` has labels of the target, if there are any.
    """

    spec: InputSpec
    source: ImageSet  # its whole training part
    source_train: ImageSet
    source_validation: ImageSet
    source_test: ImageSet
    target: ImageSet  # its whole training part
    train: ImageSet
    validation: ImageSet  # chooses epochs and the temperature
    calibration: (
        ImageSet  # sets the anomaly threshold; nothing that is trained has seen it. With folds, all of `target`
    )
    test: ImageSet  # used for no choice; with split.folds and no test part, `target` itself
    folds: Folds | None = None  # of `target`, with split.folds: what is said of its labels comes from them

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every part that was read."""
        parts = {"source/train": self.source, "target/train": self.target, "target/test": self.test}
        return {name: part.fingerprint() for name, part in parts.items()}

    @property
    def labelled_held_out(self) -> ImageSet:
        """Held-out images whose labels may be used: the target's; the source's where that has none."""
        return self.validation if self.validation.labelled else self.source_validation

    @property
    def calibrates_labels(self) -> tuple[ImageSet, ...]:
        """Held-out images that the temperature is fitted on, and thresholds of several labels.

        Those take the calibration part, too: no choice has been based on its labels, and rare labels need many images.
        """
        held_out = self.labelled_held_out
        if held_out.several is None or self.calibration is self.target:
            return (held_out,)
        return held_out, self.calibration

    @property
    def tested(self) -> bool:
        """Whether there are images that the published network has not learnt from."""
        return self.test is not self.target

    def of_fold(self, held: np.ndarray) -> "Material":
        """For a network that does not see the images of a fold, (N,) bool: these are its test part."""
        others, tested = (self.target.take(np.flatnonzero(rows)) for rows in (~held, held))
        shown = _some(others)
        own = replace(self, train=others, target=others, validation=shown, calibration=others, test=tested, folds=None)
        if not self.one_domain:
            return own
        return replace(own, source=others, source_train=others, source_validation=shown, source_test=tested)

    @property
    def one_domain(self) -> bool:
        return self.source is self.target


def gather(recipe: Recipe, report: Callable[[str], None] = say) -> Material:
    spec = recipe.input.spec()
    read = read_and_split if recipe.transfer.adapts else train_and_test
    target, test = read(recipe.target, spec, recipe.split, recipe.seed)
    one_domain = _same(recipe.source, recipe.target)
    # Groups are those of the target's names.
    rules = recipe.split.model_copy(update={"groups": None, "sound": None})
    source, source_test = (target, test) if one_domain else read(recipe.source, spec, rules, recipe.seed)
    if recipe.transfer.adapts:
        _refuse_unadaptable(recipe, source, target, test)
        target = target.unlabelled(source.classes)
    elif target.sound is None:
        refuse_other_classes(target, test, recipe.target)
    labelled = source if recipe.transfer.adapts else target
    if labelled.several is not None or test.several is not None:
        _refuse_several(recipe)
    for warning in (*checks.class_warnings(labelled, recipe.anomaly.folds), *checks.duplicate_warnings(target, test)):
        report(f"note: {warning}")
    folds = None
    if recipe.split.folds:
        train, validation, calibration = target, _some(target), target
        test = test if len(test) else target
        folds = (
            labelled_folds(target, recipe.split, recipe.seed)
            if recipe.transfer.labels and len(target.classes) > 1
            else None
        )
    elif recipe.anomaly.folds:
        train, validation = train_and_validation(target, recipe.split, recipe.seed)
        calibration = target
    else:
        train, validation, calibration = train_and_held_out(target, recipe.split, recipe.seed)
    _refuse_what_would_fail_later(
        recipe, target, train=train, validation=validation, calibration=calibration, test=test
    )
    if one_domain:
        # Nothing is trained on calibration images: pretraining uses the others.
        return Material(
            spec=spec,
            source=target,
            source_train=train,
            source_validation=validation,
            source_test=test,
            target=target,
            train=train,
            validation=validation,
            calibration=calibration,
            test=test,
            folds=folds,
        )
    source = _without(source, (validation, calibration, test), recipe.source, report)
    source_train, source_validation = train_and_validation(source, rules, recipe.seed)
    _refuse_empty(recipe.source, source, {"validation": source_validation, "the test": source_test})
    return Material(
        spec=spec,
        source=source,
        source_train=source_train,
        source_validation=source_validation,
        source_test=source_test,
        target=target,
        train=train,
        validation=validation,
        calibration=calibration,
        test=test,
        folds=folds,
    )


def _some(data: ImageSet) -> ImageSet:
    """Images of the training part on which losses are computed where none are held out."""
    return data.take(np.unique(np.linspace(0, len(data) - 1, min(len(data), _SHOWN)).astype(int)))


def count_seen_in_pretraining(before: Recipe, material: Material) -> int:
    """How many of the images that are held out here an earlier run was pretrained on.

    A copy of one that is also in this run's training images is not counted: `gather` has warned about it.
    """
    known = set(gather(before, report=_discard).source_train.hashes()) - set(material.train.hashes())
    held_out = (material.validation, material.calibration, material.test)
    return sum(len(known.intersection(part.hashes())) for part in held_out)


def _discard(_: str) -> None:
    """Discard notes: they were printed when this material was gathered before."""


def _same(source: str, target: str) -> bool:
    return source == target or (Path(source).exists() and Path(source).resolve() == Path(target).resolve())


def _refuse_unadaptable(recipe: Recipe, source: ImageSet, target: ImageSet, test: ImageSet) -> None:
    mode = recipe.transfer.mode
    if source is target:
        raise TrainingError(f"transfer.mode={mode} adapts one domain to another, but source and target are the same")
    if len(source.classes) < 2:
        raise TrainingError(
            f"{recipe.source}: transfer.mode={mode} learns the source's labels, it has the classes {_listed(source)}: "
            "put each class into a folder"
        )
    if test.classes and test.classes != source.classes:
        raise TrainingError(
            f"{recipe.target}: its test part has the classes {_listed(test)}, the source {_listed(source)}: "
            "they must be the same, or the test part must have none"
        )


def _refuse_several(recipe: Recipe) -> None:
    """What makes no sense where an image may have several labels."""
    mode = recipe.transfer
    where = f"{recipe.target}: its images may have several labels, and"
    if mode.mode in _OF_ONE_LABEL:
        raise TrainingError(
            f"{where} transfer.mode={mode.mode} learns one label of each: set transfer.mode=linear, or head, "
            "gradual or full"
        )
    if isinstance(mode, DistilMode) and mode.soft:
        raise TrainingError(f"{where} transfer.soft={mode.soft:g} is of a teacher of one label each: set it to 0")
    if getattr(mode, "class_weights", False):
        raise TrainingError(
            f"{where} transfer.class_weights weighs classes of which each has one: leave it out; thresholds are chosen "
            "for each label"
        )


_OF_ONE_LABEL = ("episodic", "dann", "mmd", "source-only")


def _refuse_lacking(name: str, target: ImageSet, train: ImageSet) -> None:
    lacking = [
        f"{label} ({whole:,} in all)"
        for label, whole, count in zip(target.classes, target.counts, train.counts, strict=True)
        if not count
    ]
    if lacking:
        raise TrainingError(
            f"{name}: labels that no image to train on has, once parts are held out: {listed(lacking)}: list more "
            "images of them, or leave the labels out"
        )


def _listed(data: ImageSet) -> str:
    return listed(data.classes) or "none"


def refuse_other_classes(target: ImageSet, test: ImageSet, where: str) -> None:
    """Both parts must have the same classes."""
    if test.classes != target.classes:
        raise TrainingError(f"{printable(where)}: {_difference(target, test)}")


def _difference(target: ImageSet, test: ImageSet) -> str:
    """How the classes of the two parts differ, and the remedy."""
    mend = "or name the training part's own folder in the place of both"
    for here, there, part, other in ((test, target, "test", "training"), (target, test, "training", "test")):
        lacking = [name for name in here.classes if name not in there.classes]
        if lacking:
            return (
                f"the {part} part has classes that the {other} part lacks ({listed(lacking)}): put images of them "
                f"there too, {mend}"
            )
    return f"the classes of the test part are in another order than those of the training part: sort them alike, {mend}"


def _refuse_what_would_fail_later(
    recipe: Recipe, target: ImageSet, train: ImageSet, validation: ImageSet, calibration: ImageSet, test: ImageSet
) -> None:
    """Refuse now what would fail only after training."""
    _refuse_empty(recipe.target, target, {"validation": validation, "calibration": calibration, "the test": test})
    try:
        threshold_at(np.zeros(len(calibration)), recipe.false_alarm_rate)
    except ValueError as error:
        raise TrainingError(f"{recipe.target}: {error}; raise false_alarm_rate, or add images") from None
    if recipe.transfer.labels and train.several is not None:
        _refuse_lacking(recipe.target, target, train)
    if recipe.transfer.labels and len(target.classes) < 2:
        found = f"one class, {target.classes[0]}" if target.classes else "no labels"
        raise TrainingError(f'the target has {found}: put each class into a folder, or set transfer.mode="decoder"')


def _refuse_empty(name: str, whole: ImageSet, parts: dict[str, ImageSet]) -> None:
    for part, images in parts.items():
        if not len(images):
            raise TrainingError(f"{name}: {len(whole)} images leave none for {part}: more are needed")


def _without(source: ImageSet, held_out: tuple[ImageSet, ...], name: str, report: Callable[[str], None]) -> ImageSet:
    """The source without the target's held-out images, which an unlabelled source often includes."""
    known = set().union(*(part.hashes() for part in held_out))
    kept = np.array([index for index, key in enumerate(source.hashes()) if key not in known], np.int64)
    if len(kept) == len(source):
        return source
    report(
        f"note: {len(source) - len(kept):,} images of {name} are held out of the target: pretraining leaves them out"
    )
    return source.take(kept)
