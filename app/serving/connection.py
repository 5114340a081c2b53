"""A client's connection, with limits that uvicorn lacks: the time and size of a request's head, the time a keep-alive
connection may stay idle, and the number of connections.

     max_connections   2 × max_connections
    answered │ refused with 503 │ closed at once
    ─────────┴──────────────────┴────────────────▶ open connections
"""

import asyncio
import json
import os
from http import HTTPStatus
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.middleware.body_limits import TOO_MANY_CONNECTIONS
from app.telemetry.logs import RequestLog
from app.telemetry.requests import STARTED_AT

MAX_HEAD = 64 << 10  # bytes
_LINGER_S = 1.0  # in which a client that is still sending can read the refusal


class Connection(HttpToolsProtocol):
    """`head_s` runs from a head's first byte, on a new connection from its start, until the head is complete.
    `keep_alive_s` runs from the end of an answer until the next head begins."""

    def __init__(
        self,
        *args: Any,
        head_s: float,
        keep_alive_s: float,
        max_connections: int,
        request_log: RequestLog,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._request_log = request_log
        self._head_s, self._keep_alive_s, self._max_connections = head_s, keep_alive_s, max_connections
        self._tick_s = min(head_s, keep_alive_s)
        self._idle_since = self.loop.time()  # since it connected, or since the last answer
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._head_began = False, 0.0  # when the head's first segment arrived
        self._head_bytes = 0  # of the head; after it, of chunk headers and trailers since the last body bytes
        # Of the current segment: whether a head began in it, and how many of its bytes surely belong to no later head.
        self._head_began_here, self._not_next_head = False, 0
        self._head_without_upgrade = b""  # of a request that asks for an upgrade
        self._refused = False  # further bytes are read and dropped

    @property
    def busy(self) -> bool:
        """Whether one of its requests is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _lacks_body(self) -> bool:
        """Whether the request in flight still waits for a part of its body."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        count = len(self.connections)
        if count > 2 * self._max_connections:
            transport.abort()
            return
        if count > self._max_connections:
            self.app_state = {**self.app_state, TOO_MANY_CONNECTIONS: self._max_connections}
        self._timer = self.loop.call_later(self._tick_s, self._check_timeouts)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser no more than the current head may still have. So a head's bytes are counted correctly,
        however the parser reads them and however they are cut into segments."""
        while not self._refused:
            most = MAX_HEAD - self._head_bytes
            if len(data) <= most:
                self._feed(data)
                return
            self._feed(data[:most])
            data = data[most:]

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client may half-close the connection after its request: answer it, then close."""
        if self._refused or not self.busy or self._lacks_body:
            return None
        self.shutdown()
        return True

    def _feed(self, data: bytes) -> None:
        self._head_began_here, self._not_next_head = False, 0
        began_before = self._in_head
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data, upgrade)
        except httptools.HttpParserError:
            self._malformed()
        if self._in_head or not self._not_next_head:
            self._limit_head(len(data), began_before)

    def _limit_head(self, size: int, began_before: bool) -> None:
        """Called after a segment that ends inside a head, or that contains nothing of a body."""
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += size - self._not_next_head
            if self._head_bytes >= MAX_HEAD:
                self._refuse(431, "head-too-large", f"the request's head is more than the {MAX_HEAD:,} bytes allowed")
            elif self._head_began_here or not began_before:
                self._head_began = self.loop.time()
                self._stop_timer()
                self._timer = self.loop.call_later(self._tick_s, self._check_timeouts)
        elif not (self._head_began_here or began_before) and self._lacks_body:
            self._head_bytes += size  # such as trailers after the last chunk, which the parser keeps in memory
            if self._head_bytes >= MAX_HEAD:
                self._refused = True
                self.transport.close()

    def _ignore_upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade | None) -> None:
        """Graft has no protocol to upgrade to, but the parser stops at the end of a head that asks for one. Feed it
        the head again without the upgrade, and then the rest of the data. CONNECT requests end the connection."""
        rest = memoryview(data)
        while upgrade is not None:
            rest, head, self._head_without_upgrade = rest[upgrade.args[0] :], self._head_without_upgrade, b""
            if not head:
                self._stop_reading()
                return
            began, self._head_began_here = self._head_began_here, False  # do not count this head's bytes twice
            try:
                self.parser.feed_data(head)
                self._head_began_here, upgrade = began, None
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as another:
                upgrade = another
            except httptools.HttpParserError:
                self._malformed()

    def _begin_head(self) -> None:
        """Count the bytes before this head in the segment as not its own. Body bytes are counted as they are parsed; of
        an earlier head only a lower bound is known, because the parser skips spaces."""
        if self._head_began_here:
            headers_size = sum(3 + len(name) + len(value) for name, value in self.headers)
            self._not_next_head += 17 + len(self.url) + headers_size
        self._head_began_here = self._in_head = True
        self._head_bytes = 0

    def on_message_begin(self) -> None:
        self._begin_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self.parser.should_upgrade() and (method := self.parser.get_method()) != b"CONNECT":
            headers = b"".join(b"%s: %s\r\n" % each for each in self.headers if each[0] != b"upgrade")
            version = self.parser.get_http_version().encode()
            self._head_without_upgrade = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, headers)
            return
        self.scope["state"][STARTED_AT] = perf_counter()
        super().on_headers_complete()
        if TOO_MANY_CONNECTIONS in self.app_state:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._not_next_head += len(body)
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._head_without_upgrade:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `_check_timeouts` takes its place
        self._idle_since = self.loop.time()

    def _malformed(self) -> None:
        self._refuse(400, "malformed-request", "malformed HTTP request")

    def _check_timeouts(self) -> None:
        """One timer for the connection's whole life is cheaper than one for each request."""
        now = self.loop.time()
        if self.busy:
            until = now + self._tick_s
        elif self._in_head:
            until = max(self._head_began, self._idle_since) + self._head_s
        else:
            until = self._idle_since + (self._head_s if self.cycle is None else self._keep_alive_s)
        if until > now:
            self._timer = self.loop.call_at(until, self._check_timeouts)
        elif self._in_head:
            self._refuse(408, "head-too-slow", f"the request's head did not arrive within {self._head_s:g} s")
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _stop_reading(self) -> None:
        """Close the connection once the requests in flight have their answers."""
        self._refused = True
        self.shutdown()

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        """Send a problem document and close the connection. If an earlier request still waits for its answer, close
        after that instead. A client can provoke a refusal with a few bytes: the log's lines about them are bounded.

        Closing with unread bytes would reset the connection before the client reads the refusal, so the connection
        reads on for a moment."""
        if self.transport.is_closing():
            return
        client = self.client[0] if self.client else "an unknown address"
        self._request_log.head_refused(client, status=status, problem=kind, detail=detail)
        if self.busy:
            self._stop_reading()
            return
        self._refused = True
        self._stop_timer()
        phrase, own_id = HTTPStatus(status).phrase, os.urandom(16).hex()
        problem = {"type": f"urn:graft:problem:{kind}", "title": phrase, "status": status, "detail": detail}
        body = json.dumps({**problem, "request_id": own_id}).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {own_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGER_S, self.transport.close)
