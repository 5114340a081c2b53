"""The command line of `python -m app score`. Arguments are checked before any image is read."""

import argparse
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from app.bundle.bundle import Bundle
from app.bundle.session import CPU
from app.bundle.sets import By, SetOptions
from app.bundle.store import load, names, versions
from app.errors import CannotScore, GraftError, UnknownModel
from app.inference import providers
from app.score import parquet
from app.score.formats import FORMATS, PARQUET
from app.score.maps import require_folder
from app.score.operation import OPERATIONS, BoundOperation
from app.score.paths import find
from app.score.run import AGAIN, Run, say
from app.settings import PREFIX, Settings, load_settings

SETTINGS = {  # settings of the service that are options here too → aliases of the option
    "models": (),
    "max_batch": ("--batch",),
    "threads": (),
    "provider": (),
    "max_pixels": (),
    "decode_mb": (),
    "max_body_mb": (),
}


def main(arguments: Sequence[str]) -> int:
    """Returns 0: results; 1: no image scored, or with --strict not all; 2: cannot run as requested; 130: Ctrl-C."""
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns about odd metadata, which the user cannot change
    try:
        return _score(options)
    except GraftError as error:
        say(str(error))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        say(f"{error.filename or options.out}: {reason}; the rows written so far are kept; {AGAIN}")
    except KeyboardInterrupt:
        say(f"stopped; the rows written so far are kept; {AGAIN}")
        return 128 + signal.SIGINT
    return 2


def _score(options: argparse.Namespace) -> int:
    out = Path(options.out)
    if out.suffix not in FORMATS:
        raise CannotScore(f"--out {out}: unknown format; use a name that ends in {', '.join(FORMATS)}")
    maps = None if options.maps is None else Path(options.maps)
    if options.ray is not None:
        if maps is not None:
            raise CannotScore(
                "--maps needs a folder on this machine, and --ray scores on others: leave one of them out"
            )
        return _score_on_ray(options)
    if out.suffix == PARQUET:
        parquet.require()
    if not out.parent.is_dir():
        raise CannotScore(f"--out {out}: there is no folder {out.parent}; create it, or give another --out")
    if maps is not None:
        require_folder(maps, options.paths)
    images, unread = find(options.paths)
    settings = _settings(options)
    operation = _operation(options, settings, providers.choose(settings.provider))
    run = Run(paths=options.paths, images=images, unread=unread, out=out, strict=options.strict, maps=maps)
    return run.score(operation, settings)


def _score_on_ray(options: argparse.Namespace) -> int:
    from app.score import on_ray

    on_ray.require()
    if not options.out.endswith(PARQUET):
        raise CannotScore(
            f"--out {options.out}: --ray writes a folder of parquet files; use a name that ends in {PARQUET}"
        )
    settings = _settings(options)
    operation = _operation(options, settings, CPU)  # the submitting machine need not have a GPU
    return on_ray.run(
        options.ray, paths=options.paths, out=options.out, operation=operation, settings=settings, strict=options.strict
    )


def _settings(options: argparse.Namespace) -> Settings:
    return load_settings(**{name: getattr(options, name) for name in SETTINGS if hasattr(options, name)})


def _operation(options: argparse.Namespace, settings: Settings, chosen: Sequence[str]) -> BoundOperation:
    bundle = _load(options.model or settings.default_model, settings, chosen)
    if options.coverage is None and (options.sets or options.conditional):
        raise CannotScore("--sets and --conditional say how sets of labels are made: give --coverage, too")
    sets = options.coverage and SetOptions(options.coverage, options.sets or "lac", options.conditional)
    return BoundOperation(
        bundle, options.operation, options.top_k, options.false_alarm_rate, sets=sets, maps=options.maps is not None
    )


def _load(model: str | None, settings: Settings, chosen: Sequence[str]) -> Bundle:
    """`model` is name, name@version, or None for the default, as in the service."""
    models = settings.models
    available = {name: versions(models / name) for name in names(models)} if models.is_dir() else {}
    available = {name: numbers for name, numbers in available.items() if numbers}
    if not available:
        raise CannotScore(f"--models {models}: it has no <name>/<version>/; give the folder of bundles")
    name, _, version = (model or min(available)).partition("@")
    if name not in available or (version and version not in map(str, available[name])):
        listed = ", ".join(f"{name}@{number}" for name, numbers in available.items() for number in numbers)
        raise UnknownModel(f"--model {model}: not in {models}, which has: {listed}")
    return load(models / name / (version or str(max(available[name]))), settings.threads, chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-serve score",
        description="Scores image files and folders of them into a file, with the service's results. Run the same "
        "command again to resume.",
        epilog="Files that cannot be scored are listed in OUT.errors.csv. Exit status: 0, there are results; 1, there "
        "are none; 2, it cannot run with these arguments; 130, stopped.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="an image, or a folder, with the folders below it and those that links in it lead to",
    )
    parser.add_argument("--out", required=True, help=f"file to write; its name ends in {', '.join(FORMATS)}")
    parser.add_argument("--model", metavar="NAME[@VERSION]", help="model to run (default: the service's default model)")
    parser.add_argument(
        "--operation",
        choices=OPERATIONS,
        default=OPERATIONS[0],
        help="operation to run; predict is classify and anomaly, where the model has both (default: predict)",
    )
    parser.add_argument("--top-k", type=_top_k, metavar="N", help="probabilities to keep per image (default: all)")
    parser.add_argument(
        "--false-alarm-rate", type=_rate, metavar="RATE", help="rate for the anomaly threshold (default: the model's)"
    )
    parser.add_argument(
        "--coverage",
        type=_rate,
        metavar="RATE",
        help="also give a set of labels that holds the truth at this rate, as 0.95; several are joined by |",
    )
    parser.add_argument(
        "--sets",
        choices=get_args(By),
        help="how sets are made: lac, the smallest on average; raps, larger for hard images (default: lac)",
    )
    parser.add_argument(
        "--conditional", action="store_true", help="sets hold the truth at --coverage for every class, not over all"
    )
    parser.add_argument(
        "--maps",
        metavar="FOLDER",
        help="also draw each picture as a PNG in FOLDER, with the map of what the score finds anomalous in orange and "
        "regions in boxes; the column map names it",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="score on a Ray cluster: HOST:PORT, auto for a running one, local to start one; "
        "PATH and OUT may be URIs such as s3://…",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if any file could not be scored")
    for name, aliases in SETTINGS.items():
        field = Settings.model_fields[name]
        default = f" (default: {field.default})" if field.default is not None else ""
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            *aliases,
            flag,
            dest=name,
            metavar=name.rpartition("_")[2].upper(),
            default=argparse.SUPPRESS,
            help=f"{str(field.description).partition(';')[0]}{default}; or {PREFIX}{name.upper()}",
        )
    return parser


def _top_k(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError("must be between 0 and 1")
    return rate
