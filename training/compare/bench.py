"""A comparison: every arm at every label budget, over several seeds. An interrupted comparison resumes."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from training import jsonl
from training import recipe as recipes
from training.compare import results
from training.compare.arms import ARMS
from training.compare.methods import METHODS, Bench, Features, missing
from training.compare.results import Comparison, Result
from training.data.material import Material, gather
from training.data.resolution import settled
from training.data.splits import some_of_each
from training.errors import TrainingError
from training.progress import say
from training.recipe import RECIPE_FILE, Recipe

BUDGETS: tuple[int | None, ...] = (1, 10, 100, 1000, None)  # labels per class; None is all there are
_RESULTS = "results.jsonl"


def compare(
    recipe: Recipe,
    folder: Path,
    arms: Sequence[str] | None = None,
    budgets: Sequence[int | None] | None = None,
    seeds: int = 3,
) -> Comparison:
    """The accuracy of every arm, written to `folder` as JSON too.

    No arm sees a label beyond its budget, and none chooses anything by the test images.
    """
    if recipe.transfer.adapts:
        raise TrainingError(f"transfer.mode={recipe.transfer.mode}: a comparison needs labels of the target")
    if recipe.network.name == "unet":
        raise TrainingError("network.kind=unet finds defects: a comparison is of networks that labels are learnt with")
    recipe, done = _open(folder, recipe)
    material = gather(recipe)
    if material.target.several is not None:
        raise TrainingError(
            f"{recipe.target}: its images may have several labels: a comparison is by accuracy, of one label each; "
            "measure runs of two recipes with graft-train evaluate in its place"
        )
    chosen = _budgets(budgets or BUDGETS, recipe, material)
    arms = _able(arm for arm in arms or ARMS if not (material.one_domain and arm == "target"))  # the same as `source`
    shared: dict[str, Features] = {}
    for seed in range(seeds):
        left = [(arm, budget) for arm in arms for budget in chosen if not any(r.is_of(arm, budget, seed) for r in done)]
        bench = Bench(recipe, material, seed=seed, folder=folder, shared=shared)
        for number, (arm, budget) in enumerate(left, 1):
            rows = np.arange(len(material.train)) if budget is None else some_of_each(material.train, budget, seed)
            result = Result(arm=arm, budget=budget, labels=len(rows), seed=seed, accuracy=METHODS[arm](bench, rows))
            with (folder / _RESULTS).open("a") as file:
                file.write(json.dumps(result.__dict__) + "\n")
            done.append(result)
            accuracy = f"{arm} with {result.labels:,} labels: {result.accuracy:.4f}"
            say(f"seed {seed + 1} of {seeds}, {number} of {len(left)}: {accuracy}")
    comparison = Comparison(recipe, len(material.test), done)
    results.write(folder, comparison)
    return comparison


def _able(arms: Iterable[str]) -> list[str]:
    """The arms that can be run here; of the others it is said why not."""
    able, reason = [], None
    for arm in arms:
        if (reason := missing(arm)) is None:
            able.append(arm)
        else:
            say(f"note: arm {arm} is left out: {reason}")
    if not able:
        raise TrainingError(f"no arm can be run here: {reason}")
    return able


def _budgets(wanted: Sequence[int | None], recipe: Recipe, material: Material) -> list[int | None]:
    """The budgets for which every class has enough images."""
    train, classes = material.train, len(material.target.classes)
    if classes < 2:
        raise TrainingError(f"{recipe.target}: {classes} classes; a comparison needs at least two")
    fewest = int(np.bincount(train.labels, minlength=len(train.classes)).min())
    possible = [budget for budget in wanted if budget is None or budget < fewest]
    if not possible:
        raise TrainingError(f"the smallest class has {fewest} images to train on: choose smaller budgets, or all")
    for budget in set(wanted) - set(possible):
        say(f"note: no {budget} labels per class: the smallest class has {fewest} images to train on")
    return possible


def _open(folder: Path, recipe: Recipe) -> tuple[Recipe, list[Result]]:
    """The recipe, with values where it leaves the input to the images, and the results of an interrupted comparison."""
    if not (folder / RECIPE_FILE).is_file():
        recipe = settled(recipe)
    elif recipes.read(folder) == recipe.settled_as(recipes.read(folder)):
        recipe = recipes.read(folder)
    else:
        raise TrainingError(
            f"{folder}: holds a comparison of another recipe, or of other --set values: choose another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recipes.write(recipe, folder)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}; choose another with --out") from None
    return recipe, [Result(**line) for line in jsonl.read(folder / _RESULTS)]
