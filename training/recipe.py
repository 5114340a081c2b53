"""Recipes: named experiments. A TOML file lists what differs from the defaults here, each line with its reason."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from app.bundle import InputSpec
from training.errors import TrainingError

FOLDER = Path(__file__).parent / "recipes"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Part):
    """One run of the training loop: Adam, the rate falling along a half cosine after a short rise."""

    epochs: PositiveInt = 10
    batch: PositiveInt = 128
    rate: Annotated[float, Field(gt=0)] = 1e-3


class Split(_Part):
    """Images taken, seeded and by class, from the target's training part. The test part takes no part in choices."""

    validation: PositiveInt = 5000
    calibration: PositiveInt = 5000


class Input(_Part):
    height: PositiveInt = 28
    width: PositiveInt = 28
    channels: Literal[1, 3] = 1
    resize: Literal["stretch", "pad", "crop"] = "stretch"
    filter: Literal["box", "bilinear", "bicubic", "lanczos"] = "bilinear"
    background: Literal["black", "white"] = "black"

    def spec(self) -> InputSpec:
        return InputSpec(
            **self.model_dump(),
            orientation="apply",
            sixteen_bit="high_byte",
            palette="expand",
            cmyk="convert",
            animation="first_frame",
            jpeg="reduced",
        )


class Recipe(_Part):
    name: str  # of the bundle
    title: str
    source: str  # a named data set, or a path
    target: str
    network: Literal["conv-seed"] = "conv-seed"
    seed: int = 0
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)] = 0.01
    input: Input = Input()
    split: Split = Split()
    pretrain: Stage = Stage()
    head: Stage = Stage()
    decoder: Stage = Stage()


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(recipe: str, changes: list[str]) -> Recipe:
    """`recipe` is a name of ours or the path of a TOML file; `changes` are key=value, as in pretrain.epochs=3."""
    path = FOLDER / f"{recipe}.toml"
    if not path.is_file():
        path = Path(recipe)
    try:
        fields = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise TrainingError(
            f"no recipe {recipe!r}: ours are {', '.join(names())}; or give the path of a file"
        ) from None
    except (OSError, ValueError) as error:
        raise TrainingError(f"recipe {path}: {error}") from None
    for change in changes:
        _set(fields, change)
    try:
        return Recipe(**fields)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise TrainingError(f"recipe {recipe}: " + "; ".join(told)) from None


def _set(fields: dict[str, Any], change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise TrainingError(f"--set {change}: write key=value, as in pretrain.epochs=3")
    *tables, last = key.split(".")
    for table in tables:
        fields = fields.setdefault(table, {})
        if not isinstance(fields, dict):
            raise TrainingError(f"--set {change}: {table} is not a table")
    try:
        fields[last] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        fields[last] = value  # a bare word is a string
