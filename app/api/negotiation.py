"""Chooses a response's media type by the Accept header (RFC 9110, 12.5.1)."""

import re
from collections.abc import Sequence

from app.errors import NotAcceptable

_QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")
JSON, NPY, PNG = "application/json", "application/x-npy", "image/png"


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered type that the header prefers, the first of equals. Without a header, the first that is offered."""
    if accept is None or accept == "*/*" or not accept.strip():
        return offered[0]
    ranges = [_range(each) for each in accept.split(",")]
    qualities = {media_type: _quality(media_type, ranges) for media_type in offered}
    best = max(offered, key=lambda media_type: qualities[media_type])  # the first of equals
    if qualities[best] <= 0:
        raise NotAcceptable(f"Accept {accept[:100]!r} excludes every type that this can send: {', '.join(offered)}")
    return best


def _range(text: str) -> tuple[str, float]:
    media_range, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            return media_range, float(parameter[2:]) if _QUALITY.fullmatch(parameter[2:]) else 0.0
    return media_range, 1.0


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """By the most specific range that matches: image/png before image/* before */*."""
    for name in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        qualities = [quality for media_range, quality in ranges if media_range == name]
        if qualities:
            return max(qualities)
    return 0.0
