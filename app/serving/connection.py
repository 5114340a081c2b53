"""A client's connection, bounded where the server leaves it to the client: how long a request's head may take to come,
how large it may be, how long nothing may be asked, and how many connections there may be.

            most          2 × most
    answered │ turned away  │ closed at once
    ─────────┴──────────────┴───────────────▶ connections
"""

import asyncio
import json
import os
from http import HTTPStatus
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.middleware.body_limits import CROWDED
from app.telemetry.logs import log
from app.telemetry.requests import STARTED_AT

MOST_HEAD = 64 << 10  # bytes
_LINGER_S = 1.0  # in which a client that is still sending reads why it was refused


class Connection(HttpToolsProtocol):
    """`head_s` are counted from a head's first byte, of a new connection from its beginning, until the head is whole;
    `keep_alive_s` from an answer's last byte until the next head begins."""

    def __init__(self, *args: Any, head_s: float, keep_alive_s: float, most: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_s, self._keep_alive_s, self._most = head_s, keep_alive_s, most
        self._tick_s = min(head_s, keep_alive_s)
        self._since = self.loop.time()  # when it connected, or was answered last
        self._look_again: asyncio.TimerHandle | None = None
        self._in_head, self._head_began = False, 0.0  # when its first segment came
        self._head = 0  # bytes of it, or since the last that were of a body
        # Of the segment that is being read: whether a head began in it, and bytes that are surely of no later head.
        self._began, self._elsewhere = False, 0
        self._plain_head = b""  # of a request that asks for an upgrade: its head without that
        self._refused = False  # what still comes is read and dropped

    @property
    def busy(self) -> bool:
        """Whether a request of it is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _lacks_body(self) -> bool:
        """Whether a part of a body is still to come that somebody waits for."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        there = len(self.connections)
        if there > 2 * self._most:
            transport.abort()
            return
        if there > self._most:
            self.app_state = {**self.app_state, CROWDED: self._most}
        self._look_again = self.loop.call_later(self._tick_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_looking()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """No piece that is read is larger than what the head under way may still have: whatever the parser makes of
        it, the head's own bytes are counted, however they are cut into segments."""
        while not self._refused:
            most = MOST_HEAD - self._head
            if len(data) <= most:
                self._read(data)
                return
            self._read(data[:most])
            data = data[most:]

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client may close its half of the connection once it has asked: it is answered, and the connection ends."""
        if self._refused or not self.busy or self._lacks_body:
            return None
        self.shutdown()
        return True

    def _read(self, data: bytes) -> None:
        self._began, self._elsewhere = False, 0
        began_before = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_on(data, upgrade)
        except httptools.HttpParserError:
            self._malformed()
        if self._in_head or not self._elsewhere:
            self._bound(len(data), began_before)

    def _bound(self, size: int, began_before: bool) -> None:
        """Of a segment that ended within a head, or in which there was nothing of a body."""
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._head += size - self._elsewhere
            if self._head >= MOST_HEAD:
                self._refuse(431, "head-too-large", f"the request's head is more than the {MOST_HEAD:,} bytes allowed")
            elif self._began or not began_before:
                self._head_began = self.loop.time()
                self._stop_looking()
                self._look_again = self.loop.call_later(self._tick_s, self._look)
        elif not (self._began or began_before) and self._lacks_body:
            self._head += size  # headers after the last chunk, say, which the parser keeps
            if self._head >= MOST_HEAD:
                self._refused = True
                self.transport.close()

    def _read_on(self, data: bytes, upgrade: httptools.HttpParserUpgrade | None) -> None:
        """There is no other protocol to upgrade to. The parser takes what follows such a head for the other protocol's:
        it gets the head again without the upgrade, and then what follows. CONNECT is no request of ours at all."""
        rest = memoryview(data)
        while upgrade is not None:
            rest, head, self._plain_head = rest[upgrade.args[0] :], self._plain_head, b""
            if not head:
                self._hear_no_more()
                return
            began, self._began = self._began, False  # its bytes came once
            try:
                self.parser.feed_data(head)
                self._began, upgrade = began, None
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            except httptools.HttpParserError:
                self._malformed()

    def _count_from_here(self) -> None:
        """A head begins: what lies before it in this segment is not its own. Bodies are counted as they are read; of a
        head, what is surely there, as the parser skips spaces."""
        if self._began:
            self._elsewhere += 17 + len(self.url) + sum(3 + len(name) + len(value) for name, value in self.headers)
        self._began = self._in_head = True
        self._head = 0

    def on_message_begin(self) -> None:
        self._count_from_here()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head = False, 0
        if self.parser.should_upgrade() and (method := self.parser.get_method()) != b"CONNECT":
            headers = b"".join(b"%s: %s\r\n" % each for each in self.headers if each[0] != b"upgrade")
            version = self.parser.get_http_version().encode()
            self._plain_head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, headers)
            return
        self.scope["state"][STARTED_AT] = perf_counter()
        super().on_headers_complete()
        if CROWDED in self.app_state:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._elsewhere += len(body)
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._plain_head:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `_look` sees to it
        self._since = self.loop.time()

    def _malformed(self) -> None:
        self.logger.warning("Invalid HTTP request received.")
        self._refuse(400, "malformed-request", "this is not HTTP as it should be")

    def _look(self) -> None:
        """One timer for the connection's whole life: setting one for each request would cost them all."""
        now = self.loop.time()
        if self.busy:
            until = now + self._tick_s
        elif self._in_head:
            until = max(self._head_began, self._since) + self._head_s
        else:
            until = self._since + (self._head_s if self.cycle is None else self._keep_alive_s)
        if until > now:
            self._look_again = self.loop.call_at(until, self._look)
        elif self._in_head:
            self._refuse(408, "head-too-slow", f"the request's head did not arrive within {self._head_s:g} s")
        else:
            self.transport.close()

    def _stop_looking(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()

    def _hear_no_more(self) -> None:
        """The connection ends after the answers that are due."""
        self._refused = True
        self.shutdown()

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        """In the shape of every other refusal, and the end of the connection. Where an answer is still due to an
        earlier request, it ends after that instead.

        Closing with bytes unread would reset the connection, and take the answer along: they are read for a moment."""
        if self.busy:
            self._hear_no_more()
            return
        if self.transport.is_closing():
            return
        self._refused = True
        self._stop_looking()
        phrase, own = HTTPStatus(status).phrase, os.urandom(16).hex()
        log.info("%s was answered %d: %s", self.client[0] if self.client else "a client", status, detail)
        told = {"type": f"urn:graft:problem:{kind}", "title": phrase, "status": status, "detail": detail}
        body = json.dumps({**told, "request_id": own}).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {own}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self._look_again = self.loop.call_later(_LINGER_S, self.transport.close)
