"""Writes a measured table into a page of docs/, between two markers:

    <!-- begin png: make bench ONLY=png DOC=1 -->
    …
    <!-- end png -->

Everything between them is replaced: by the table, and below it by when, at which commit and on which machine it was
measured.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.home import Made

_BLOCK = re.compile(
    r"(?P<begin><!-- begin (?P<name>[\w-]+)\b[^\n]* -->\n).*?(?P<end><!-- end (?P=name) -->)", re.DOTALL
)


def blocks(page: Path) -> dict[str, str]:
    """What stands between the markers, by name."""
    return {
        found["name"]: found[0][len(found["begin"]) : -len(found["end"])] for found in _BLOCK.finditer(page.read_text())
    }


def write(page: Path, name: str, table: str, made: Iterable[Made]) -> None:
    """A page without a block of that name is left as it is, and a ValueError says so."""
    text = page.read_text()
    if name not in blocks(page):
        raise ValueError(f"{page} has no table {name!r}: add <!-- begin {name} --> and <!-- end {name} -->")
    inner = f"\n{table.strip()}\n\n{stamp(made)}\n\n"
    page.write_text(
        _BLOCK.sub(lambda found: found["begin"] + inner + found["end"] if found["name"] == name else found[0], text)
    )


def stamp(made: Iterable[Made]) -> str:
    """Measurements that were made apart may differ in day, commit and machine: each is named once."""
    oldest_first = sorted(made, key=lambda each: each.when)
    days, commits, machines = (
        list(dict.fromkeys(values))
        for values in zip(*((m.when[:10], m.commit, m.machine) for m in oldest_first), strict=True)
    )
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"Measured {span} at commit {', '.join(commits)} on {'; '.join(machines)}."
