"""Progress on standard error: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TypeVar

from training import ranks
from training.errors import TrainingError

T = TypeVar("T")
_quiet = False
_end: float | None = None  # by time.monotonic


class OutOfTime(TrainingError):
    """A loop that shows its progress reached the end that `until` set."""


_EVERY_S = 10.0  # between plain lines


@contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing is said and no progress shown: for steps that are repeated many times."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


@contextmanager
def until(end: float | None) -> Iterator[None]:
    """Within it every loop that shows its progress stops at `end`, by time.monotonic. None: no end."""
    global _end
    before, _end = _end, end
    try:
        yield
    finally:
        _end = before


def say(text: str) -> None:
    """Prints on rank 0 only."""
    if ranks.first() and not _quiet:
        print(text, file=sys.stderr, flush=True)


def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yields the items, and shows their count, the rate and the time left."""
    for item in _shown(items, what, total):
        if _end is not None and time.monotonic() > _end:
            raise OutOfTime(f"{what}: out of time")
        yield item


def _shown(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    if not ranks.first() or _quiet:
        yield from items
        return
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield from _print_lines(items, what, total)
        return
    from rich.console import Console  # here: commands that need no torch run without it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, rate="")
        start = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            progress.update(task, completed=done, rate=f"{done / max(1e-9, time.monotonic() - start):,.0f}/s")


def _print_lines(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    start = printed = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - printed >= _EVERY_S:
            printed = now
            rate = done / (now - start)
            say(f"{what}: {done:,} of {total:,}, {rate:,.0f}/s, {(total - done) / rate:,.0f} s left")
