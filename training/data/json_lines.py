"""Lists of images as JSON lines: an object in each line."""

import json
from collections.abc import Iterator
from typing import Any

from training.errors import TrainingError, printable

SUFFIXES = (".jsonl", ".ndjson")


def objects(text: str, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(the line's number, its object) of every line that is not blank; `shown` begins messages."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TrainingError(f"{shown}, line {number}: not JSON: {error}: write one object in each line") from None
        if not isinstance(found, dict):
            raise TrainingError(f'{shown}, line {number}: not an object, as {{"path": "a.png", "label": "cat"}} is')
        yield number, found


def cell(value: object, column: str, between: str, where: str) -> str | None:
    """The value as a cell of a CSV holds it; None for null. A list of labels is joined, with `between` them."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if column == "label" and isinstance(value, list):
        for each in value:
            if not isinstance(each, str) or between in each:
                raise TrainingError(
                    f"{where}: {printable(str(each))}: not a name: write a list of strings without {between}"
                )
        return between.join(value)
    if column in ("label", "group") and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    expected = "a string, or a list of strings" if column == "label" else "a string"
    raise TrainingError(f"{where}: {printable(str(value)[:40])}: must be {expected}")
