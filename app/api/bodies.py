"""What arrives is bounded over all requests: connections, the bytes in memory at once, the time that a body may take.

Connections are counted by the server, which marks those that are too many.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import OPEN
from app.api.alarm import Alarm
from app.api.error_handlers import answer_to
from app.api.prefix import route_path
from app.errors import BodyTooSlow, TooManyConnections
from app.inference.admission import Bytes

CROWDED = "crowded"  # in a request's state: of how many connections its own is one too many


class Bodies:
    """A body's bytes count from their arrival until its request is answered."""

    def __init__(self, app: ASGIApp, room: Bytes, seconds: int) -> None:
        self.app, self._room, self._seconds = app, room, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = scope.get("state", {}).get(CROWDED)
        if most is not None and route_path(scope) not in OPEN:  # health is told even then
            error = TooManyConnections(f"more than the {most:,} connections that there may be; try again in 1 s", 1)
            await answer_to(error)(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + self._seconds
        held, whole = 0, False

        async def bounded() -> Message:
            nonlocal held, whole
            if whole:  # what is left to be received is that the client goes away
                return await receive()
            alarm = Alarm(until - loop.time())
            try:
                message = await receive()
            except asyncio.CancelledError:
                if alarm.rang:
                    told = f"the body did not arrive within {self._seconds:,} s; {held:,} bytes did"
                    raise BodyTooSlow(told) from None
                raise
            finally:
                alarm.off()
            more = len(message.get("body", b""))
            self._room.take(more)
            held += more
            whole = not message.get("more_body", False)
            return message

        try:
            await self.app(scope, bounded, send)
        finally:
            self._room.give_back(held)
