"""A client's connection, bounded where the server leaves it to the client: how long a request's head may take to come,
how large it may be, and how many connections there may be.

            most          2 × most
    answered │ turned away  │ closed at once
    ─────────┴──────────────┴───────────────▶ connections
"""

import asyncio
import json
import os
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.middleware.body_limits import CROWDED
from app.telemetry.requests import log

_MOST_HEAD = 64 << 10  # bytes of a head that comes in pieces; what comes at once is bounded by the reading


class Connection(HttpToolsProtocol):
    """`seconds` are counted from the connection, or from the last answer, until a head is whole."""

    def __init__(self, *args: Any, seconds: float, most: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self._seconds, self._most = seconds, most
        self._since = self.loop.time()  # when it connected, or was answered last
        self._look_again: asyncio.TimerHandle | None = None
        self._in_head, self._head = False, 0  # bytes of it

    @property
    def busy(self) -> bool:
        """Whether a request of it is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        there = len(self.connections)
        if there > 2 * self._most:
            transport.abort()
            return
        if there > self._most:
            self.app_state = {**self.app_state, CROWDED: self._most}
        self._look_again = self.loop.call_later(self._seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        began_before = self._in_head
        super().data_received(data)
        if began_before and self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self._refuse(431, "head-too-large", f"the request's head is more than the {_MOST_HEAD:,} bytes allowed")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head = True, 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head = False
        if CROWDED in self.app_state:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed-request", "this is not HTTP as it should be")

    def _look(self) -> None:
        """One timer for the connection's whole life: setting one for each request would cost them all."""
        until = self.loop.time() + self._seconds if self.busy else self._since + self._seconds
        if until > self.loop.time():
            self._look_again = self.loop.call_at(until, self._look)
        elif self._in_head:
            self._refuse(408, "head-too-slow", f"the request's head did not arrive within {self._seconds:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        """In the shape of every other refusal, and the end of the connection. Where an answer is still due to an
        earlier request, it ends after that instead."""
        if self.busy:
            self.shutdown()
            return
        phrase, own = HTTPStatus(status).phrase, os.urandom(16).hex()
        log.info("%s was answered %d: %s", self.client[0] if self.client else "a client", status, detail)
        told = {"type": f"urn:graft:problem:{kind}", "title": phrase, "status": status, "detail": detail}
        body = json.dumps({**told, "request_id": own}).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {own}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
