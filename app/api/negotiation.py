"""Which form of answer a caller takes, of those there are (RFC 9110, 12.5.1)."""

import re
from collections.abc import Sequence

from app.errors import NotAcceptable

_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
JSON, NPY, PNG = "application/json", "application/x-npy", "image/png"


def chosen(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that the header likes best; among equals the first. No header takes anything."""
    if accept is None or accept == "*/*" or not accept.strip():
        return offered[0]
    ranges = [_range(each) for each in accept.split(",")]
    liked = {kind: _liking(kind, ranges) for kind in offered}
    best = max(offered, key=lambda kind: liked[kind])  # the first of equals
    if liked[best] <= 0:
        raise NotAcceptable(f"Accept {accept[:100]!r}: there is {', '.join(offered)}")
    return best


def _range(text: str) -> tuple[str, float]:
    kind, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            return kind, float(parameter[2:]) if _QUALITY.fullmatch(parameter[2:]) else 0.0
    return kind, 1.0


def _liking(kind: str, ranges: Sequence[tuple[str, float]]) -> float:
    """By the most precise range that names it: image/png before image/* before */*."""
    for name in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        found = [quality for each, quality in ranges if each == name]
        if found:
            return max(found)
    return 0.0
