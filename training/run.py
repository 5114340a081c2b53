"""Runs: a folder each, with the recipe, the checkpoints, the weights, the journal and the report."""

import json
import shutil
from pathlib import Path

from pydantic import ValidationError

from app.bundle import load
from training import ranks
from training.data.material import Material, gather, seen_in_pretraining
from training.errors import TrainingError
from training.learning.stages import Learnt, learn, learnt_before
from training.learning.workshop import CHECKPOINTS
from training.publish.deliver import deliver, write_report
from training.recipe import Recipe

RECIPE_FILE, DATA_FILE, DONE_FILE = "recipe.json", "data.json", "bundle.txt"
_PRETRAINED = "pretrain.pt"
_OF_PRETRAINING = ("source", "network", "objective", "pretrain", "input", "seed")


def open_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """A new run's folder; or, to resume, one that holds the same recipe unfinished."""
    if not resume:
        if folder.exists():
            raise TrainingError(f"{folder} is there already: go on with it with --resume, or name another with --run")
        try:
            folder.mkdir(parents=True)
            (folder / RECIPE_FILE).write_text(recipe.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written: {error.strerror}; name another with --run") from None
        return
    if recipe_of(folder) != recipe:
        raise TrainingError(f"{folder}: a run of another recipe, or of other --set values; resume it with its own")
    if (folder / DONE_FILE).is_file():
        done = (folder / DONE_FILE).read_text().splitlines()[-1]
        raise TrainingError(f"{folder}: finished, as {done}; nothing is left to do")


def recipe_of(folder: Path) -> Recipe:
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise TrainingError(f"{folder}: no run there: {RECIPE_FILE} is missing; begin one without --resume")
    try:
        return Recipe.stored(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise TrainingError(f"{path}: not a recipe of this Graft: {error}") from None


def run(recipe: Recipe, models: Path, folder: Path, resume: bool = False) -> Path:
    """All of it: the published bundle."""
    ranks.from_first(lambda: open_folder(folder, recipe, resume))
    material = _gather(recipe, folder)
    learnt = learn(recipe, material, folder)
    ranks.part()
    return _publish(recipe, material, learnt, models, folder) if ranks.first() else folder


def pretrain(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    """The folder, with an encoder and a decoder of the source."""
    if not recipe.transfer.pretrains:
        raise TrainingError(f"transfer.mode={recipe.transfer.mode} has no pretraining: choose another mode, or run it")
    ranks.from_first(lambda: open_folder(folder, recipe, resume))
    learn(recipe, _gather(recipe, folder), folder, only_pretrain=True)
    return folder


def transfer(recipe: Recipe, folder: Path, resume: bool = False, pretrained: Path | None = None) -> Path:
    """The folder, with all that is learnt; what another run pretrained is taken from there."""
    if pretrained is None:
        ranks.from_first(lambda: open_folder(folder, recipe, resume))
        learn(recipe, _gather(recipe, folder), folder)
        return folder
    if recipe.transfer.adapts:
        raise TrainingError(f"transfer.mode={recipe.transfer.mode} has no pretraining: leave --from away")
    before, weights = recipe_of(pretrained), pretrained / CHECKPOINTS / _PRETRAINED
    if not weights.is_file():
        raise TrainingError(
            f"{pretrained}: not pretrained to its end; go on with graft-train pretrain RECIPE --resume "
            f"--run {pretrained}"
        )
    recipe = recipe.with_parts(**{field: getattr(before, field) for field in _OF_PRETRAINING})
    ranks.from_first(lambda: open_folder(folder, recipe, resume))
    material = _gather(recipe, folder)
    if seen := seen_in_pretraining(before, material):
        raise TrainingError(
            f"{pretrained}: its pretraining had {seen:,} of the images that are held out here, so that no number about "
            "them could be trusted; pretrain with the target's own split, or on other images"
        )
    ranks.from_first(lambda: _copy(weights, folder / CHECKPOINTS))
    learn(recipe, material, folder)
    return folder


def _copy(weights: Path, checkpoints: Path) -> None:
    if not (checkpoints / _PRETRAINED).exists():
        checkpoints.mkdir(exist_ok=True)
        shutil.copy(weights, checkpoints / f".{_PRETRAINED}")
        (checkpoints / f".{_PRETRAINED}").rename(checkpoints / _PRETRAINED)


def export(folder: Path, models: Path) -> Path:
    """The bundle of a run that is trained; calibrated, measured and published as the next version."""
    recipe = recipe_of(folder)
    learnt = learnt_before(recipe, recipe.input.spec().shape, folder)
    return _publish(recipe, _gather(recipe, folder), learnt, models, folder)


def report(folder: Path) -> Path:
    """The page with pictures, written anew from the bundle that the run published last."""
    recipe = recipe_of(folder)
    if not (folder / DONE_FILE).is_file():
        raise TrainingError(f"{folder}: nothing was published from there yet; graft-train export {folder} does it")
    bundle = load(Path((folder / DONE_FILE).read_text().splitlines()[-1]))
    return write_report(bundle, recipe, _gather(recipe, folder), folder)


def _gather(recipe: Recipe, folder: Path) -> Material:
    """The material, which must be what it was when the run began: else what was held out would be other images."""
    material = gather(recipe)
    ranks.from_first(lambda: _require_unchanged(material.fingerprints(), folder))
    return material


def _require_unchanged(found: dict[str, str], folder: Path) -> None:
    path = folder / DATA_FILE
    if not path.is_file():
        path.write_text(json.dumps(found, indent=2) + "\n")
        return
    changed = [name for name, digest in json.loads(path.read_text()).items() if found.get(name) != digest]
    if changed:
        raise TrainingError(
            f"{folder}: the data have changed since the run began ({', '.join(changed)}): other images would be held "
            "out than before; put them back as they were, or begin a new run"
        )


def _publish(recipe: Recipe, material: Material, learnt: Learnt, models: Path, folder: Path) -> Path:
    path = deliver(recipe, material, learnt, models, folder)
    with (folder / DONE_FILE).open("a") as done:
        done.write(f"{path.resolve()}\n")
    return path
