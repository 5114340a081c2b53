"""Command line of training: `python -m training`, installed as `graft-train`. `commands` does the work."""

import argparse
import codecs
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import get_args

from app.bundle import GraftError
from app.bundle.index import MOST_EXAMPLES
from training import commands, malloc, ranks, recipe
from training.compare.arms import ARMS
from training.data import named
from training.errors import TrainingError

EXTRA = ("torch", "onnx", "onnxscript", "httpx", "rich", "optuna")  # packages of the extra `train`


_BY_SHOTS = (commands.graft, commands.index, commands.learn)  # need no more than the extra `shots`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0: done; 2: an error, printed in one sentence; 130: interrupted by Ctrl-C."""
    parsed = vars(_parser().parse_args(arguments))
    command = parsed.pop("command")
    malloc.keep_freed()
    _print_any_name()
    try:
        if ranks.started() > 1 and command not in (commands.run, commands.pretrain, commands.transfer):
            raise TrainingError("torchrun is for run, pretrain and transfer only; start this command without it")
        command(**parsed)
    except GraftError as error:
        program = f"graft-train, process {os.environ['RANK']}" if ranks.started() > 1 else "graft-train"
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        extra, target = ("shots", "install-shots") if command in _BY_SHOTS else ("train", "install-train")
        message = f"{error.name} is not installed: pip install 'graft[{extra}]', or make {target}"
        print(f"graft-train: {message}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"graft-train: {error.filename or 'a file'}: {error.strerror or error}; nothing is lost", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(
            "graft-train: not enough memory for these images and this network: lower input.height and input.width, the "
            "sizes under network, or batch; nothing is lost",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """torch raises a RuntimeError, numpy a MemoryError."""
    reasons = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(reason in str(error) for reason in reasons)


def _print_any_name() -> None:
    """Paths are printed byte for byte on stdout; characters that the encoding lacks are escaped."""
    if isinstance(sys.stdout, TextIOWrapper):
        utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-train",
        description="Train on a source, transfer to a target, and export a bundle that the service can load.",
    )
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[..., None], help: str) -> argparse.ArgumentParser:  # noqa: A002 - argparse's word
        subparser = parsers.add_parser(function.__name__, help=help)
        subparser.set_defaults(command=function)
        return subparser

    _auto_arguments(command(commands.auto, "a folder in, a bundle out: looks, plans, trains, measures, publishes"))
    _run_arguments(command(commands.run, "train by a recipe, and publish a bundle"), publishes=True)
    _tune_arguments(command(commands.tune, "search settings of a recipe on folds of its training images"))
    _run_arguments(command(commands.pretrain, "only the first part of run: pretrain an autoencoder on the source"))
    transfer = command(commands.transfer, "run without publishing: pretrain, then transfer to the target")
    _run_arguments(transfer)
    transfer.add_argument(
        "--from",
        dest="pretrained",
        type=Path,
        metavar="RUN",
        help="use the pretrained weights and the source of this run",
    )
    _export_arguments(command(commands.export, "calibrate, measure and publish a trained run"))
    _report_arguments(command(commands.report, "write the report of a published run again, with images of the data"))
    _runs_arguments(command(commands.runs, "list runs, or compare them: metrics, and what differs in their recipes"))
    _compare_arguments(command(commands.compare, "measure whether transfer helps: baselines at several label budgets"))
    _evaluate_arguments(command(commands.evaluate, "measure a bundle with the code that serves it"))
    _calibrate_arguments(
        command(commands.calibrate, "refit a bundle's anomaly score on normal images of your own; needs no torch")
    )
    _renew_arguments(
        command(commands.renew, "add what newer exports hold to an older bundle: prediction sets, scores for drift")
    )
    _index_arguments(
        command(
            commands.index, "put a folder of images into a bundle, to find those similar to a request's; needs no torch"
        )
    )
    _learn_arguments(
        command(commands.learn, "learn from feedback, and publish the next version if it is better; needs no torch")
    )
    _graft_arguments(
        command(
            commands.graft,
            "make a bundle from a few images of each class and another bundle's encoder; takes seconds, needs no torch",
        )
    )
    _base_arguments(
        command(
            commands.base,
            "publish a frozen network with the weights that others published, to graft onto; takes seconds, no images",
        )
    )
    _label_arguments(
        command(commands.label, "which images to label next, or which labels to check: a page and a list to fill in")
    )
    _data_arguments(command(commands.data, "describe a data set and warn about it; download named ones"))
    return parser


def _auto_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Look at a folder of images (a folder for each kind; or sound images alone, with or without defects beside "
        "them; or a list), race recipes for it on folds of its training images, and publish the best, fitted on all of "
        "them, with a verdict in words. Ctrl-C publishes the best so far."
    )
    parser.add_argument("data", metavar="FOLDER", help="a folder of images, a CSV, or a named data set")
    parser.add_argument("--minutes", type=_minutes, default=10.0, help="time for everything (default: 10)")
    parser.add_argument(
        "--for",
        dest="purpose",
        choices=("classify", "inspect", "both"),
        help="what the model is for (default: to classify where there are kinds, to inspect where all are sound)",
    )
    parser.add_argument(
        "--size", choices=("small", "best"), default="best", help="the fastest model, or the best (default: best)"
    )
    parser.add_argument(
        "--no-outside-weights",
        dest="outside",
        action="store_false",
        help="use no weights that others have published: train a network on these images alone",
    )
    parser.add_argument("--name", help="name of the model (default: the folder's)")
    parser.add_argument("--plan", action="store_true", help="only print what would be done, as a recipe")
    parser.add_argument(
        "--run", dest="folder", type=Path, metavar="RUN", help="folder of the run (default: runs/auto-<name>-<time>)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run")
    _models_argument(parser)


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument(
        "--space",
        type=Path,
        required=True,
        metavar="FILE",
        help='what is searched, as TOML: lines like "transfer.rate" = { low = 1e-4, high = 1e-2, log = true }, or '
        '"network.width" = [16, 24, 32]',
    )
    parser.add_argument("--minutes", type=_minutes, default=30.0, help="time for the search (default: 30)")
    parser.add_argument("--trials", type=_positive, default=100, help="at most so many (default: 100)")
    parser.add_argument(
        "--run",
        dest="folder",
        type=Path,
        metavar="RUN",
        help="folder of the search; one that is there goes on (default: runs/tune-<name>)",
    )


def _run_arguments(parser: argparse.ArgumentParser, publishes: bool = False) -> None:
    _recipe_arguments(parser)
    parser.add_argument(
        "--run", dest="folder", type=Path, metavar="RUN", help="folder of the run (default: runs/<name>-<time>)"
    )
    parser.add_argument("--resume", action="store_true", help="resume the run in --run; it ends with the same weights")
    if publishes:
        _models_argument(parser)


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    _models_argument(parser)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run that has published a bundle")


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="list these alone: a run, a recipe, or a pattern as 'photos-*'"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="the folder of the runs (default: runs)")
    parser.add_argument(
        "--compare", nargs="+", metavar="RUN", help="put these side by side, with differences from the first"
    )
    parser.add_argument("--sort", metavar="METRIC", help="the best first (default: the newest last)")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print all that is known, as JSON")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/compare-<name>)")
    parser.add_argument("--arms", type=_arms, help=f"some of {', '.join(ARMS)} (default: all)")
    parser.add_argument(
        "--budgets", type=_budgets, help="labels per class, as 1,10,100,all (default: 1,10,100,1000,all)"
    )
    parser.add_argument("--seeds", type=_seeds, default=3, help="number of seeds, at least 2 (default: 3)")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    parser.add_argument("--data", help="a named data set, a folder or a list of images (default: the bundle's target)")
    parser.add_argument("--part", choices=("train", "test"), default="test", help="part to measure (default: test)")
    _sound_argument(parser)


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    parser.add_argument("normals", help="a folder of normal images, or a named data set")
    parser.add_argument(
        "--false-alarm-rate",
        type=_share,
        help="share of normal images that is called anomalous (default: the bundle's, or 0.01)",
    )
    parser.add_argument(
        "--threshold",
        choices=("rate", "f1"),
        default="rate",
        help="at the false-alarm rate, or at the best F1 on --anomalies (default: rate)",
    )
    parser.add_argument("--anomalies", help="a folder of anomalous images, to measure on, and for --threshold f1")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the split: half to fit, half to calibrate")


def _renew_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Publish the next version of a bundle, with prediction sets and scores for drift made of the images that were "
        "held out when it was trained. Weights, anomaly score and golden pairs stay as they are. Needs the images that "
        "it was trained on; needs no torch."
    )
    parser.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    parser.add_argument("--data", help="where the images of its target lie now (default: where its recipe says)")
    parser.add_argument("--models", type=Path, help="folder to publish it in (default: that of the bundle)")


def _index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make the next version of a bundle with an index of these images: /v1/similar finds the nearest of them, with "
        f"label and file name. It takes the place of the index that the bundle has. At most {MOST_EXAMPLES:,} images."
    )
    parser.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    parser.add_argument("images", metavar="FOLDER", help="a folder of images, a list of them, or a named data set")
    parser.add_argument(
        "--thumbnails", action="store_true", help="keep small pictures too: everyone who may ask the service sees them"
    )
    parser.add_argument("--most", type=_positive, help="index so many of them, evenly spaced (default: all)")


def _learn_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make the next version of a bundle from what people said of its answers: the head is corrected, temperature "
        "and threshold are calibrated anew, and a memory of patches takes more normal images. It is published only if "
        "it passes every check of a table, which is printed: better on feedback held out, no worse on the bundle's own "
        "held-out images, and feedback that can be right. Otherwise the status is 2, and nothing is published."
    )
    parser.add_argument("bundle", type=Path, metavar="models/NAME/VERSION")
    parser.add_argument("spool", type=Path, metavar="SPOOL", help="the folder that GRAFT_FEEDBACK names")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of what learns and what judges")


def _graft_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shots", type=Path, metavar="SHOTS", help="a folder that holds a folder of images per class")
    parser.add_argument(
        "--base", type=Path, help="a bundle, or a folder of bundles: the nearest is chosen (default: --models)"
    )
    parser.add_argument("--name", help="name of the new model (default: the folder's)")
    parser.add_argument(
        "--reads", choices=("embedding", "features"), help="what the head reads (default: as the base's head)"
    )
    parser.add_argument(
        "--distance",
        choices=("mahalanobis", "cosine"),
        default="mahalanobis",
        help="distance to the prototypes (default: mahalanobis)",
    )
    _models_argument(parser)


def _base_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "backbone", metavar="NAME", choices=recipe.BACKBONES, help=f"one of {', '.join(recipe.BACKBONES)}"
    )
    parser.add_argument(
        "--weights",
        default=recipe.IMAGENET,
        help="a file of weights, by path or URL (default: those published for NAME, from its package or its publisher)",
    )
    parser.add_argument("--side", type=_positive, default=224, help="height and width, in pixels (default: 224)")
    parser.add_argument(
        "--resize",
        choices=get_args(recipe.Resize),
        default="pad",
        help="how images of another shape are brought to that (default: pad)",
    )
    parser.add_argument("--name", help="name of the bundle (default: NAME)")
    _models_argument(parser)


def _label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="FOLDER", help="images, labelled or not: a folder, or a CSV of them")
    parser.add_argument("--count", type=_positive, default=50, help="images to label or to check (default: 50)")
    parser.add_argument("--out", type=Path, help="folder of the page and the list (default: runs/label-<name>)")
    parser.add_argument("--check", action="store_true", help="check the labels, though some images have none yet")
    parser.add_argument(
        "--base", type=Path, metavar="models/NAME/VERSION", help="a bundle that encodes (default: EfficientNet-Lite0)"
    )
    parser.add_argument(
        "--no-outside-weights", dest="outside", action="store_false", help="no weights of others: needs --base"
    )


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help=f"{', '.join(named.NAMES)}, a folder, or a list of images (CSV, JSON lines)")
    parser.add_argument("--download", action="store_true", help="download the missing files of a named data set")
    parser.add_argument(
        "--side", type=_positive, default=64, help="compare images at this size, in pixels (default: 64)"
    )
    parser.add_argument("--groups", help="which images belong together, as split.groups of a recipe")
    _sound_argument(parser)


def _sound_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sound",
        metavar="CLASS",
        help="the class of sound images, where the others are kinds of defect (default: the only class to train on)",
    )


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=f"one of {', '.join(recipe.names())}, or a TOML file")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the recipe, as in pretrain.epochs=3",
    )


def _models_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="folder to publish the bundle in (default: models)"
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1, as in 0.01")
    return value


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 60 * 24 * 7:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes, as 10 or 0.5")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


def _arms(text: str) -> tuple[str, ...]:
    arms = tuple(text.split(","))
    for arm in arms:
        if arm not in ARMS:
            raise argparse.ArgumentTypeError(f"{arm} is none of {', '.join(ARMS)}")
    return arms


def _budgets(text: str) -> tuple[int | None, ...]:
    """None stands for all."""
    try:
        budgets = tuple(None if word == "all" else int(word) for word in text.split(","))
    except ValueError:
        budgets = (0,)
    if any(budget is not None and budget < 1 for budget in budgets):
        raise argparse.ArgumentTypeError(f"{text}: numbers from 1, and all, as in 1,10,100,all")
    return budgets


def _seeds(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: at least 2 are needed for an interval")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
