"""The command `auto`: look, plan, race, publish, say."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from app.bundle.scoring import are_present, label_probabilities
from training import recipe as recipes
from training import run as runs
from training.auto import contenders, verdict
from training.auto.contenders import Entry, Size
from training.auto.curve import learning_curve
from training.auto.look import Found, Purpose, look, model_name
from training.data.material import Material, gather
from training.errors import TrainingError, printable
from training.learning.inference import in_batches
from training.learning.linear import head_on
from training.measure.several import micro_f1
from training.progress import OutOfTime, quiet, say, track, until
from training.publish.crossed import given_across
from training.publish.draft import Measured
from training.recipe import Recipe
from training.report.gather import Verdict
from training.search.crossing import Crossing
from training.search.race import Budget, Contender, Finished, best, race
from training.tracking.index import tracked

PLAN_FILE, VERDICT_FILE = "plan.toml", "verdict.txt"  # in the folder of what was built
_TO_PUBLISH = 30.0  # seconds, beside what grows with the images
_ENOUGH = 1.2  # times the budget, above which the first contender is not begun
_SIDE = 16  # pixels, of the images that a network has to be better than
_MOST_BY_PIXELS = 500  # images: what they reach is no close call


@dataclass(frozen=True)
class Wish:
    data: str
    minutes: float
    purpose: Purpose | Literal["both"] | None
    size: Size
    outside: bool  # whether weights may be used that others published
    name: str | None
    models: Path
    began: float = field(default_factory=time.monotonic)


def plan(wish: Wish) -> str:
    """The recipe that would be run first, with what would be raced beside it, as TOML."""
    found, purposes = _looked(wish)
    texts = []
    for purpose in purposes:
        entries = _entries(found, wish, purpose)
        _say_plan(found, entries, wish, purpose)
        texts.append(recipes.to_toml(entries[0].recipe))
    return "\n".join(texts)


def auto(wish: Wish, folder: Path, command: str) -> list[Path]:
    """The bundles: one, or one for each purpose. `command` is what was typed, but for where it ran."""
    found, purposes = _looked(wish)
    made = []
    for number, purpose in enumerate(purposes):
        own = folder if len(purposes) == 1 else folder / purpose
        left = 60 * wish.minutes - (time.monotonic() - wish.began)
        budget = Budget(left / (len(purposes) - number))
        entries = _entries(found, wish, purpose)
        _say_plan(found, entries, wish, purpose)
        own.mkdir(parents=True, exist_ok=True)
        with tracked(own, entries[0].recipe, "auto", f"{command} --run {own} --resume"):
            if purpose == "classify":
                made.append(_classify(found, wish, entries, folder=own, budget=budget))
            else:
                made.append(_inspect(found, wish, entries, folder=own))
    say(f"took {(time.monotonic() - wish.began) / 60:.1f} of {wish.minutes:g} minutes")
    return made


def _looked(wish: Wish) -> tuple[Found, list[Purpose]]:
    found = look(wish.data, classify=wish.purpose in ("classify", "both"))
    say(found.words())
    if wish.purpose == "classify" and "classify" not in found.purposes:
        raise TrainingError(
            f"{printable(wish.data)}: one kind of images, and nothing to classify: put each kind into a folder, or "
            "leave out --for"
        )
    if wish.purpose == "inspect" and "inspect" not in found.purposes:
        raise TrainingError(
            f"{printable(wish.data)}: its images may have several labels, and inspection learns from sound images: "
            "leave out --for"
        )
    if wish.purpose == "both":
        return found, list(found.purposes)
    return found, [wish.purpose or found.purposes[0]]


def _entries(found: Found, wish: Wish, purpose: Purpose) -> list[Entry]:
    name = wish.name or model_name(wish.data)
    if purpose == "inspect":
        own = f"{name}-inspect" if wish.purpose == "both" and "classify" in found.purposes else name
        recipe = contenders.to_inspect(look(wish.data), own, size=wish.size, outside=wish.outside)
        what = (
            "marks of networks trained here" if not wish.outside else "a memory of sound patches on EfficientNet-Lite0"
        )
        entries = [Entry("inspect", what, recipe)]
    else:
        entries = contenders.to_classify(found, name, size=wish.size, outside=wish.outside, seconds=60 * wish.minutes)
    return entries


def _say_plan(found: Found, entries: list[Entry], wish: Wish, purpose: Purpose) -> None:
    folds = entries[0].recipe.split.folds
    held_out = "nothing is held out: " if found.test is None else ""
    say(f"will {purpose}, in {wish.minutes:g} minutes; {held_out}numbers come from {folds} folds or fewer")
    for entry in entries:
        about = f", about {_duration(entry.seconds)}" if entry.seconds else ""
        say(f"  {entry.name}: {entry.what}{about}")


def _classify(found: Found, wish: Wish, entries: list[Entry], *, folder: Path, budget: Budget) -> Path:
    first = entries[0]
    if first.seconds > _ENOUGH * budget.seconds:
        raise TrainingError(
            f"--minutes {wish.minutes:g}: {first.name} alone takes about {_duration(first.seconds)} here: give more "
            "minutes, or fewer images"
        )
    materials: dict[str, Material] = {}
    budget.kept = min(0.5 * budget.seconds, _TO_PUBLISH + first.once + first.each)
    finished = race([_contender(entry, folder, materials) for entry in entries], folder, budget)
    while finished:
        chosen = best(finished)
        try:
            return _publish(found, chosen, finished, wish=wish, budget=budget)
        except KeyboardInterrupt:
            finished = [each for each in finished[: finished.index(chosen)] if each.crossing.encodes_once]
            if not finished:
                raise
            say(f"stopped at {chosen.contender.name}: publishing what ended before; Ctrl-C again to leave without")
    raise AssertionError("the first contender always finishes")


def _contender(entry: Entry, folder: Path, materials: dict[str, Material]) -> Contender:
    own = folder / entry.name.replace(" ", "-").replace(",", "")

    def opened() -> Crossing:
        say(f"{entry.name}: {entry.what}")
        recipe, material = _opened(entry.recipe, own, materials)
        return Crossing(recipe, material, own)

    return Contender(entry.name, entry.what, opened, entry.once / entry.folds + entry.each)


def _opened(recipe: Recipe, folder: Path, materials: dict[str, Material]) -> tuple[Recipe, Material]:
    """The recipe with what the images decide, and the images: those of one input are decoded once."""
    resume = (folder / recipes.RECIPE_FILE).is_file()
    recipe = runs.open_folder(folder, recipe, resume)
    key = f"{recipe.input.model_dump_json()} {recipe.split.model_dump_json()}"
    if key not in materials:
        before = materials.copy()
        materials[key] = gather(recipe) if not before else gather(recipe, report=lambda _: None)
    runs.require_unchanged(materials[key], folder)
    return recipe, materials[key]


def _publish(found: Found, chosen: Finished, finished: list[Finished], *, wish: Wish, budget: Budget) -> Path:
    crossing = chosen.crossing
    crossed = crossing.everything()
    given = next((each.crossing for each in finished if each.crossing.encodes_once), crossing)
    curve = pixels = None
    try:
        with until(budget.end):  # what is only said, and not published, is left out where time is short
            pixels = _f1_by_pixels(crossing)
            curve = learning_curve(given)
    except OutOfTime:
        say("note: the learning curve is left out, or what pixels alone reach: the time is over")
    others = [
        f"{each.contender.name} {each.crossing.everything().micro_f1:.1%}" for each in finished if each is not chosen
    ]

    def words(measured: Measured) -> Verdict:
        said = verdict.of_labels if crossed.several else verdict.of_classes
        sentences = said(
            found,
            crossed,
            tested=_tested(measured, crossing.material),
            pixels=pixels,
            chosen=f"{chosen.contender.what}, {crossed.micro_f1:.1%}",
            others=others,
            curve=curve,
        )
        return Verdict(sentences, curve.series() if curve is not None else ())

    return _published(crossing.recipe, crossing.material, crossing.run, models=wish.models, words=words)


def _published(
    recipe: Recipe, material: Material, folder: Path, models: Path, words: Callable[[Measured], Verdict]
) -> Path:
    said: list[str] = []

    def kept(measured: Measured) -> Verdict:
        made = words(measured)
        said[:] = made.sentences
        return made

    (folder / PLAN_FILE).write_text(recipes.to_toml(recipe))
    recipes.write(recipe, folder.parent)  # the index of runs lists what was chosen
    bundle = runs.publish(recipe, material, folder, models, verdict=kept, listed=folder.parent)
    (folder / VERDICT_FILE).write_text("\n".join(said) + "\n")
    say(f"the recipe is {folder / PLAN_FILE}: graft-train run makes the same of it, or what you change in it")
    for sentence in said:
        print(sentence)
    return bundle


def _tested(measured: Measured, material: Material) -> tuple[int, int] | None:
    """(images of the test part that are given exactly their labels, all of them)."""
    logits, classifier, test = measured.outputs.logits, measured.draft.bundle.manifest.classifier, material.test
    if not material.tested or logits is None or classifier is None or not test.labelled:
        return None
    if classifier.thresholds is None:
        return int((logits.argmax(axis=1) == test.labels).sum()), len(test)
    given = are_present(label_probabilities(logits, classifier), classifier.thresholds)
    return int((given == test.truth).all(axis=1).sum()), len(test)


def _f1_by_pixels(crossing: Crossing) -> float | None:
    """Micro F1 of a linear head that reads a few pixels; of one label each, its accuracy."""
    target = crossing.material.target
    rows = np.sort(np.random.default_rng(0).permutation(len(target))[:_MOST_BY_PIXELS])
    pixels = np.stack([_small(target.images[int(row)]) for row in rows])
    truth, members, numbers = target.truth[rows], target.members[rows], crossing.folds.numbers[0][rows]
    logits = np.empty(members.shape, np.float32)
    for number in track(range(crossing.folds.count), "pixels alone", crossing.folds.count):
        held = numbers == number
        if not held.any() or not members[~held].any(axis=0).all():
            return None
        with quiet():
            head = head_on(pixels[~held], truth[~held], classes=len(target.classes))
        logits[held] = in_batches(head, pixels[held])
    return micro_f1(given_across(logits, truth, numbers), members)


def _small(image: np.ndarray) -> np.ndarray:
    """(H, W, C) → means of some 16 × 16 cells, in 0…1."""
    height, width = (min(_SIDE, side) for side in image.shape[:2])
    rows, columns = (
        np.linspace(0, side, cells + 1).astype(int)[:-1]
        for side, cells in zip(image.shape, (height, width), strict=False)
    )
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.float32), rows, axis=0), columns, axis=1)
    ones = np.add.reduceat(np.add.reduceat(np.ones(image.shape[:2], np.float32), rows, axis=0), columns, axis=1)
    return np.asarray((sums / ones[..., None] / 255).ravel())


def _inspect(found: Found, wish: Wish, entries: list[Entry], *, folder: Path) -> Path:
    recipe, material = _opened(entries[0].recipe, folder / "inspect", {})

    def words(measured: Measured) -> Verdict:
        return Verdict(verdict.of_inspection(found, measured.draft.bundle, measured.defects))

    return _published(recipe, material, folder / "inspect", models=wish.models, words=words)


def _duration(seconds: float) -> str:
    return f"{max(1, seconds):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
