"""The commands of graft-train, a function each; their parameters are the arguments that `__main__` parses.

Some installations have no torch or onnx, and both take seconds to import: each command imports what it needs.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np

from app.bundle import Bundle, InputSpec, load, prefer_gpu
from app.bundle.manifest import Classifier, Metric
from training import ranks
from training import recipe as recipes
from training.data import checks, inspection, named, resolution
from training.data.imageset import ImageSet
from training.data.inspection import marked, usual_sound
from training.data.read import has_parts, lists_files, read_part
from training.data.splits import part_to_measure, train_and_test
from training.errors import TrainingError, listed, printable
from training.progress import say
from training.recipe import Recipe

if TYPE_CHECKING:
    from training.auto.contenders import Size
    from training.auto.look import Purpose
    from training.data.download import Source
    from training.score.prototypes import Distance
    from training.shots.graft import Reads


def run(recipe: str, changes: list[str], folder: Path | None, resume: bool, models: Path) -> None:
    _train(
        recipe,
        changes,
        folder,
        resume,
        work=lambda runs, chosen, own, again: runs.run(
            chosen, models, own, resume, command=again("run", models=models)
        ),
        stopped="nothing was published",
    )


def pretrain(recipe: str, changes: list[str], folder: Path | None, resume: bool) -> None:
    _train(
        recipe,
        changes,
        folder,
        resume,
        work=lambda runs, chosen, own, again: runs.pretrain(chosen, own, resume, command=again("pretrain")),
    )


def transfer(recipe: str, changes: list[str], folder: Path | None, resume: bool, pretrained: Path | None) -> None:
    _train(
        recipe,
        changes,
        folder,
        resume,
        work=lambda runs, chosen, own, again: runs.transfer(
            chosen, own, resume, pretrained, command=again("transfer", **{"from": pretrained})
        ),
    )


def _train(
    recipe: str,
    changes: list[str],
    folder: Path | None,
    resume: bool,
    work: Callable[[ModuleType, Recipe, Path, Callable[..., str]], Path],
    stopped: str = "nothing is lost",
) -> None:
    """`work` gets training.run, the recipe, the run's folder, and what makes the command that resumes it."""
    chosen = recipes.load(recipe, changes)
    own = folder or Path("runs") / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if resume and folder is None:
        raise TrainingError("--resume needs --run FOLDER: the run to resume")

    def say_stopped() -> None:
        say(f"stopped: {stopped}; resume with the same command and --run {own} --resume")

    try:
        with ranks.together(say_stopped):
            own = ranks.from_first(lambda: own)  # the clock of rank 0 names it
            ranks.from_first(lambda: _fetch_missing(chosen))
            from training import run as runs

            result = work(runs, chosen, own, partial(_resuming, recipe, changes, own))
            if ranks.first():
                print(result)
    except KeyboardInterrupt:
        say_stopped()
        raise


def _resuming(recipe: str, changes: list[str], folder: Path, command: str, **options: Path | None) -> str:
    words = ["graft-train", command, recipe, *(word for change in changes for word in ("--set", change))]
    words += [word for name, path in options.items() if path is not None for word in (f"--{name}", str(path))]
    return shlex.join([*words, "--run", str(folder), "--resume"])


def auto(
    data: str,
    minutes: float,
    purpose: 'Purpose | Literal["both"] | None',
    size: "Size",
    outside: bool,
    name: str | None,
    folder: Path | None,
    resume: bool,
    plan: bool,
    models: Path,
) -> None:
    began = time.monotonic()
    from training.auto import build  # takes seconds, which count
    from training.auto.look import model_name

    if resume and folder is None:
        raise TrainingError("--resume needs --run FOLDER: what to resume")
    wish = build.Wish(
        data, minutes=minutes, purpose=purpose, size=size, outside=outside, name=name, models=models, began=began
    )
    if plan:
        print(build.plan(wish), end="")
        return
    own = folder or Path("runs") / f"auto-{name or model_name(data)}-{datetime.now():%Y%m%d-%H%M%S}"
    if own.exists() and not resume:
        raise TrainingError(f"{own} already exists: resume it with --resume, or choose another with --run")
    if outside:
        _fetch_weights(recipes.Network(backbone="efficientnet-lite0", weights=recipes.IMAGENET))
    words = ["graft-train", "auto", data, "--minutes", f"{minutes:g}", "--size", size, "--models", str(models)]
    words += [*(["--for", purpose] if purpose else []), *(["--name", name] if name else [])]
    words += [] if outside else ["--no-outside-weights"]
    try:
        for bundle in build.auto(wish, own, shlex.join(words)):
            print(bundle)
    except KeyboardInterrupt:
        say(f"stopped: nothing was published; resume with the same command and --run {own} --resume")
        raise


def tune(recipe: str, changes: list[str], space: Path, minutes: float, trials: int, folder: Path | None) -> None:
    chosen = recipes.load(recipe, changes)
    _fetch_missing(chosen)
    from training.search.tune import tune as tuned

    own = folder or Path("runs") / f"tune-{chosen.name}"
    print(tuned(recipe, changes, space, own, minutes=minutes, trials=trials))


def export(folder: Path, models: Path) -> None:
    from training import run as runs

    print(runs.export(folder, models))


def report(folder: Path) -> None:
    from training import run as runs

    print(runs.report(folder))


def runs(names: list[str], folder: Path, compare: list[str] | None, sort: str | None, as_json: bool) -> None:
    from training.tracking import listing

    if compare is not None:
        if names or sort or len(compare) < 2:
            raise TrainingError("--compare RUN RUN takes two runs or more, and neither NAME nor --sort")
        chosen = [listing.run_called(name, folder) for name in compare]
        print(listing.comparison_as_json(chosen) if as_json else "\n".join(listing.comparison(chosen)))
        return
    chosen = listing.runs_in(folder, names)
    if sort is not None:
        chosen = listing.by_metric(chosen, sort)
    print(listing.as_json(chosen) if as_json else "\n".join(listing.table(chosen, listing.runs_in(folder), sort)))


def compare(
    recipe: str,
    changes: list[str],
    out: Path | None,
    arms: Sequence[str] | None,
    budgets: Sequence[int | None] | None,
    seeds: int,
) -> None:
    chosen = recipes.load(recipe, changes)
    _fetch_missing(chosen)
    from training import run as runs

    folder = out or Path("runs") / f"compare-{chosen.name}"
    try:
        print(runs.compare(chosen, folder, arms=arms, budgets=budgets, seeds=seeds))
    except KeyboardInterrupt:
        say(f"stopped: results so far are in {folder}; the same command resumes from there")
        raise


def evaluate(bundle: Path, data: str | None, part: Literal["train", "test"], sound: str | None) -> None:
    from training.measure import defects
    from training.measure.metrics import bundle_metrics, class_table, confusion, confusion_table, measured_labels
    from training.measure.outputs import outputs_of
    from training.measure.several import text_table

    loaded = load(bundle.resolve(), providers=prefer_gpu())
    images, train = part_to_measure(data, part, loaded.manifest, sound)
    classifier = loaded.manifest.classifier
    labelled = images.labelled and images.sound is None
    if classifier and labelled:
        images = _with_labels_of(images, classifier)
    if classifier and labelled and images.classes != classifier.labels:
        raise TrainingError(f"the classes of the images ({', '.join(images.classes)}) are not the bundle's labels")
    outputs = outputs_of(loaded, images, "evaluate")
    found = defects.measure(loaded, images, outputs.scores)
    metrics = bundle_metrics(loaded, images, part, outputs=outputs, train=train, found=found)
    if not metrics:
        say(f"nothing to measure: the bundle can {', '.join(loaded.operations)}, and the images have no classes")
    for metric in metrics:
        if found is not None and metric.name in defects.TITLES:
            continue  # in the table below
        print(f"{metric.name} {metric.value:.4f} over {metric.images:,} images{_expected(loaded, metric)}")
    if found is not None and loaded.manifest.anomaly is not None:
        for line in defects.table(found, loaded.manifest.anomaly.false_alarm_rate):
            print(line)
    of_labels = measured_labels(loaded, images, outputs)
    if of_labels is not None:
        for line in text_table(of_labels):
            print(line)
    elif classifier and outputs.logits is not None and labelled:
        counts = confusion(images.labels, outputs.logits.argmax(axis=1), len(classifier.labels))
        for line in (*class_table(counts, classifier.labels), "", *confusion_table(counts, classifier.labels)):
            print(line)


def _with_labels_of(images: ImageSet, classifier: Classifier) -> ImageSet:
    """A list of several labels need not name all that the bundle knows."""
    if (images.several is None) != (classifier.thresholds is None):
        raise TrainingError(
            "the images have one label each, and the bundle's labels are independent: give a list that says of each "
            "image all that it has"
            if images.several is None
            else "the images may have several labels, and the bundle gives each one: give images of one label each"
        )
    if images.several is None or not set(images.classes) <= set(classifier.labels):
        return images
    several = np.zeros((len(images), len(classifier.labels)), bool)
    several[:, [classifier.labels.index(name) for name in images.classes]] = images.several
    return replace(images, classes=classifier.labels, several=several)


def _expected(bundle: Bundle, metric: Metric) -> str:
    from training.measure.intervals import false_alarms

    a = bundle.manifest.anomaly
    if metric.name != "false_alarm_rate" or a is None:
        return ""
    low, high = false_alarms(a.false_alarm_rate, a.calibrated_on, metric.images)
    return f" (stated {a.false_alarm_rate:g}; 95 % by chance in both samples: {low:.4f} to {high:.4f})"


def calibrate(
    bundle: Path,
    normals: str,
    false_alarm_rate: float | None,
    threshold: Literal["rate", "f1"],
    anomalies: str | None,
    seed: int,
) -> None:
    from training.publish.recalibrate import recalibrate

    folder = bundle.resolve()
    loaded = load(folder, providers=prefer_gpu())
    spec, stated = loaded.manifest.input, loaded.manifest.anomaly
    normal = _sound_alone(read_part(normals, "train", spec), normals)
    if threshold == "f1" and anomalies is None:
        raise TrainingError("--threshold f1 needs --anomalies FOLDER: F1 counts anomalies too")
    anomalous = None if anomalies is None else _defects_alone(anomalies, spec)
    rate = false_alarm_rate or (stated.false_alarm_rate if stated else 0.01)
    setting = anomalous if threshold == "f1" else None
    made = recalibrate(folder, loaded, normal, false_alarm_rate=rate, seed=seed, anomalies=setting)
    if anomalous is not None:
        _say_measures(load(made, providers=prefer_gpu()), anomalous, chosen_by=threshold)
    print(made)


def renew(bundle: Path, data: str | None, models: Path | None) -> None:
    from training.publish.renew import renew as renewed

    folder = bundle.resolve()
    print(renewed(folder, load(folder, providers=prefer_gpu()), models or folder.parent.parent, data))


def index(bundle: Path, images: str, thumbnails: bool, most: int | None) -> None:
    from training.publish.reindex import reindex

    folder = bundle.resolve()
    loaded = load(folder, providers=prefer_gpu())
    found = read_part(images, "train", loaded.manifest.input)
    print(reindex(folder, loaded, found, name=printable(Path(images).name), thumbnails=thumbnails, most=most))


def learn(bundle: Path, spool: Path, seed: int) -> None:
    from training.feedback.learn import learn as learnt

    folder = bundle.resolve()
    print(learnt(folder, load(folder, providers=prefer_gpu()), spool, seed))


def _sound_alone(normals: ImageSet, where: str) -> ImageSet:
    """Without the images of defects, where the folder has a class that is named as sound ones are."""
    sound = usual_sound(normals.classes)
    if sound is None or normals.classes == (sound,) or normals.several is not None:
        return normals
    others = [name for name in normals.classes if name != sound]
    say(f"note: {printable(where)}: {sound} are the normal images; left out: {listed(others)}")
    return marked(normals, sound, where).without_defects()


def _defects_alone(where: str, spec: InputSpec) -> ImageSet:
    """The images of a folder, of its test part where it has parts, without those of a class that is named sound."""
    anomalies = read_part(where, "test" if lists_files(where) else "train", spec)
    sound = usual_sound(anomalies.classes)
    if sound is None or anomalies.several is not None:
        return anomalies
    found = marked(anomalies, sound, where)
    if not found.defective.any():
        raise TrainingError(f"--anomalies {printable(where)}: it has {sound} alone: name a folder of anomalous images")
    say(f"note: {printable(where)}: {sound} are not anomalous, and left out")
    return found.take(np.flatnonzero(found.defective))


def _say_measures(bundle: Bundle, anomalies: ImageSet, chosen_by: Literal["rate", "f1"]) -> None:
    """How well the new score separates anomalies from the normals that calibrated it, on which it was not fitted."""
    from training.measure import defects
    from training.measure.outputs import outputs_of

    a, scorer = bundle.manifest.anomaly, bundle.scorer
    scores = outputs_of(bundle, anomalies, "anomalies", ("scores",)).scores
    assert a is not None  # it was calibrated
    assert scorer is not None
    assert scores is not None
    found = defects.of_sets(scorer.calibration, anomalies, scores, a.threshold)
    for line in defects.table(found, a.false_alarm_rate):
        say(line)
    if chosen_by == "f1":
        say("note: the threshold was chosen on these images: best F1 and recall will be lower on others")


def graft(
    shots: Path, base: Path | None, name: str | None, reads: "Reads | None", distance: "Distance", models: Path
) -> None:
    from training.shots.graft import graft as grafted

    print(grafted(shots, base=base or models, models=models, name=name, reads=reads, distance=distance))


def base(
    backbone: recipes.Backbone, weights: str, side: int, resize: recipes.Resize, name: str | None, models: Path
) -> None:
    network = recipes.Network(backbone=backbone, weights=weights)
    _fetch_weights(network)
    from training.publish import base as bases

    taken = recipes.Input(height=side, width=side, channels=3, resize=resize)
    path = bases.publish(network, taken, models, name or backbone)
    say(f"put classes of your own on it: graft-train graft SHOTS --base {path}")
    print(path)


def label(data: str, count: int, out: Path | None, base: Path | None, outside: bool, check: bool) -> None:
    from training.label.label import label as labelled

    own = out or Path("runs") / f"label-{Path(data).resolve().name.removesuffix('.csv')}"
    print(labelled(data, count=count, out=own, base=base, outside=outside, check=check))


def data(data: str, download: bool, side: int, groups: str | None, sound: str | None) -> None:
    if download:
        plain = named.TEXTURED.get(data, data)
        if plain not in named.CLASSES:
            raise TrainingError(f"{data} cannot be downloaded, only {', '.join(named.CLASSES)}")
        _download(plain)
    spec = recipes.Input(height=side, width=side).spec()
    rules = recipes.Split(groups=groups, sound=sound)
    train, test = train_and_test(data, spec, rules, seed=0)
    print(inspection.in_words(train, test, parted=has_parts(data)))
    for line in checks.table(train, test):
        print(line)
    print(resolution.in_words(data, rules))
    for warning in checks.warnings(train, test):
        print(f"note: {warning}")


def _fetch_missing(chosen: Recipe) -> None:
    for name in {named.TEXTURED.get(name, name) for name in (chosen.source, chosen.target)} & set(named.CLASSES):
        if named.is_missing(name):
            _download(name)
    for network in chosen.published_networks:
        _fetch_weights(network)


def _fetch_weights(network: recipes.Network) -> None:
    from training.networks import weights

    if (wanted := weights.to_download(network)) is not None:
        _fetch(f"the weights of {network.backbone}", *wanted)


def _download(name: str) -> None:
    from training.data.download import SOURCES

    _fetch(name, SOURCES[name], named.root() / name)


def _fetch(what: str, source: "Source", folder: Path) -> None:
    import httpx

    from training.data.download import TIMEOUT, download

    say(f"downloading {what} into {folder} (set GRAFT_DATA to choose another folder)")
    with httpx.Client(timeout=TIMEOUT) as client:
        download(source, folder, client)
