"""Who may ask: API keys, and none where none are set. Health is told to everybody, and the pages are anybody's."""

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware.root_path import route_path
from app.api.problems import answer_to
from app.errors import SettingsInvalid, Unauthorised
from app.settings import PREFIX, Settings

OPEN = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_PAGES = frozenset({"", "/", "/docs"})  # files that everybody has; what they show, they ask for with the key
_PAGES_UNDER = ("/web/", "/models/")
_METRICS = "/metrics"


class Keys:
    """Digests are compared, in constant time, and all of them: how long it takes tells nothing of any key."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def hold(self, given: bytes) -> bool:
        digest = sha256(given).digest()
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
            raise SettingsInvalid(f"{PREFIX}API_KEYS_FILE={path}: no key in it; write one a line")
    return Keys([key for key in keys if key])


class Access:
    """A request carries its key as `Authorization: Bearer KEY` or `X-API-Key: KEY`."""

    def __init__(self, app: ASGIApp, keys: Keys, metrics: Keys) -> None:
        self.app, self._keys, self._metrics = app, keys, metrics or keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_pass(scope):
            error = Unauthorised("this needs a key: send Authorization: Bearer KEY, or X-API-Key: KEY")
            await answer_to(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        path = route_path(scope)
        keys = self._metrics if path == _METRICS else self._keys
        if not keys or path in OPEN | _PAGES or path.startswith(_PAGES_UNDER):
            return True
        return holds(keys, scope)


def holds(keys: Keys, scope: Scope) -> bool:
    """Whether the request carries one of them."""
    return any(keys.hold(given) for given in _given(scope))


def _given(scope: Scope) -> list[bytes]:
    found = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
    return found
