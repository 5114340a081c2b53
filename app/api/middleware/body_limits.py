"""Limits over all requests: the number of connections, the bytes of bodies in memory, and the time a body may take.

The connections are counted in app/serving/connection.py, which marks the requests of those above the limit.
"""

import asyncio
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deadlines import Deadlines
from app.api.middleware.access import OPEN
from app.api.middleware.root_path import route_path
from app.api.problems import answer_to
from app.errors import BodyTooSlow, TooManyConnections
from app.inference.admission import Bytes

TOO_MANY_CONNECTIONS = "too_many_connections"  # in a request's state: the limit that its connection exceeds


class BodyLimits:
    def __init__(self, app: ASGIApp, room: Bytes, seconds: int, deadlines: Deadlines) -> None:
        """`seconds` is the time a body may take to arrive."""
        self.app, self.room, self.seconds, self.deadlines = app, room, seconds, deadlines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = scope.get("state", {}).get(TOO_MANY_CONNECTIONS)
        if most is not None and route_path(scope) not in OPEN:  # health checks are answered even then
            error = TooManyConnections(f"more than the {most:,} connections that there may be; try again in 1 s", 1)
            await answer_to(error)(scope, receive, send)
            return
        body = _LimitedBody(self, receive)
        try:
            await self.app(scope, body.receive, send)
        finally:
            body.release()


class _LimitedBody:
    """One request's body. Its bytes count from their arrival until the request has been answered."""

    __slots__ = ("_complete", "_held", "_limits", "_receive", "_until")

    def __init__(self, limits: BodyLimits, receive: Receive) -> None:
        self._limits, self._receive, self._held, self._complete = limits, receive, 0, False
        self._until = monotonic() + limits.seconds

    async def receive(self) -> Message:
        if self._complete:  # the only message left is that the client has disconnected
            return await self._receive()
        deadline = self._limits.deadlines.set(self._until - monotonic())
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if deadline.fired:
                raise BodyTooSlow(
                    f"the body did not arrive within {self._limits.seconds:,} s; {self._held:,} bytes did"
                ) from None
            raise
        finally:
            deadline.clear()
        more = len(message.get("body", b""))
        self._limits.room.acquire(more, self._held)
        self._held += more
        self._complete = not message.get("more_body", False)
        return message

    def release(self) -> None:
        self._limits.room.release(self._held)
        self._held = 0
