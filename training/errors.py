"""Errors of training: each ends the command with one sentence and exit status 2."""

import re
from collections.abc import Sequence

from app.bundle import GraftError

_LISTED = 5  # names of a long list
# Control characters, line separators, and the bytes of a file name that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class TrainingError(GraftError):
    """The message says what is wrong, where, and what to do."""


def in_short(error: Exception) -> str:
    """The first sentence of another library's message: torch's fill a page, and recommend unsafe loading."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.split(". ")[0].rstrip(".")


def printable(name: str) -> str:
    """A file's name on one line and in any encoding: control characters and bytes that are not UTF-8 as escapes."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(match[0])[1:-1]

    return _UNPRINTABLE.sub(escaped, name)


def listed(names: Sequence[str], most: int = _LISTED) -> str:
    """a, b, c and 12 more."""
    shown = ", ".join(printable(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
