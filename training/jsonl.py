"""Files of JSON lines that are appended to during a run."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The objects, one per line. Lines cut short by a kill or a full disk are skipped. Empty without the file."""
    return list(lines(path))


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """As `read`, but each line is read when it is asked for."""
    if not path.is_file():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value
