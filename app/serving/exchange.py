"""One request and its answer: on the fast path, or by uvicorn, which reads the same bytes again.

    head ─▶ recognised? ─▶ complete body within 50 ms? ─▶ FastPath ─▶ answered here
                 └──────────────────┴─────────────────────┴──▶ uvicorn: a protocol of its own for this request

uvicorn is used as it is: its protocol gets an OrdinaryExchange as its transport, and an application that says when the
answer has been sent.
"""

import asyncio
import copy
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.api.fast_path import LEFT, NOT_PLAIN, SLOW_BODY, FastPath, PendingRequest, PlainRequest
from app.errors import QueueFull
from app.serving.reader import Head, Headers
from app.telemetry.requests import STARTED_AT, App, Receive, Scope, Send

_MOMENT_S = 0.05  # in which a body arrives that its client sends right after the head
_CLOSE = (b"connection", b"close")
_ON_ANSWERED = "on_answered"  # in a request's state
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Host(Protocol):
    """The connection on which the exchanges take place."""

    transport: asyncio.Transport
    fast_path: FastPath
    loop: asyncio.AbstractEventLoop

    defaults: "DefaultHeaders"

    def uvicorn_arguments(self) -> tuple[uvicorn.Config, ServerState, dict[str, Any]]: ...

    def become(self, exchange: "OrdinaryExchange") -> None:
        """Replace the exchange under way."""

    def answered(self) -> None: ...

    def pause_reading(self, paused: bool) -> None: ...


class OrdinaryExchange(asyncio.Transport):
    """A request that uvicorn answers; the transport of its protocol."""

    def __init__(self, host: Host, head: Head, since: float, state: dict[str, Any], closes: bool) -> None:
        """With `closes`, its answer ends the connection."""
        super().__init__()
        self._host: Host | None = host
        self.has_begun = False  # to answer
        config, server_state, app_state = host.uvicorn_arguments()
        own = ServerState()
        own.tasks, own.default_headers = server_state.tasks, [*host.defaults.headers, *([_CLOSE] if closes else [])]
        state = {**app_state, STARTED_AT: since, _ON_ANSWERED: self._on_answered, **state}
        self._protocol = HttpToolsProtocol(config, own, state)
        self._protocol.connection_made(self)
        self._protocol.data_received(head.raw)

    def receive(self, body: bytes, complete: bool) -> None:
        """A piece of the body, as it was sent."""
        if body:
            self._protocol.data_received(body)

    def expect_more(self) -> None:
        """The application limits the time that a body takes."""

    def close_after_answer(self) -> None:
        self._protocol.shutdown()

    def disconnect(self) -> None:
        """The client has disconnected."""
        self._host = None
        self._protocol.connection_lost(None)

    def _on_answered(self) -> None:
        host = self._host
        if host is not None:
            self.disconnect()
            host.answered()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # What uvicorn calls; nothing once the exchange is over

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._host is None else self._host.transport.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._host is not None:
            self.has_begun = True
            self._host.transport.write(data)

    def close(self) -> None:
        if self._host is not None:
            self._host.transport.close()

    def is_closing(self) -> bool:
        return self._host is None or self._host.transport.is_closing()

    def pause_reading(self) -> None:
        if self._host is not None:
            self._host.pause_reading(True)

    def resume_reading(self) -> None:
        if self._host is not None:
            self._host.pause_reading(False)


def telling_when_answered(config: uvicorn.Config) -> uvicorn.Config:
    """The same settings for an application that tells an OrdinaryExchange when it has sent its answer."""
    if not config.loaded:
        config.load()
    config = copy.copy(config)
    config.loaded_app = _Telling(config.loaded_app)
    return config


class _Telling:
    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        on_answered = scope["state"].pop(_ON_ANSWERED)

        async def send_and_tell(message: MutableMapping[str, Any]) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                on_answered()

        await self._app(scope, receive, send_and_tell)


class FastExchange:
    """A request that the fast path answers, or gives back."""

    has_begun = False  # it answers all at once
    __slots__ = ("_body", "_closes", "_complete", "_head", "_host", "_pending", "_request", "_since", "_timer")

    def __init__(self, host: Host, head: Head, request: PlainRequest, since: float, closes: bool) -> None:
        self._host: Host | None = host
        self._head, self._request, self._since = head, request, since
        self._body, self._complete, self._closes = b"", False, closes
        self._pending: PendingRequest | None = None
        self._timer: asyncio.TimerHandle | None = None

    def receive(self, body: bytes, complete: bool) -> None:
        self._body = self._body + body if self._body else body
        self._complete = complete
        if complete:
            self._stop_timer()
            self._start()

    def expect_more(self) -> None:
        """The rest of the body has not arrived yet."""
        if self._timer is None and self._host is not None:
            self._timer = self._host.loop.call_later(_MOMENT_S, self._give_back, SLOW_BODY)

    def close_after_answer(self) -> None:
        self._closes = True

    def disconnect(self) -> None:
        if self._pending is not None:
            self._end()
        elif self._host is not None:  # the ordinary path counts and logs it
            self._give_back(LEFT).disconnect()

    def _start(self) -> None:
        host, head = self._host, self._head
        assert host is not None
        try:
            self._pending = host.fast_path.start(
                self._request, head.headers, self._body, client=self, since=self._since
            )
        except QueueFull as full:
            try:
                host.fast_path.refuse(self._request, head.headers, full, client=self, since=self._since)
            except Exception as error:
                if self._host is None:
                    raise
                self._give_back(error)
        except Exception as error:  # the ordinary path runs into it too, and sends it to the client
            self._give_back(error)
        else:
            if self._pending is None:
                self._give_back(NOT_PLAIN)

    def pause_writing(self) -> None:
        """Its answer is written at once."""

    def resume_writing(self) -> None:
        """As above."""

    # Called by the fast path, as its Client

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        host = self._host
        assert host is not None
        parts = [_STATUS_LINES[status], host.defaults.encoded, b"connection: close\r\n" if self._closes else b""]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n", body)
        host.transport.write(b"".join(parts))
        if self._closes:
            host.transport.close()
        self._pending = None
        self._end()
        host.answered()

    def hand_over(self) -> None:
        self._hand_over()

    def _give_back(self, reason: str | Exception) -> OrdinaryExchange:
        assert self._host is not None
        self._host.fast_path.count_handover(reason)
        return self._hand_over()

    def _hand_over(self) -> OrdinaryExchange:
        host = self._host
        assert host is not None
        ordinary = OrdinaryExchange(host, self._head, self._since, {}, closes=self._closes)
        host.become(ordinary)
        ordinary.receive(self._body, self._complete)
        self._pending = None
        self._end()
        return ordinary

    def _end(self) -> None:
        """Frees the body, and breaks the cycles of references."""
        self._stop_timer()
        if self._pending is not None:
            self._pending.disconnect()
        self._host = self._pending = None
        self._body = b""

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class DefaultHeaders:
    """The server's headers of every answer, such as the date, without the `connection: close` with which it says that
    it is draining."""

    def __init__(self) -> None:
        self._all: Headers | None = None
        self.headers: Headers = []
        self.encoded = b""
        self.draining = False

    def update(self, headers: Headers) -> None:
        if headers is not self._all:  # it changes once a second
            self._all = headers
            self.headers = [each for each in headers if each != _CLOSE]
            self.encoded = b"".join(b"%s: %s\r\n" % each for each in self.headers)
            self.draining = len(self.headers) < len(headers)
