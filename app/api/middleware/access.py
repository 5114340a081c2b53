"""API keys. Without keys every request passes; health checks and the web pages never need a key."""

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware.root_path import route_path
from app.api.problems import answer_to
from app.errors import SettingsInvalid, Unauthorised
from app.settings import PREFIX, Settings

OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_PAGES = frozenset({"", "/", "/docs"})  # static files; they ask for the key themselves, and send it to /v1
_PAGES_UNDER = ("/web/", "/models/")
_METRICS = "/metrics"


class Keys:
    """Compares digests, all of them and in constant time, so that the time taken reveals nothing about a key."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> bool:
        digest = sha256(key).digest()
        return sum(hmac.compare_digest(digest, each) for each in self._digests) > 0


def keys_of(settings: Settings) -> Keys:
    keys = [key.strip() for key in (settings.api_keys or "").split(",")]
    path = settings.api_keys_file
    if path is not None:
        try:
            keys += [line.strip() for line in path.read_text().splitlines()]
        except (OSError, ValueError) as error:
            raise SettingsInvalid(f"{PREFIX}API_KEYS_FILE={path}: cannot be read: {error}") from None
        if not any(keys):
            raise SettingsInvalid(f"{PREFIX}API_KEYS_FILE={path}: the file has no key; write one on each line")
    return Keys([key for key in keys if key])


class Access:
    """A request sends its key as `Authorization: Bearer KEY` or `X-API-Key: KEY`; /metrics may have its own."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Keys) -> None:
        self.app, self._keys, self._metrics = app, keys, metrics or keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_pass(scope):
            error = Unauthorised("an API key is required: send Authorization: Bearer KEY, or X-API-Key: KEY")
            await answer_to(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = route_path(scope)
        keys = self._metrics if path == _METRICS else self._keys
        if not keys or path in OPEN | _PAGES or path.startswith(_PAGES_UNDER):
            return True
        return has_key(keys, scope)


def has_key(keys: Keys, scope: Scope) -> bool:
    """Whether the request sends one of the keys."""
    return any(keys.accept(key) for key in _keys_in(scope))


def _keys_in(scope: Scope) -> list[bytes]:
    keys = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            keys.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
    return keys
