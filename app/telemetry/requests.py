"""A request while it runs: its id, its trace id, and the record that is filled in on the way.

A leaf: pure ASGI and the standard library.
"""

import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Context, ContextVar
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Result = TypeVar("Result")

HEADER, TIMING, TRACE = b"x-request-id", b"server-timing", b"traceresponse"
STARTED_AT = "started_at"  # in a request's state: perf_counter() at the end of its head
CLIENT_DISCONNECTED = 499  # nginx uses this status too
_ACCEPTABLE = re.compile(rb"[!-~]{1,128}")  # a client's own id is kept if it is short and printable
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(slots=True)
class RequestRecord:
    """The facts of one request. Handlers fill them in; metrics, log and Server-Timing use them.

    Times are in seconds; None means unknown.
    """

    operation: str | None = None  # if the route's path does not end with it
    model: str | None = None  # name of a loaded bundle, never the client's text
    version: int | None = None
    images: int | None = None
    body_read: float | None = None  # perf_counter() when the last byte of the body arrived
    queue_s: float | None = None
    decode_s: float | None = None
    run_s: float | None = None
    problem: str | None = None  # last part of the problem's type, such as not-an-image
    trace_id: str | None = None
    ran_at: float | None = None  # perf_counter() when the results were there
    span: Any = None  # of app.telemetry.spans, where requests are traced
    traceresponse: bytes | None = None  # likewise: W3C's header for the answer

    def ran(self, queue_s: float, decode_s: float, run_s: float) -> None:
        """The results are there."""
        self.queue_s, self.decode_s, self.run_s, self.ran_at = queue_s, decode_s, run_s, perf_counter()

    def timing(self, total_s: float) -> bytes:
        """The Server-Timing header."""
        queue, decode, run = self.queue_s, self.decode_s, self.run_s
        if (
            queue is not None and decode is not None and run is not None
        ):  # the most frequent case, at half the cost of the general one
            times = (1000 * queue, 1000 * decode, 1000 * run, 1000 * total_s)
            return b"queue;dur=%.3f, decode;dur=%.3f, run;dur=%.3f, total;dur=%.3f" % times
        parts = (("queue", queue), ("decode", decode), ("run", run), ("total", total_s))
        return ", ".join(f"{name};dur={s * 1000:.3f}" for name, s in parts if s is not None).encode()


request_id: ContextVar[str] = ContextVar("request_id", default="-")
_record: ContextVar[RequestRecord | None] = ContextVar("record", default=None)


def current_record() -> RequestRecord:
    """The record of the current request; outside a request, a new one that nobody reads."""
    return _record.get() or RequestRecord()


def begin_untraced(_: list[tuple[bytes, bytes]], trace_id: str | None) -> RequestRecord:
    return RequestRecord(trace_id=trace_id)


Begin = Callable[[list[tuple[bytes, bytes]], str | None], RequestRecord]  # headers, trace id → the request's record


class Requests:
    """Middleware that gives each request a record and an id: its X-Request-ID or a new one. Every answer has the id."""

    def __init__(
        self, app: App, on_finished: Callable[[Scope, RequestRecord, int, float], None], begin: Begin = begin_untraced
    ) -> None:
        self.app, self._on_finished, self._begin = app, on_finished, begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = scope.get("state", {}).get(STARTED_AT) or perf_counter(), CLIENT_DISCONNECTED
        own_id, trace_id = identify(scope["headers"])
        record = self._begin(scope["headers"], trace_id)
        set_context(own_id, record)

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timing = record.timing(perf_counter() - start)
                message["headers"] = [*message.get("headers", ()), (HEADER, own_id), (TIMING, timing)]
                if record.traceresponse is not None:
                    message["headers"].append((TRACE, record.traceresponse))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._on_finished(scope, record, status, perf_counter() - start)


def in_context(own_id: bytes, record: RequestRecord, work: Callable[..., Result], *arguments: Any) -> Result:
    """Calls `work` in a new context with the request's id and record. For requests that run in no task."""

    def entered() -> Result:
        set_context(own_id, record)
        return work(*arguments)

    return Context().run(entered)


def set_context(own_id: bytes, record: RequestRecord) -> None:
    """Sets id and record in the current context."""
    request_id.set(own_id.decode())
    _record.set(record)


def identify(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, str | None]:
    """(request id, W3C trace id). Two traceparent headers count as none."""
    client_id, parents = b"", []
    for name, value in headers:
        if name == HEADER:
            client_id = client_id or value
        elif name == b"traceparent":
            parents.append(value)
    own_id = client_id if _ACCEPTABLE.fullmatch(client_id) else os.urandom(16).hex().encode()
    match = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if match is None or (match[2] and match[0].startswith(b"00")):  # only later versions may have more fields
        return own_id, None
    return own_id, match[1].decode()
