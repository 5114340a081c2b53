"""A run and its folder: recipe, checkpoints, weights, journal and report; resume; the order of the stages."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.bundle import Manifest, load, prefer_gpu
from app.bundle.bundle import REPORT_FILE
from app.bundle.manifest import MANIFEST_FILE
from training import jsonl, ranks
from training import recipe as recipes
from training.compare import bench, results
from training.data import inspection
from training.data.material import Material, count_seen_in_pretraining, gather
from training.data.resolution import settled
from training.errors import TrainingError
from training.learning.journal import JOURNAL_FILE, Journal
from training.learning.stages import BEGUN_FILE, Learnt, learn, load_learnt
from training.learning.workshop import CHECKPOINTS
from training.measure import defects
from training.measure.outputs import outputs_of
from training.progress import say
from training.publish.crossed import Crossed
from training.publish.deliver import deliver
from training.publish.draft import Measured, fit_score, in_integers, measure, unseen, with_images
from training.publish.draft import export as export_draft
from training.recipe import Recipe
from training.report import comparison
from training.report.gather import Verdict
from training.report.gather import gather as gather_report
from training.report.sections import page
from training.search.crossing import Crossing
from training.tracking import index
from training.tracking.index import DATA_FILE, DONE_FILE, published, tracked

_PRETRAINED = "pretrain.pt"
_OF_PRETRAINING = ("source", "network", "objective", "pretrain", "input", "seed")


def open_folder(folder: Path, recipe: Recipe, resume: bool) -> Recipe:
    """Make the folder of a new run; or check that the run to resume has the same recipe and is not finished.

    Returns the recipe that the folder has: with values where `recipe` leaves the input to the images.
    """
    if not resume:
        if folder.exists():
            raise TrainingError(f"{folder} already exists: resume it with --resume, or choose another with --run")
        recipe = settled(inspection.settled(recipe))
        try:
            folder.mkdir(parents=True)
            recipes.write(recipe, folder)
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written: {error.strerror}; choose another with --run") from None
        return recipe
    before = recipes.read(folder)
    if before not in (recipe.settled_as(before), inspection.settled(recipe).settled_as(before)):
        raise TrainingError(f"{folder}: the run has another recipe, or other --set values: resume it with those")
    done = published(folder)
    if done is not None:
        raise TrainingError(f"{folder}: the run is finished: it published {done}")
    return before


def _opened(folder: Path, recipe: Recipe, resume: bool) -> Recipe:
    return ranks.from_first(lambda: open_folder(folder, recipe, resume))


def run(recipe: Recipe, models: Path, folder: Path, resume: bool = False, command: str | None = None) -> Path:
    """Train and publish; returns the bundle's folder. `command` is what resumes the run, for the index of runs."""
    recipe = _opened(folder, recipe, resume)
    with tracked(folder, recipe, "run", command):
        return publish(recipe, _gather(recipe, folder), folder, models)


def publish(
    recipe: Recipe,
    material: Material,
    folder: Path,
    models: Path,
    verdict: Callable[[Measured], Verdict] = lambda _: Verdict(),
    listed: Path | None = None,
) -> Path:
    """Train what is not trained yet in the run's folder, and publish; `verdict` stands on top of the report.

    `listed` is the folder by which the index of runs names it, if it is another.
    """
    crossed = _crossed(recipe, material, folder)
    learnt = learn(recipe, material, folder)
    ranks.part()
    if not ranks.first():
        return folder
    path, minutes = _publish(recipe, material, learnt, crossed=crossed, models=models, folder=folder, verdict=verdict)
    index.reach(listed or folder, recipe, "published", minutes=minutes, **_facts(path, material))
    return path


def _facts(published: Path, material: Material) -> dict[str, Any]:
    """What the index of runs tells of a bundle."""
    metrics = Manifest.parse((published / MANIFEST_FILE).read_bytes(), str(published)).metrics
    return {
        "bundle": str(published.resolve()),
        "metrics": {each.name: each.model_dump(include={"value", "images", "how"}) for each in metrics},
        "data": material.fingerprints(),
    }


def _crossed(recipe: Recipe, material: Material, folder: Path) -> Crossed | None:
    return None if material.folds is None else Crossing(recipe, material, folder).everything()


def pretrain(recipe: Recipe, folder: Path, resume: bool = False, command: str | None = None) -> Path:
    """Train encoder and decoder on the source; returns the run's folder."""
    if not recipe.transfer.pretrains:
        raise TrainingError(
            f"transfer.mode={recipe.transfer.mode} has no pretraining: choose another mode, or use graft-train run"
        )
    recipe = _opened(folder, recipe, resume)
    with tracked(folder, recipe, "pretrain", command, ends="pretrained"):
        learn(recipe, _gather(recipe, folder), folder, only_pretrain=True)
    return folder


def transfer(
    recipe: Recipe, folder: Path, resume: bool = False, pretrained: Path | None = None, command: str | None = None
) -> Path:
    """Train without publishing, from the weights that the run `pretrained` has, if given; returns the run's folder."""
    if pretrained is None:
        recipe = _opened(folder, recipe, resume)
        with tracked(folder, recipe, "transfer", command, ends="trained"):
            learn(recipe, _gather(recipe, folder), folder)
        return folder
    if recipe.transfer.adapts:
        raise TrainingError(f"transfer.mode={recipe.transfer.mode} has no pretraining: leave out --from")
    before, weights = recipes.read(pretrained), pretrained / CHECKPOINTS / _PRETRAINED
    if not weights.is_file():
        raise TrainingError(
            f"{pretrained}: its pretraining is not finished: resume it with graft-train pretrain RECIPE --resume "
            f"--run {pretrained}"
        )
    recipe = recipe.with_parts(**{field: getattr(before, field) for field in _OF_PRETRAINING})
    recipe = _opened(folder, recipe, resume)
    with tracked(folder, recipe, "transfer", command, ends="trained"):
        material = _gather(recipe, folder)
        if seen := count_seen_in_pretraining(before, material):
            raise TrainingError(
                f"{pretrained}: its pretraining has seen {seen:,} of the images that are held out here, so no number "
                "on them could be trusted: pretrain with the target's own split, or on other images"
            )
        ranks.from_first(lambda: _copy(weights, folder / CHECKPOINTS))
        if (pretrained / BEGUN_FILE).is_file():
            ranks.from_first(lambda: _copy(pretrained / BEGUN_FILE, folder))
        learn(recipe, material, folder)
    return folder


def _copy(file: Path, folder: Path) -> None:
    if not (folder / file.name).exists():
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder / f".{file.name}")
        (folder / f".{file.name}").rename(folder / file.name)


def export(folder: Path, models: Path) -> Path:
    """Publish a trained run as the next version; returns the bundle's folder."""
    recipe = recipes.read(folder)
    learnt = load_learnt(recipe, recipe.input.spec().shape, folder)
    material = _gather(recipe, folder)
    crossed = _crossed(recipe, material, folder)
    path, minutes = _publish(recipe, material, learnt, crossed=crossed, models=models, folder=folder)
    index.reach(folder, recipe, "published", minutes=minutes, **_facts(path, material))
    return path


def report(folder: Path) -> Path:
    """Write the page with images again, for the bundle that the run published last."""
    recipe = recipes.read(folder)
    bundle_folder = published(folder)
    if bundle_folder is None:
        raise TrainingError(f"{folder}: the run has published nothing yet: publish it with graft-train export {folder}")
    bundle = load(bundle_folder, providers=prefer_gpu())
    material = _gather(recipe, folder)
    outputs = outputs_of(bundle, material.test, f"evaluate {bundle.name}")
    if not material.tested:
        outputs = unseen(outputs, _crossed(recipe, material, folder))
    study = gather_report(
        bundle,
        recipe,
        material,
        outputs,
        found=defects.measure(bundle, material.test, outputs.scores),
        journal=_epochs(folder),
        compared=results.read(folder),
    )
    return _write(folder / REPORT_FILE, page(study, pictures=True))


def compare(
    recipe: Recipe,
    folder: Path,
    arms: Sequence[str] | None = None,
    budgets: Sequence[int | None] | None = None,
    seeds: int = 3,
) -> Path:
    """The page of the comparison; its numbers lie beside it as JSON and Markdown."""
    return comparison.write(folder, bench.compare(recipe, folder, arms=arms, budgets=budgets, seeds=seeds))


def _gather(recipe: Recipe, folder: Path) -> Material:
    """Read the images. They must be those with which the run began, or other ones would be held out."""
    material = gather(recipe)
    ranks.from_first(lambda: require_unchanged(material, folder))
    return material


def require_unchanged(material: Material, folder: Path) -> None:
    path, fingerprints = folder / DATA_FILE, material.fingerprints()
    if not path.is_file():
        path.write_text(json.dumps(fingerprints, indent=2) + "\n")
        return
    try:
        before = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise TrainingError(f"{path}: damaged, so changed data would go unnoticed: start a new run") from None
    changed = [name for name, digest in before.items() if fingerprints.get(name) != digest]
    if changed:
        raise TrainingError(
            f"{folder}: the data have changed since the run began ({', '.join(changed)}), so other images would be "
            "held out than before: restore them, or start a new run"
        )


def _publish(
    recipe: Recipe,
    material: Material,
    learnt: Learnt,
    *,
    crossed: Crossed | None,
    models: Path,
    folder: Path,
    verdict: Callable[[Measured], Verdict] = lambda _: Verdict(),
) -> tuple[Path, float]:
    """Export → fit the score → measure → report → publish. The report with images stays in the run's folder.

    Returns the bundle's folder, and the minutes that the run took.
    """
    start, epochs = time.monotonic(), _epochs(folder)
    exported = export_draft(recipe, material, learnt)
    scored = fit_score(recipe, material, exported, crossed)
    measured = measure(material, in_integers(recipe, material, exported, scored, crossed=crossed), crossed)
    bundle = measured.draft.bundle
    study = gather_report(
        bundle,
        recipe,
        material,
        measured.outputs,
        found=measured.defects,
        journal=epochs,
        compared=results.read(folder),
    )
    first = verdict(measured)
    study = replace(study, words=[*first.sentences, *study.words], by_labels=first.by_labels)
    minutes = (sum(epoch["seconds"] for epoch in epochs) + time.monotonic() - start) / 60
    _write(folder / REPORT_FILE, page(study, pictures=True))
    without_pictures, draft = page(study, pictures=False), with_images(recipe, material, measured.draft)
    path = deliver(models, material, draft, report=without_pictures, minutes=minutes, sets=study.sets)
    metrics = bundle.manifest.metrics
    Journal(folder / JOURNAL_FILE).write(stage="test", **{metric.name: metric.value for metric in metrics})
    for metric in metrics:
        say(f"{metric.name} {metric.value:.4f} ({metric.how})")
    say(f"{path} is ready after {minutes:.1f} minutes; the run, and its report with pictures, are in {folder}")
    with (folder / DONE_FILE).open("ab") as done:
        done.write(os.fsencode(path.resolve()) + b"\n")
    return path, minutes


def _epochs(folder: Path) -> list[dict[str, Any]]:
    """The epochs in the journal."""
    return [line for line in jsonl.read(folder / JOURNAL_FILE) if "epoch" in line]


def _write(path: Path, text: str) -> Path:
    try:
        path.write_text(text)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from None
    return path
