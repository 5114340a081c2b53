"""Calls that change what is served are refused to web pages of other origins.

A browser sends a page's POST to any address without asking there first, as long as a form could have sent it. The page
cannot read the answer, but the model would be gone. What tells such a request:

Sec-Fetch-Site   same-origin or none: the service's own page, or its user. No page can set it
Origin           of the page; `null` where the browser withholds it. Programs send neither of the two, and pass
Content-Type     a form's types need no preflight, all others do
"""

import re

from fastapi import Request
from starlette.datastructures import Headers

from app.errors import CrossOrigin, UnsupportedMediaType
from app.settings import PREFIX, Settings

_ORIGIN = re.compile(r"(https?)://([^/]+)")
_PORTS = {"http": ":80", "https": ":443"}
# application/octet-stream says that the type is not known; tritonclient's asyncio client sends it.
_TYPES = re.compile(r"application/(json|[\w.!#$&^-]+\+json|octet-stream)")


async def guarded(request: Request) -> None:
    """A dependency of routes that change something."""
    settings: Settings = request.app.state.settings
    if not may_call(request.headers, request.scope["scheme"], settings.origins):
        raise CrossOrigin(
            "pages of other origins may not change what is served; "
            f"{PREFIX}CORS_ORIGINS names those that may, as https://host:port"
        )
    for declared in request.headers.getlist("content-type"):
        if not _TYPES.fullmatch(declared.partition(";")[0].strip().lower()):
            raise UnsupportedMediaType(
                f"Content-Type {declared[:100]!r} is not JSON: send application/json, or no Content-Type"
            )


def may_call(headers: Headers, scheme: str, allowed: tuple[str, ...]) -> bool:
    """Whether a program sent this, or a page of the service's own origin or of one that is allowed."""
    site, origins = headers.get("sec-fetch-site"), headers.getlist("origin")
    if "*" in allowed or site in ("same-origin", "none"):
        return True
    if not origins:
        return site is None
    return all(origin in allowed or (site is None and _is_own(origin, headers, scheme)) for origin in origins)


def _is_own(origin: str, headers: Headers, scheme: str) -> bool:
    """As far as headers say. A proxy's are believed: no page can send them without a preflight."""
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None:
        return False
    own = _first(headers, "x-forwarded-proto") or scheme
    if found[1] != own and ("x-forwarded-proto" in headers or own == "https"):  # a proxy may end TLS and not say so
        return False
    hosts = {headers.get("host", ""), _first(headers, "x-forwarded-host")} - {""}
    return found[2].removesuffix(_PORTS[found[1]]) in {host.lower().removesuffix(_PORTS[found[1]]) for host in hosts}


def _first(headers: Headers, name: str) -> str:
    """Of a list to which each proxy adds: what the client's own said."""
    return headers.get(name, "").partition(",")[0].strip().lower()
