"""What `tune` searches: settings of a recipe, each with a list of values or a range, from a TOML file.

"transfer.rate" = { low = 1e-4, high = 1e-2, log = true }
"transfer.epochs" = { low = 5, high = 40 }
"network.width" = [16, 24, 32]
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import TrainingError, printable
from training.recipe import in_toml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_ENDS = {"low", "high", "log", "step"}


def read(path: Path) -> "dict[str, BaseDistribution]":
    where = printable(str(path))
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"--space {where}: {getattr(error, 'strerror', None) or error}") from None
    settings = _flat(table)
    if not settings:
        raise TrainingError(
            f'--space {where}: no setting: write lines like "transfer.rate" = {{ low = 1e-4, high = 1e-2 }}'
        )
    return {name: _distribution(name, asked, where) for name, asked in settings.items()}


def changes(values: Mapping[str, Any]) -> list[str]:
    """As --set takes them."""
    return [f"{name}={in_toml(json.loads(value) if _is_list(value) else value)}" for name, value in values.items()]


def _flat(table: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in table.items():
        key = f"{before}{name}"
        if isinstance(value, dict) and not _ENDS & set(value):
            found |= _flat(value, f"{key}.")
        else:
            found[key] = value
    return found


def _distribution(name: str, asked: Any, where: str) -> "BaseDistribution":
    from optuna import distributions

    if isinstance(asked, list) and asked:
        return distributions.CategoricalDistribution([json.dumps(v) if isinstance(v, list) else v for v in asked])
    if not isinstance(asked, dict) or not {"low", "high"} <= set(asked) <= _ENDS:
        raise TrainingError(
            f"--space {where}: {printable(name)}: a list of values, or {{ low = …, high = …, log = true }}, is expected"
        )
    ends = [asked[end] for end in ("low", "high")]
    kind = distributions.IntDistribution if all(isinstance(e, int) for e in ends) else distributions.FloatDistribution
    try:
        return kind(**asked)
    except (TypeError, ValueError) as error:
        raise TrainingError(f"--space {where}: {printable(name)}: {error}") from None


def _is_list(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("[") and value.endswith("]")
