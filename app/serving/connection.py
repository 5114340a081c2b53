"""A client's connection: answers its requests one after another, within limits that uvicorn lacks: the time and size of
a request's head, the time a keep-alive connection may stay idle, and the number of connections.

     max_connections   2 × max_connections
    answered │ refused with 503 │ closed at once
    ─────────┴──────────────────┴────────────────▶ open connections
"""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from app.api.fast_path import FastPath, PlainRequest
from app.api.middleware.body_limits import TOO_MANY_CONNECTIONS
from app.serving.exchange import DefaultHeaders, FastExchange, OrdinaryExchange, telling_when_answered
from app.serving.reader import MAX_HEAD, Head, Malformed, Reader, TooLarge

_LINGER_S, _LINGER_BYTES = 1.0, 1 << 20  # in which a client that is still sending can read the refusal
_LONG_QUEUE_S = 1.0  # a client that half-closes its connection during a longer wait has more likely disconnected


@dataclass
class _Service:
    """What all connections have in common."""

    fast_path: FastPath
    head_s: float
    keep_alive_s: float
    max_connections: int
    defaults: DefaultHeaders = field(default_factory=DefaultHeaders)
    config: uvicorn.Config | None = None

    def connection(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "Connection":
        """Called by uvicorn."""
        if self.config is None:
            self.config = telling_when_answered(config)
        return Connection(self, self.config, server_state, app_state)


class Connection(asyncio.Protocol):
    """`head_s` runs from a head's first byte, on a new connection from its start, until the head is complete.
    `keep_alive_s` runs from the end of an answer until the next head begins."""

    transport: asyncio.Transport

    def __init__(
        self, service: _Service, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        self.fast_path, self.defaults, self.loop = service.fast_path, service.defaults, asyncio.get_running_loop()
        self._service, self._config, self._server_state, self._app_state = service, config, server_state, app_state
        self._tick_s = min(service.head_s, service.keep_alive_s)
        self._reader = Reader()
        self._exchange: FastExchange | OrdinaryExchange | None = None
        self._reading = False  # inside `_read`, which is not entered twice
        self._idle_since = self.loop.time()  # since it connected, or since the last answer
        self._head_began: float | None = None  # when the first segment of an incomplete head arrived
        self._is_new = self._is_answered = True  # without a request so far; its last request has its answer
        self._timer: asyncio.TimerHandle | None = None
        self._too_many = self._stopping = False
        self._refused, self._dropped = False, 0  # further bytes are read and dropped, so many so far
        self._writing_paused = self._exchange_paused = self._reading_paused = False

    @property
    def busy(self) -> bool:
        """Whether one of its requests is being read or answered."""
        return self._exchange is not None

    def shutdown(self) -> None:
        """Close the connection, after the answers to the requests that have arrived."""
        self._stopping = True
        if self._exchange is None:
            self.transport.close()
        elif not self._reader.has_unread_head:
            self._exchange.close_after_answer()

    # Called by the event loop

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        connections, most = self._server_state.connections, self._service.max_connections
        connections.add(self)  # type: ignore[arg-type]  # uvicorn's set names its own classes
        if len(connections) > 2 * most:
            transport.abort()
            return
        self._too_many = len(connections) > most
        self._timer = self.loop.call_later(self._tick_s, self._check_timeouts)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._stop_timer()
        if self._exchange is not None:
            self._exchange.disconnect()
            self._exchange = None
        self._reader.close()

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            self._reader.add(data)
            self._read()
            return
        self._dropped += len(data)
        if self._dropped > _LINGER_BYTES:
            self.transport.close()

    def eof_received(self) -> bool | None:
        """A client may half-close the connection after its request: answer it, then close. One that has disconnected
        looks the same. While the queue is long, assume that it has disconnected and drop its work."""
        if self._refused or not self.busy or not self._reader.complete or self.fast_path.wait_s > _LONG_QUEUE_S:
            return None
        self.shutdown()
        return True

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._exchange is not None:
            self._exchange.pause_writing()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._exchange is not None:
            self._exchange.resume_writing()
        else:
            self._read()

    # Reading

    def _read(self) -> None:
        """Read what has arrived, one request at a time: the next one waits until this one is answered."""
        if self._reading:
            return
        self._reading = True
        try:
            while not (self._refused or self.transport.is_closing()) and self._read_some():
                pass
        except Malformed:
            self._refuse(400, "malformed-request", "malformed HTTP request")
        except TooLarge:
            self._refuse(431, "head-too-large", f"the request's head is more than the {MAX_HEAD:,} bytes allowed")
        finally:
            self._reading = False
        if self._exchange is not None and not self._reader.complete:
            self._exchange.expect_more()
        if self._head_began is not None or self._reader.in_head:
            self._limit_head()
        if self._reading_paused or self._reader.has_unread:
            self._regulate_reading()

    def _read_some(self) -> bool:
        """Whether there was anything to read, and a place for it."""
        reader = self._reader
        if not reader.complete:
            body = reader.read_body()
            if self._exchange is not None:  # else the answer did not wait for the body
                self._exchange.receive(body, reader.complete)
            return bool(body) and reader.has_unread
        if self._exchange is not None or self._writing_paused:
            return False
        head = reader.read_head()
        if head is None:
            return False
        self._head_began, self._is_new, self._is_answered = None, False, False
        self._begin(head)
        return True

    def _begin(self, head: Head) -> None:
        since = perf_counter()
        defaults = self.defaults
        defaults.update(self._server_state.default_headers)
        request = self._recognise(head)
        is_last = (self._stopping or defaults.draining) and not self._reader.has_unread_head
        closes = not head.keep_alive or self._too_many or is_last
        if request is not None:
            self._exchange = FastExchange(self, head, request, since, closes=closes)
        else:
            head.require_valid_target()
            state = {TOO_MANY_CONNECTIONS: self._service.max_connections} if self._too_many else {}
            self._exchange = OrdinaryExchange(self, head, since, state, closes=closes)
        if self._reader.complete:
            self._exchange.receive(b"", True)

    def _recognise(self, head: Head) -> PlainRequest | None:
        if head.method != b"POST" or head.version != "1.1" or self._too_many:
            return None
        try:
            return self.fast_path.recognise(head.target, head.headers)
        except Exception as error:
            self.fast_path.count_handover(error)
            return None

    def _limit_head(self) -> None:
        if not self._reader.in_head:
            self._head_began = None
        elif self._head_began is None:
            self._head_began = self.loop.time()
            self._stop_timer()
            self._timer = self.loop.call_later(self._tick_s, self._check_timeouts)

    def _regulate_reading(self) -> None:
        """Pause while requests wait for the one under way, or while uvicorn has enough of a body."""
        waits = self._exchange is not None or self._writing_paused
        paused = not self._refused and (self._exchange_paused or (waits and self._reader.has_unread))
        if paused != self._reading_paused and not self.transport.is_closing():
            self._reading_paused = paused
            if paused:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # Called by the exchange under way

    def uvicorn_arguments(self) -> tuple[uvicorn.Config, ServerState, dict[str, Any]]:
        return self._config, self._server_state, self._app_state

    def become(self, exchange: OrdinaryExchange) -> None:
        self._exchange = exchange

    def pause_reading(self, paused: bool) -> None:
        self._exchange_paused = paused
        self._regulate_reading()

    def answered(self) -> None:
        self._exchange, self._exchange_paused, self._is_answered = None, False, True
        self._server_state.total_requests += 1
        self._idle_since = self.loop.time()
        if self._reader.has_unread or self._reading_paused or not self._reader.complete:
            self._read()

    # Limits

    def _check_timeouts(self) -> None:
        """One timer for the connection's whole life is cheaper than one for each request."""
        now, service = self.loop.time(), self._service
        if self.busy:
            until = now + self._tick_s
        elif self._head_began is not None:
            until = self._head_began + service.head_s
        else:
            until = self._idle_since + (service.head_s if self._is_new else service.keep_alive_s)
        if until > now:
            self._timer = self.loop.call_at(until, self._check_timeouts)
        elif self._head_began is not None:
            self._refuse(408, "head-too-slow", f"the request's head did not arrive within {service.head_s:g} s")
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        """Send a problem document and close the connection. A client can provoke a refusal with a few bytes: the log's
        lines about them are bounded.

        Closing with unread bytes would reset the connection before the client reads the refusal, so the connection
        reads on for a moment."""
        if self._refused or self.transport.is_closing():
            return
        address = self.transport.get_extra_info("peername")
        client = address[0] if isinstance(address, tuple) else "an unknown address"
        self.fast_path.request_log.head_refused(client, status=status, problem=kind, detail=detail)
        self._refused = True
        self._stop_timer()
        exchange, self._exchange = self._exchange, None
        has_begun = not self._reader.complete and self._is_answered
        if exchange is not None:  # its body turned out to be malformed
            has_begun = exchange.has_begun
            exchange.disconnect()
        if has_begun:  # a second answer would be taken for that to the next request
            self.transport.close()
            return
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


def connection_factory(
    fast_path: FastPath, head_s: float, keep_alive_s: float, max_connections: int
) -> Callable[..., Connection]:
    """uvicorn's `http` setting: called with its arguments for each new connection."""
    return _Service(fast_path, head_s, keep_alive_s, max_connections).connection
