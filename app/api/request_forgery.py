"""Protects requests that load or unload models against web pages of other origins (CSRF).

A browser sends a page's POST to any address without a preflight if an HTML form could have sent it. The page cannot
read the answer, but the model would be unloaded. Such a request is recognised by its headers:

Sec-Fetch-Site   `same-origin` or `none`: from the service's own page or its user. No page can set it
Origin           of the page; `null` if the browser withholds it. Programs send neither of the two, and pass
Content-Type     those of a form need no preflight, all others do
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


async def refuse_cross_origin(request: Request) -> None:
    """A dependency of the routes that change which models are loaded."""
    settings: Settings = request.app.state.settings
    if not is_allowed(request.headers, request.scope["scheme"], settings.origins):
        raise CrossOrigin(
            "pages of other origins may not change what is served; "
            f"{PREFIX}CORS_ORIGINS names those that may, as https://host:port"
        )
    for declared in request.headers.getlist("content-type"):
        if not _TYPES.fullmatch(declared.partition(";")[0].strip().lower()):
            raise UnsupportedMediaType(
                f"Content-Type {declared[:100]!r} is not JSON: send application/json, or no Content-Type"
            )


def is_allowed(headers: Headers, scheme: str, allowed: tuple[str, ...]) -> bool:
    """Whether a program, a page of the service's own origin, or a page of an allowed origin sent the request."""
    site, origins = headers.get("sec-fetch-site"), headers.getlist("origin")
    if "*" in allowed or site in ("same-origin", "none"):
        return True
    if not origins:
        return site is None
    return all(origin in allowed or (site is None and _is_own(origin, headers, scheme)) for origin in origins)


def _is_own(origin: str, headers: Headers, scheme: str) -> bool:
    """By the Host header and those of a proxy, which are trusted: no page can send them without a preflight."""
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return False
    own_scheme = _first(headers, "x-forwarded-proto") or scheme
    says_scheme = "x-forwarded-proto" in headers or own_scheme == "https"  # else a proxy may have ended TLS
    if match[1] != own_scheme and says_scheme:
        return False
    hosts = {headers.get("host", ""), _first(headers, "x-forwarded-host")} - {""}
    port = _PORTS[match[1]]
    return match[2].removesuffix(port) in {host.lower().removesuffix(port) for host in hosts}


def _first(headers: Headers, name: str) -> str:
    """The header's first value: each proxy appends its own, so the first is that of the proxy next to the client."""
    return headers.get(name, "").partition(",")[0].strip().lower()
