"""`python -m training`, and `graft-train`: the arguments. What a command does stands in `commands`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from app.bundle import GraftError
from training import commands, malloc, ranks, recipe
from training.compare.arms import ARMS
from training.data import named
from training.errors import TrainingError

EXTRA = ("torch", "onnx", "onnxscript", "httpx", "rich")  # what the extra `train` adds


def main(arguments: Sequence[str] | None = None) -> int:
    given = vars(_parser().parse_args(arguments))
    command = given.pop("command")
    malloc.keep_freed()
    try:
        if ranks.started() > 1 and command not in (commands.run, commands.pretrain, commands.transfer):
            raise TrainingError("torchrun is for run, pretrain and transfer: this command is one process")
        command(**given)
    except GraftError as error:
        who = f"graft-train, process {os.environ['RANK']}" if ranks.started() > 1 else "graft-train"
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        extra, target = ("shots", "install-shots") if command is commands.graft else ("train", "install-train")
        told = f"{error.name} is not installed: pip install 'graft[{extra}]', or make {target}"
        print(f"graft-train: {told}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"graft-train: {error.filename or 'a file'}: {error.strerror or error}; nothing is lost", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-train", description="Train on a source, graft onto a target, export a bundle that can be served."
    )
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[..., None], help: str) -> argparse.ArgumentParser:  # noqa: A002 - argparse's word
        made = parsers.add_parser(function.__name__, help=help)
        made.set_defaults(command=function)
        return made

    run = command(commands.run, help="a whole recipe, from images to a bundle")
    _takes_recipe(run)
    _has_folder(run)
    _gives_bundle(run)

    pretrain = command(commands.pretrain, help="the first part of run: an autoencoder of the source")
    _takes_recipe(pretrain)
    _has_folder(pretrain)

    transfer = command(commands.transfer, help="run up to the weights: what was pretrained comes to the target")
    _takes_recipe(transfer)
    _has_folder(transfer)
    transfer.add_argument(
        "--from", dest="pretrained", type=Path, metavar="RUN", help="take what this run pretrained, and its source"
    )

    export = command(commands.export, help="calibrate, measure and publish what a run has learnt")
    export.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    _gives_bundle(export)

    report = command(commands.report, help="write a run's report.html anew, with pictures of the data")
    report.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run that has published a bundle")

    compare = command(commands.compare, help="whether transfer helped: the honest arms, at several label budgets")
    _takes_recipe(compare)
    compare.add_argument("--out", type=Path, help="folder of the results (default: runs/compare-<name>)")
    compare.add_argument("--arms", type=_words, help=f"some of {', '.join(ARMS)} (default: all)")
    compare.add_argument(
        "--budgets", type=_budgets, help="labels per class, as 1,10,100,all (default: 1,10,100,1000,all)"
    )
    compare.add_argument("--seeds", type=_seeds, default=3, help="repetitions of each (default: 3; at least 2)")

    evaluate = command(commands.evaluate, help="measure a bundle through the code that serves it")
    evaluate.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    evaluate.add_argument("--data", help="a named data set or a folder (default: what it was trained for)")
    evaluate.add_argument("--part", choices=("train", "test"), default="test")

    calibrate = command(
        commands.calibrate, help="a bundle's anomaly score anew, from normal images of your own; needs no torch"
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

    graft = command(
        commands.graft,
        help="a bundle from a few images of each class, on the encoder of another; seconds, needs no torch",
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

    inspected = command(commands.data, help="what is in a data set, and what to beware of; download of named ones")
    inspected.add_argument("data", help=f"{', '.join(named.NAMES)}, or a folder")
    inspected.add_argument("--download", action="store_true", help="fetch what is missing of a named one")
    inspected.add_argument(
        "--side", type=_positive, default=64, help="pixels at which images are compared (default: 64)"
    )
    inspected.add_argument("--groups", help="as split.groups of a recipe: keep together what belongs together")
    return parser


def _takes_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe.names())}, or a TOML file")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override the recipe: pretrain.epochs=3",
    )


def _has_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", dest="folder", type=Path, metavar="RUN", help="folder of the run (default: runs/<name>-<time>)"
    )
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
