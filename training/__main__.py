"""`python -m training`, and `graft-train`: a table of contents."""

import argparse
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from app.bundle import GraftError
from training import data, inspect, recipe
from training.errors import TrainingError
from training.progress import say
from training.splits import train_and_test

EXTRA = ("torch", "onnx", "onnxscript", "httpx", "rich")  # what the extra `train` adds


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        given.command(given)
    except GraftError as error:
        print(f"graft-train: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        print(f"graft-train: {error.name} is not installed: pip install 'graft[train]', or make train", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _run(given: argparse.Namespace) -> None:
    chosen = recipe.load(given.recipe, given.set)
    folder = given.run or Path("runs") / f"{chosen.name}-{datetime.now():%Y%m%d-%H%M%S}"
    if given.resume and given.run is None:
        raise TrainingError("--resume needs --run FOLDER: the run to go on with")
    for name in {chosen.source, chosen.target} & set(data.NAMED):
        if data.is_missing(name):
            _download(name)
    from training.run import run  # torch takes seconds to import: not before it is needed

    try:
        print(run(chosen, given.models, folder, given.resume))
    except KeyboardInterrupt:
        say(f"stopped: nothing was published; go on with the same command and --run {folder} --resume")
        raise


def _evaluate(given: argparse.Namespace) -> None:
    from app.bundle import load
    from training.evaluate import class_table, confusion, metrics, run

    bundle = load(given.bundle.resolve())
    images = data.load(given.data or bundle.manifest.provenance.target, given.part, bundle.manifest.input)
    classifier = bundle.manifest.classifier
    if classifier and len(images.labels) and images.classes != classifier.labels:
        raise TrainingError(f"the images' classes are {', '.join(images.classes)}; the bundle's labels differ")
    outputs = run(bundle, images, "evaluate")
    for metric in metrics(bundle, images, given.part, outputs):
        print(f"{metric.name} {metric.value:.4f} over {metric.images:,} images")
    if classifier and outputs.logits is not None and len(images.labels):
        found = outputs.logits.argmax(axis=1)
        for line in class_table(confusion(images.labels, found, len(classifier.labels)), classifier.labels):
            print(line)


def _calibrate(given: argparse.Namespace) -> None:
    from app.bundle import load
    from training.calibrate import recalibrate

    folder = given.bundle.resolve()
    bundle = load(folder)
    normals = data.load(given.normals, "train", bundle.manifest.input)
    stated = bundle.manifest.anomaly.false_alarm_rate if bundle.manifest.anomaly else 0.01
    print(recalibrate(folder, normals, given.false_alarm_rate or stated, given.seed))


def _data(given: argparse.Namespace) -> None:
    if given.download:
        if given.data not in data.NAMED:
            raise TrainingError(f"{given.data} is not a data set of ours: {', '.join(data.NAMED)} can be downloaded")
        _download(given.data)
    spec = recipe.Input(height=given.side, width=given.side).spec()
    train, test = train_and_test(given.data, spec, recipe.Split(groups=given.groups), seed=0)
    for line in inspect.table(train, test):
        print(line)
    for warning in (*inspect.class_warnings(train), *inspect.duplicate_warnings(train, test)):
        print(f"note: {warning}")


def _download(name: str) -> None:
    import httpx

    from training.download import SOURCES, TIMEOUT, download

    folder = data.root() / name
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
    run.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe.names())}, or a TOML file")
    run.add_argument("--models", type=Path, default=Path("models"), help="where the bundle goes (default: models)")
    run.add_argument("--run", type=Path, help="folder of the run (default: runs/<name>-<time>)")
    run.add_argument("--resume", action="store_true", help="go on with the run in --run, to the same weights")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe: pretrain.epochs=3"
    )
    run.set_defaults(command=_run)

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
    calibrate.add_argument("--seed", type=int, default=0, help="which half is fitted on, which held out (default: 0)")
    calibrate.set_defaults(command=_calibrate)

    inspected = commands.add_parser("data", help="what is in a data set, and what to beware of; download of named ones")
    inspected.add_argument("data", help=f"{', '.join(data.NAMED)}, or a folder")
    inspected.add_argument("--download", action="store_true", help="fetch what is missing of a named one")
    inspected.add_argument("--side", type=int, default=64, help="pixels at which images are compared (default: 64)")
    inspected.add_argument("--groups", help="as split.groups of a recipe: keep together what belongs together")
    inspected.set_defaults(command=_data)
    return parser


if __name__ == "__main__":
    sys.exit(main())
