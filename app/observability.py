"""Request ids and logs. A leaf: pure ASGI and the standard library."""

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("graft")
request_id: ContextVar[str] = ContextVar("request_id", default="-")

HEADER = b"x-request-id"
_ACCEPTABLE = re.compile(rb"[!-~]{1,128}")  # a caller's own id is kept when it is short and printable


class RequestIds:
    """Every request has an id: the caller's X-Request-ID, or a new one. Every answer carries it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == HEADER), b"")
        own = given if _ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex.encode()
        request_id.set(own.decode())

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (HEADER, own)]
            await send(message)

        await self.app(scope, receive, send_with_id)


class _WithRequestId(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.request_id = request_id.get()
        return super().format(record)


def configure_logs() -> None:
    """One line per event on standard error: time, level, request id, message."""
    handler = logging.StreamHandler()
    handler.setFormatter(_WithRequestId("%(asctime)s %(levelname)s %(request_id)s %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
