"""A connection that answers plain requests where their bytes arrive, without the messages of an ASGI application.

    head ─▶ recognised? ─▶ complete body within 50 ms? ─▶ FastPath ─▶ answered here
                 └──────────────────┴─────────────────────┴──▶ the ordinary path, as in uvicorn: scope, cycle, task

Answers on one connection keep their order: while a request is in flight here, the next one is read by uvicorn and
waits in its pipeline, as it would behind any other request.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.fast_path import LEFT, NOT_PLAIN, SLOW_BODY, FastPath, Headers, PendingRequest, PlainRequest
from app.api.middleware.body_limits import TOO_MANY_CONNECTIONS
from app.errors import DeadlinePassed, QueueFull
from app.serving.connection import Connection
from app.telemetry.requests import DEADLINE_PASSED, STARTED_AT, RequestRecord

_MOMENT_S = 0.05  # in which a body arrives that its client sends right after the head
_LONG_QUEUE_S = 1.0  # a client that half-closes its connection during a longer wait has more likely disconnected


class FastConnection(Connection):
    def __init__(self, *args: Any, fast_path: FastPath, default_headers: "_DefaultHeaders", **options: Any) -> None:
        super().__init__(*args, **options)
        self._fast_path, self._default_headers = fast_path, default_headers
        self._request: PlainRequest | None = None  # recognised; its body is still arriving
        self._request_at = 0.0  # when its head was complete, by perf_counter
        self._body = b""
        self._body_timer: asyncio.TimerHandle | None = None
        self._in_flight: _FastCycle | None = None

    @property
    def busy(self) -> bool:
        return self._request is not None or super().busy

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._request is not None and self._body_timer is None:
            self._body_timer = self.loop.call_later(_MOMENT_S, self._hand_over_unstarted, SLOW_BODY, True)

    @property
    def _lacks_body(self) -> bool:
        return self._request is not None or super()._lacks_body

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has disconnected looks like one that has half-closed. While the queue is long, assume that it
        has disconnected and drop its work."""
        return None if self._fast_path.wait_s > _LONG_QUEUE_S else super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._request is not None:
            self._hand_over_unstarted(LEFT, more_body=True)
        cycle, self._in_flight = self._in_flight, None
        if cycle is not None:
            cycle.disconnect()
        super().connection_lost(exc)
        if isinstance(self.cycle, _FastCycle):  # it refers to this connection: break the cycle of references
            self.cycle = None

    def shutdown(self) -> None:
        if self._request is not None:
            self._hand_over_unstarted(LEFT, more_body=True)
        super().shutdown()

    # Parser callbacks

    def on_message_begin(self) -> None:
        """Leaves out uvicorn's scope, which only the ordinary path needs."""
        self._begin_head()
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        if (
            self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and TOO_MANY_CONNECTIONS not in self.app_state
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        ):
            try:
                self._request = self._fast_path.recognise(self.url, self.headers)
            except Exception as error:
                self._fast_path.count_handover(error)
        if self._request is not None:
            self._in_head, self._head_bytes, self._request_at = False, 0, perf_counter()
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)  # resets all three
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._request is None:
            super().on_body(body)
        else:
            self._not_next_head += len(body)
            self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        request = self._request
        if request is None:
            super().on_message_complete()
            return
        cycle = _FastCycle(self, url=self.url, headers=self.headers, body=self._body, since=self._request_at)
        queue_full: QueueFull | None = None
        try:
            cycle.pending = self._fast_path.start(
                request, self.headers, self._body, client=cycle, since=self._request_at
            )
        except QueueFull as error:
            queue_full = error
        except Exception as error:  # the ordinary path runs into it too, and sends it to the client
            self._hand_over_unstarted(error, more_body=False)
            return
        if cycle.pending is None and queue_full is None:
            self._hand_over_unstarted(NOT_PLAIN, more_body=False)
            return
        self._clear_request()
        self.cycle = self._in_flight = cycle  # type: ignore[assignment]  # has all that uvicorn uses of its own
        if queue_full is not None:
            try:
                self._fast_path.refuse(request, self.headers, queue_full, client=cycle, since=self._request_at)
            except Exception as error:
                self._fast_path.count_handover(error)
                if not cycle.response_complete:
                    self.hand_over(cycle, None, RequestRecord())

    def _hand_over_unstarted(self, reason: str | Exception, more_body: bool) -> None:
        """Give the request so far to the ordinary path."""
        self._fast_path.count_handover(reason)
        url, headers, body = self.url, self.headers, self._body
        self._clear_request()
        self.cycle = self._start_app(url, headers, body, more_body=more_body, state={STARTED_AT: self._request_at})

    def _clear_request(self) -> None:
        self._request, self._body = None, b""
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _start_app(
        self, url: bytes, headers: Headers, body: bytes, more_body: bool, state: dict[str, Any]
    ) -> RequestResponseCycle:
        """What uvicorn does with a request. A recognised one has a plain path, HTTP/1.1 and keep-alive."""
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": self.root_path,
            "path": self.root_path + url.decode("ascii"),
            "raw_path": self.root_path.encode("ascii") + url,
            "query_string": b"",
            "headers": headers,
            "state": self.app_state | state,
        }
        cycle = RequestResponseCycle(
            scope=scope,  # type: ignore[arg-type]
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        cycle.body += body
        cycle.more_body = more_body
        if body or not more_body:
            cycle.message_event.set()
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return cycle

    # Called by the cycle in flight

    def answer(self, cycle: "_FastCycle", status: int, headers: Headers, body: bytes) -> None:
        self._in_flight = None
        default_headers, has_close = self._default_headers.encoded(cycle.default_headers)
        closes = has_close or not cycle.keep_alive
        parts = [STATUS_LINE[status], default_headers]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        if closes and not has_close:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))
        cycle.complete()
        if closes:
            self.transport.close()
        if closes or self.pipeline:
            self.on_response_complete()
        else:  # a cheaper form of the same; `_check_timeouts` ends idle connections
            self.server_state.total_requests += 1
            self._idle_since = self.loop.time()

    def hand_over(self, cycle: "_FastCycle", error: DeadlinePassed | None, record: RequestRecord) -> None:
        self._in_flight = None
        state: dict[str, Any] = {STARTED_AT: cycle.since} | (
            {} if error is None else {DEADLINE_PASSED: (error, record)}
        )
        ordinary = self._start_app(cycle.url, cycle.headers, cycle.body, more_body=False, state=state)
        ordinary.keep_alive = cycle.keep_alive
        cycle.complete()
        if self.cycle is cycle:  # type: ignore[comparison-overlap]
            self.cycle = ordinary


class _FastCycle:
    """A request in flight on the fast path. It takes the place of uvicorn's RequestResponseCycle."""

    __slots__ = (
        "body", "connection", "default_headers", "disconnected", "headers", "keep_alive", "pending",
        "response_complete", "since", "url",
    )  # fmt: skip
    message_event = asyncio.Event()  # uvicorn sets it; nobody waits for it
    more_body = False

    def __init__(self, connection: FastConnection, url: bytes, headers: Headers, body: bytes, since: float) -> None:
        self.connection, self.url, self.headers, self.body, self.since = connection, url, headers, body, since
        # Those of now, as in uvicorn: while the server drains, later requests get `connection: close`.
        self.default_headers = connection.server_state.default_headers
        self.pending: PendingRequest | None = None
        self.response_complete, self.keep_alive, self.disconnected = False, True, False

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.connection.answer(self, status, headers, body)

    def hand_over(self, error: DeadlinePassed | None, record: RequestRecord) -> None:
        self.connection.hand_over(self, error, record)

    def disconnect(self) -> None:
        if self.pending is not None:
            self.pending.disconnect()

    def complete(self) -> None:
        """Frees the body: the connection keeps its last cycle until the next request."""
        self.response_complete, self.pending, self.headers, self.body = True, None, [], b""


class _DefaultHeaders:
    """Caches the encoded form of the headers that the server adds to all answers; they change once a second."""

    def __init__(self) -> None:
        self._headers: Headers | None = None
        self._encoded: tuple[bytes, bool] = b"", False

    def encoded(self, headers: Headers) -> tuple[bytes, bool]:
        """(encoded headers, whether they contain `connection: close`)"""
        if headers is not self._headers:
            self._headers = headers
            encoded = b"".join(b"%s: %s\r\n" % each for each in headers)
            self._encoded = encoded, (b"connection", b"close") in headers
        return self._encoded


def connection_factory(
    fast_path: FastPath, head_s: float, keep_alive_s: float, max_connections: int
) -> Callable[..., FastConnection]:
    """uvicorn's `http` setting: called with its arguments for each new connection."""
    return partial(
        FastConnection,
        head_s=head_s,
        keep_alive_s=keep_alive_s,
        max_connections=max_connections,
        request_log=fast_path.request_log,
        fast_path=fast_path,
        default_headers=_DefaultHeaders(),
    )
