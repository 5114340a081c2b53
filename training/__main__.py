"""`python -m training`, and `graft-train`: a table of contents."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType

from app.bundle import Bundle, GraftError
from app.bundle.manifest import Metric
from training import malloc, ranks, recipe
from training.compare.arms import ARMS
from training.data import checks, imageset
from training.data.splits import train_and_test
from training.errors import TrainingError
from training.progress import say

EXTRA = ("torch", "onnx", "onnxscript", "httpx", "rich")  # what the extra `train` adds


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    malloc.keep_freed()
    try:
        if ranks.started() > 1 and given.command not in (_run, _pretrain, _transfer):
            raise TrainingError("torchrun is for run, pretrain and transfer: this command is one process")
        given.command(given)
    except GraftError as error:
        who = f"graft-train, process {os.environ['RANK']}" if ranks.started() > 1 else "graft-train"
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        extra, target = ("shots", "install-shots") if given.command is _graft else ("train", "install-train")
        told = f"{error.name} is not installed: pip install 'graft[{extra}]', or make {target}"
        print(f"graft-train: {told}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"graft-train: {error.filename or 'a file'}: {error.strerror or error}; nothing is lost", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _run(given: argparse.Namespace) -> None:
    _train(given, "nothing was published", lambda run, chosen, to: run.run(chosen, given.models, to, given.resume))


def _pretrain(given: argparse.Namespace) -> None:
    _train(given, "nothing is lost", lambda run, chosen, to: run.pretrain(chosen, to, given.resume))


def _transfer(given: argparse.Namespace) -> None:
    _train(given, "nothing is lost", lambda run, chosen, to: run.transfer(chosen, to, given.resume, given.pretrained))


def _train(given: argparse.Namespace, stopped: str, work: Callable[[ModuleType, recipe.Recipe, Path], Path]) -> None:
    chosen = recipe.load(given.recipe, given.set)
    folder = given.run or Path("runs") / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if given.resume and given.run is None:
        raise TrainingError("--resume needs --run FOLDER: the run to go on with")

    def say_stopped() -> None:
        say(f"stopped: {stopped}; go on with the same command and --run {folder} --resume")

    try:
        with ranks.together(say_stopped):
            folder = ranks.from_first(lambda: folder)  # its name is of the second
            ranks.from_first(lambda: _fetch_missing(chosen))
            from training import run  # torch takes seconds to import: not before it is needed

            made = work(run, chosen, folder)
            if ranks.first():
                print(made)
    except KeyboardInterrupt:
        say_stopped()
        raise


def _fetch_missing(chosen: recipe.Recipe) -> None:
    for name in {imageset.TEXTURED.get(name, name) for name in (chosen.source, chosen.target)} & set(imageset.NAMED):
        if imageset.is_missing(name):
            _download(name)


def _export(given: argparse.Namespace) -> None:
    from training.run import export

    print(export(given.run, given.models))


def _report(given: argparse.Namespace) -> None:
    from training.run import report

    print(report(given.run))


def _compare(given: argparse.Namespace) -> None:
    chosen = recipe.load(given.recipe, given.set)
    _fetch_missing(chosen)
    from training.compare.bench import compare, folder_of

    folder = given.out or folder_of(chosen)
    try:
        print(compare(chosen, folder, given.arms, given.budgets, given.seeds))
    except KeyboardInterrupt:
        say(f"stopped: what was found is in {folder}; the same command goes on from there")
        raise


def _evaluate(given: argparse.Namespace) -> None:
    from app.bundle import load
    from training.measure.evaluate import class_table, confusion, confusion_table, metrics, run

    bundle = load(given.bundle.resolve())
    images, train = _measured(bundle, given.data, given.part)
    classifier = bundle.manifest.classifier
    if classifier and len(images.labels) and images.classes != classifier.labels:
        raise TrainingError(f"the images' classes are {', '.join(images.classes)}; the bundle's labels differ")
    outputs = run(bundle, images, "evaluate")
    for metric in metrics(bundle, images, given.part, outputs, train):
        print(f"{metric.name} {metric.value:.4f} over {metric.images:,} images{_expected(bundle, metric)}")
    if classifier and outputs.logits is not None and len(images.labels):
        found = outputs.logits.argmax(axis=1)
        counts = confusion(images.labels, found, len(classifier.labels))
        for line in (*class_table(counts, classifier.labels), "", *confusion_table(counts, classifier.labels)):
            print(line)


def _measured(bundle: Bundle, given: str | None, part: str) -> tuple[imageset.ImageSet, imageset.ImageSet | None]:
    """The images to measure, and the training images if they are at hand.

    Images that a folder does not tell apart are divided as the bundle's recipe divided them, if they are the ones that
    it was trained on: none of those is measured unknowingly.
    """
    name, spec = given or bundle.manifest.provenance.target, bundle.manifest.input
    if imageset.has_parts(name):
        train = imageset.load(name, "train", spec)
        return (train if part == "train" else imageset.load(name, "test", spec)), train
    try:
        trained = recipe.Recipe.stored(bundle.manifest.provenance.recipe)
    except ValueError:
        trained = None
    divided = None
    if trained is not None:
        with contextlib.suppress(TrainingError):  # groups that do not match: of another folder
            divided = train_and_test(name, spec, trained.split, trained.seed)
    if divided is not None:
        train, test = divided
        learnt_from = train.unlabelled(train.classes) if trained and trained.transfer.adapts else train
        if learnt_from.fingerprint() == bundle.manifest.provenance.data.get("target/train"):
            say(f"note: {name} is what the bundle was trained on; its {part} part is measured, divided as then")
            return (train if part == "train" else test), train
    say(
        f"note: {name} has no test part, and is not just what the bundle was trained on: all of it is measured; "
        "if training images are among it, the numbers flatter"
    )
    return imageset.load(name, part, spec), None


def _expected(bundle: Bundle, metric: Metric) -> str:
    from training.measure.evaluate import false_alarm_interval

    a = bundle.manifest.anomaly
    if metric.name != "false_alarm_rate" or a is None:
        return ""
    low, high = false_alarm_interval(a.false_alarm_rate, a.calibrated_on, metric.images)
    return f" (stated {a.false_alarm_rate:g}; 95 % by chance in both samples: {low:.4f} to {high:.4f})"


def _calibrate(given: argparse.Namespace) -> None:
    from app.bundle import load
    from training.score.calibrate import recalibrate

    folder = given.bundle.resolve()
    bundle = load(folder)
    normals = imageset.load(given.normals, "train", bundle.manifest.input)
    stated = bundle.manifest.anomaly.false_alarm_rate if bundle.manifest.anomaly else 0.01
    if given.anomalies is not None and given.threshold != "f1":
        raise TrainingError("--anomalies is for --threshold f1: at a false-alarm rate normals alone decide")
    if given.threshold == "f1" and given.anomalies is None:
        raise TrainingError("--threshold f1 needs --anomalies FOLDER: without anomalies there is no F1 to be best")
    anomalies = imageset.load(given.anomalies, "train", bundle.manifest.input) if given.threshold == "f1" else None
    rate = given.false_alarm_rate or stated
    print(recalibrate(folder, bundle, normals, rate, given.seed, anomalies))


def _graft(given: argparse.Namespace) -> None:
    from training.shots.graft import graft  # onnx with it, which not every installation has

    print(graft(given.shots, given.base or given.models, given.models, given.name, given.reads, given.distance))


def _data(given: argparse.Namespace) -> None:
    if given.download:
        plain = imageset.TEXTURED.get(given.data, given.data)
        if plain not in imageset.NAMED:
            raise TrainingError(f"{given.data} cannot be downloaded: {', '.join(imageset.NAMED)} can")
        _download(plain)
    spec = recipe.Input(height=given.side, width=given.side).spec()
    train, test = train_and_test(given.data, spec, recipe.Split(groups=given.groups), seed=0)
    for line in checks.table(train, test):
        print(line)
    for warning in (*checks.class_warnings(train), *checks.duplicate_warnings(train, test)):
        print(f"note: {warning}")


def _download(name: str) -> None:
    import httpx

    from training.data.download import SOURCES, TIMEOUT, download

    folder = imageset.root() / name
    say(f"fetching {name} into {folder} (GRAFT_DATA names another place)")
    with httpx.Client(timeout=TIMEOUT) as client:
        download(SOURCES[name], folder, client)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-train", description="Train on a source, graft onto a target, export a bundle that can be served."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="a whole recipe, from images to a bundle")
    _takes_recipe(run)
    _has_folder(run)
    _gives_bundle(run)
    run.set_defaults(command=_run)

    pretrain = commands.add_parser("pretrain", help="the first part of run: an autoencoder of the source")
    _takes_recipe(pretrain)
    _has_folder(pretrain)
    pretrain.set_defaults(command=_pretrain)

    transfer = commands.add_parser("transfer", help="run up to the weights: what was pretrained comes to the target")
    _takes_recipe(transfer)
    _has_folder(transfer)
    transfer.add_argument(
        "--from", dest="pretrained", type=Path, metavar="RUN", help="take what this run pretrained, and its source"
    )
    transfer.set_defaults(command=_transfer)

    export = commands.add_parser("export", help="calibrate, measure and publish what a run has learnt")
    export.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    _gives_bundle(export)
    export.set_defaults(command=_export)

    report = commands.add_parser("report", help="write a run's report.html anew, with pictures of the data")
    report.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that has published a bundle")
    report.set_defaults(command=_report)

    compare = commands.add_parser("compare", help="whether transfer helped: the honest arms, at several label budgets")
    _takes_recipe(compare)
    compare.add_argument("--out", type=Path, help="folder of the results (default: runs/compare-<name>)")
    compare.add_argument("--arms", type=_words, help=f"some of {', '.join(ARMS)} (default: all)")
    compare.add_argument(
        "--budgets", type=_budgets, help="labels per class, as 1,10,100,all (default: 1,10,100,1000,all)"
    )
    compare.add_argument("--seeds", type=_seeds, default=3, help="repetitions of each (default: 3; at least 2)")
    compare.set_defaults(command=_compare)

    evaluate = commands.add_parser("evaluate", help="measure a bundle through the code that serves it")
    evaluate.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    evaluate.add_argument("--data", help="a named data set or a folder (default: what it was trained for)")
    evaluate.add_argument("--part", choices=("train", "test"), default="test")
    evaluate.set_defaults(command=_evaluate)

    calibrate = commands.add_parser(
        "calibrate", help="a bundle's anomaly score anew, from normal images of your own; needs no torch"
    )
    calibrate.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    calibrate.add_argument("normals", help="a folder of normal images, or a named data set")
    calibrate.add_argument("--false-alarm-rate", type=_share, help="of normal images (default: the bundle's, or 0.01)")
    calibrate.add_argument(
        "--threshold",
        choices=("rate", "f1"),
        default="rate",
        help="at the false-alarm rate (default), or where F1 is best against --anomalies",
    )
    calibrate.add_argument("--anomalies", help="a folder of images that are not normal, for --threshold f1")
    calibrate.add_argument("--seed", type=int, default=0, help="which half is fitted on, which held out (default: 0)")
    calibrate.set_defaults(command=_calibrate)

    graft = commands.add_parser(
        "graft", help="a bundle from a few images of each class, on the encoder of another; seconds, needs no torch"
    )
    graft.add_argument("shots", type=Path, metavar="SHOTS", help="a folder, with a folder of images for each class")
    graft.add_argument(
        "--base", type=Path, help="a bundle, or a folder of them, of which the nearest is taken (default: --models)"
    )
    graft.add_argument("--name", help="of the new model (default: that of the folder)")
    graft.add_argument("--reads", choices=("embedding", "features"), help="(default: what the base's own head reads)")
    graft.add_argument(
        "--distance", choices=("mahalanobis", "cosine"), default="mahalanobis", help="(default: the first)"
    )
    _gives_bundle(graft)
    graft.set_defaults(command=_graft)

    inspected = commands.add_parser("data", help="what is in a data set, and what to beware of; download of named ones")
    inspected.add_argument("data", help=f"{', '.join(imageset.MADE_HERE)}, or a folder")
    inspected.add_argument("--download", action="store_true", help="fetch what is missing of a named one")
    inspected.add_argument(
        "--side", type=_positive, default=64, help="pixels at which images are compared (default: 64)"
    )
    inspected.add_argument("--groups", help="as split.groups of a recipe: keep together what belongs together")
    inspected.set_defaults(command=_data)
    return parser


def _takes_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe.names())}, or a TOML file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe: pretrain.epochs=3"
    )


def _has_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/<name>-<time>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run, to the same weights")


def _gives_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=Path, default=Path("models"), help="where the bundle goes (default: models)")


def _words(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    for arm in chosen:
        if arm not in ARMS:
            raise argparse.ArgumentTypeError(f"{arm} is none of {', '.join(ARMS)}")
    return chosen


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def _budgets(text: str) -> tuple[int | None, ...]:
    """None stands for all."""
    try:
        chosen = tuple(None if word == "all" else int(word) for word in text.split(","))
    except ValueError:
        chosen = (0,)
    if any(budget is not None and budget < 1 for budget in chosen):
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1, and all, as in 1,10,100,all")
    return chosen


def _seeds(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: at least 2 are needed for an interval")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
