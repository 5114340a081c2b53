"""What arrives is bounded over all requests: connections, the bytes in memory at once, the time that a body may take.

Connections are counted by the server, which marks those that are too many.
"""

import asyncio
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deadlines import Alarms
from app.api.middleware.access import OPEN
from app.api.middleware.root_path import route_path
from app.api.problems import answer_to
from app.errors import BodyTooSlow, TooManyConnections
from app.inference.admission import Bytes

CROWDED = "crowded"  # in a request's state: of how many connections its own is one too many


class _Arriving:
    """One request's body. Its bytes count from their arrival until the request is over."""

    __slots__ = ("_among", "_held", "_receive", "_until", "_whole")

    def __init__(self, among: "Bodies", receive: Receive) -> None:
        self._among, self._receive, self._held, self._whole = among, receive, 0, False
        self._until = monotonic() + among.seconds

    async def receive(self) -> Message:
        if self._whole:  # what is left to be received is that the client goes away
            return await self._receive()
        alarm = self._among.alarms.set(self._until - monotonic())
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if alarm.rang:
                told = f"the body did not arrive within {self._among.seconds:,} s; {self._held:,} bytes did"
                raise BodyTooSlow(told) from None
            raise
        finally:
            alarm.off()
        more = len(message.get("body", b""))
        self._among.room.take(more, self._held)
        self._held += more
        self._whole = not message.get("more_body", False)
        return message

    def over(self) -> None:
        self._among.room.give_back(self._held)
        self._held = 0


class Bodies:
    def __init__(self, app: ASGIApp, room: Bytes, seconds: int, alarms: Alarms) -> None:
        """`seconds` are what a body may take."""
        self.app, self.room, self.seconds, self.alarms = app, room, seconds, alarms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = scope.get("state", {}).get(CROWDED)
        if most is not None and route_path(scope) not in OPEN:  # health is told even then
            error = TooManyConnections(f"more than the {most:,} connections that there may be; try again in 1 s", 1)
            await answer_to(error)(scope, receive, send)
            return
        arriving = _Arriving(self, receive)
        try:
            await self.app(scope, arriving.receive, send)
        finally:
            arriving.over()
