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

HEADER, TIMING = b"x-request-id", b"server-timing"
STARTED_AT = "started_at"  # in a request's state: when it began, by perf_counter, where that was elsewhere
DEADLINE_PASSED = "deadline_passed"  # the same: (error, RequestRecord) of one whose time passed elsewhere
CLIENT_DISCONNECTED = 499  # nobody was there to be answered; nginx' number for it
_ACCEPTABLE = re.compile(rb"[!-~]{1,128}")  # a caller's own id is kept when it is short and printable
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(slots=True)
class RequestRecord:
    """One request's record: whoever learns something fills it in, and the middleware counts, logs and tells of it.

    Times are seconds; None is not known.
    """

    operation: str | None = None  # where the route's path does not say it
    model: str | None = None  # of a loaded bundle, never what the client wrote
    version: int | None = None
    images: int | None = None
    body_read: float | None = None  # when its last byte had come, by perf_counter
    queue_s: float | None = None
    decode_s: float | None = None
    run_s: float | None = None
    problem: str | None = None  # as its type ends
    trace_id: str | None = None

    def timing(self, total_s: float) -> bytes:
        """The Server-Timing header."""
        queue, decode, run = self.queue_s, self.decode_s, self.run_s
        if queue is not None and decode is not None and run is not None:  # most, and at half the cost
            times = (1000 * queue, 1000 * decode, 1000 * run, 1000 * total_s)
            return b"queue;dur=%.3f, decode;dur=%.3f, run;dur=%.3f, total;dur=%.3f" % times
        parts = (("queue", queue), ("decode", decode), ("run", run), ("total", total_s))
        return ", ".join(f"{name};dur={s * 1000:.3f}" for name, s in parts if s is not None).encode()


request_id: ContextVar[str] = ContextVar("request_id", default="-")
_record: ContextVar[RequestRecord | None] = ContextVar("record", default=None)


def current_record() -> RequestRecord:
    """Of the request that is being answered; outside of one, a record that nobody reads."""
    return _record.get() or RequestRecord()


class Requests:
    """Every request has an id, the caller's X-Request-ID or a new one, and a record; every answer carries the id."""

    def __init__(self, app: App, on_finished: Callable[[Scope, RequestRecord, int, float], None]) -> None:
        self.app, self._on_finished = app, on_finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = scope.get("state", {}).get(STARTED_AT) or perf_counter(), CLIENT_DISCONNECTED
        own, trace_id = identify(scope["headers"])
        record = RequestRecord(trace_id=trace_id)
        _enter(own, record)

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timing = record.timing(perf_counter() - start)
                message["headers"] = [*message.get("headers", ()), (HEADER, own), (TIMING, timing)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._on_finished(scope, record, status, perf_counter() - start)


def in_context(own: bytes, record: RequestRecord, work: Callable[..., Result], *arguments: Any) -> Result:
    """Does the work in a context of that request, where no task has one."""

    def entered() -> Result:
        _enter(own, record)
        return work(*arguments)

    return Context().run(entered)


def _enter(own: bytes, record: RequestRecord) -> None:
    """Of the context that calls, from now on."""
    request_id.set(own.decode())
    _record.set(record)


def identify(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, str | None]:
    """(request id, W3C trace id); more than one traceparent is none."""
    given, parents = b"", []
    for name, value in headers:
        if name == HEADER:
            given = given or value
        elif name == b"traceparent":
            parents.append(value)
    own = given if _ACCEPTABLE.fullmatch(given) else os.urandom(16).hex().encode()
    found = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if found is None or (found[2] and found[0].startswith(b"00")):  # only later versions may say more
        return own, None
    return own, found[1].decode()
