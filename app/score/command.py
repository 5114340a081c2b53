"""The command line of `python -m app score`: checked before any file is read."""

import argparse
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path

from app.bundle.bundle import Bundle
from app.bundle.session import CPU
from app.bundle.store import load, names, versions
from app.errors import CannotScore, GraftError, UnknownModel
from app.inference import providers
from app.score import parquet
from app.score.operation import OPERATIONS, Operation
from app.score.paths import find
from app.score.run import AGAIN, FORMS, PARQUET, Run, say
from app.settings import PREFIX, Settings, load_settings

SETTINGS = {  # of the service, that hold here too, and what they are called besides
    "models": (),
    "max_batch": ("--batch",),
    "threads": (),
    "provider": (),
    "max_pixels": (),
    "decode_mb": (),
    "max_body_mb": (),
}


def main(arguments: Sequence[str]) -> int:
    """0: there are results; 1: of no image, or with --strict, not of every one; 2: not as was asked; 130: Ctrl-C."""
    given = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata in an image is not our user's affair
    try:
        return _score(given)
    except GraftError as error:
        say(str(error))
    except OSError as error:
        say(f"{error.filename or given.out}: {(error.strerror or str(error)).lower()}; what was written stays; {AGAIN}")
    except KeyboardInterrupt:
        say(f"stopped; what was written stays; {AGAIN}")
        return 128 + signal.SIGINT
    return 2


def _score(given: argparse.Namespace) -> int:
    out = Path(given.out)
    if out.suffix not in FORMS:
        raise CannotScore(f"--out {out}: its name says what is written, and ends in {', '.join(FORMS)}")
    if given.ray is not None:
        return _score_on_ray(given)
    if out.suffix == PARQUET:
        parquet.require()
    if not out.parent.is_dir():
        raise CannotScore(f"--out {out}: there is no folder {out.parent}")
    images, unread = find(given.paths)
    settings = _settings(given)
    operation = _operation(given, settings, providers.choose(settings.provider))
    return Run(given.paths, images, unread, out, given.strict).score(operation, settings)


def _score_on_ray(given: argparse.Namespace) -> int:
    from app.score import on_ray

    on_ray.require()
    if not given.out.endswith(PARQUET):
        raise CannotScore(f"--out {given.out}: with --ray a folder of parquet files is written: {PARQUET}, please")
    settings = _settings(given)
    operation = _operation(given, settings, CPU)  # the machine that gives out the work need have no GPU
    return on_ray.run(given.ray, given.paths, given.out, operation, settings, given.strict)


def _settings(given: argparse.Namespace) -> Settings:
    return load_settings(**{name: getattr(given, name) for name in SETTINGS if hasattr(given, name)})


def _operation(given: argparse.Namespace, settings: Settings, chosen: Sequence[str]) -> Operation:
    bundle = _load(given.model or settings.default_model, settings, chosen)
    return Operation(bundle, given.operation, given.top_k, given.false_alarm_rate)


def _load(wanted: str | None, settings: Settings, chosen: Sequence[str]) -> Bundle:
    """name, name@version, or None for the default, as the service has it."""
    models = settings.models
    found = {name: versions(models / name) for name in names(models)} if models.is_dir() else {}
    found = {name: numbers for name, numbers in found.items() if numbers}
    if not found:
        raise CannotScore(f"--models {models}: no <name>/<version>/ in it; give the folder of bundles")
    name, _, version = (wanted or min(found)).partition("@")
    if name not in found or (version and version not in map(str, found[name])):
        there = ", ".join(f"{name}@{number}" for name, numbers in found.items() for number in numbers)
        raise UnknownModel(f"--model {wanted}: not in {models}; there is: {there}")
    return load(models / name / (version or str(max(found[name]))), settings.threads, chosen)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft-serve score",
        description="Scores files, and folders of them, as the service would, into a file; the same command goes on "
        "where it was stopped.",
        epilog="What cannot be scored is listed in OUT.errors.csv. Exit status: 0, there are results; 1, there are "
        "none; 2, it was not possible as asked; 130, stopped.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder of images and of folders")
    parser.add_argument("--out", required=True, help=f"file to write, {', '.join(FORMS)} by its name")
    parser.add_argument("--model", metavar="NAME[@VERSION]", help="unset, the service's default model")
    parser.add_argument(
        "--operation",
        choices=OPERATIONS,
        default=OPERATIONS[0],
        help="what to ask of it; predict is classify and anomaly, as far as the model can (default: predict)",
    )
    parser.add_argument("--top-k", type=_top_k, metavar="N", help="how many probabilities to keep; unset, all")
    parser.add_argument(
        "--false-alarm-rate", type=_rate, metavar="RATE", help="to judge anomalies by; unset, the model's own"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="on a Ray cluster: HOST:PORT, auto for the one at hand, local to start one here; "
        "PATH and OUT may be s3://… and the like",
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 where any file could not be scored")
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
        raise argparse.ArgumentTypeError("1 at least")
    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError("between 0 and 1")
    return rate
