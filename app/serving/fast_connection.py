"""A connection that has plain requests answered where their bytes arrive, without an application's messages in between.

    head ─▶ recognised? ─▶ body, whole within a moment? ─▶ Hot ─▶ answered here
                 └──────────────────┴───────────────────────┴──▶ as uvicorn does it: scope, cycle, task

Answers on one connection keep their order: while a request is under way here, what is asked after it waits, as it would
for any other.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.fast_path import LEFT, NOT_PLAIN, SLOW_BODY, Asked, Asking, Headers, Hot
from app.api.middleware.body_limits import CROWDED
from app.errors import DeadlinePassed, QueueFull
from app.serving.connection import Connection
from app.telemetry.requests import DEADLINE_PASSED, STARTED_AT, RequestRecord

_MOMENT_S = 0.05  # in which a body comes that its client sends after the head, by itself
_LONG_S = 1.0  # of a queue; a client that closes its half while it is longer has more likely left than asked


class HotConnection(Connection):
    def __init__(self, *args: Any, hot: Hot, usual: "_Usual", **named: Any) -> None:
        super().__init__(*args, **named)
        self._hot, self._usual = hot, usual
        self._asked: Asked | None = None  # whose body is still coming
        self._asked_at = 0.0  # when its head was whole, by perf_counter
        self._body = b""
        self._moment: asyncio.TimerHandle | None = None
        self._turn: _Turn | None = None  # that is under way

    @property
    def busy(self) -> bool:
        return self._asked is not None or super().busy

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._asked is not None and self._moment is None:
            self._moment = self.loop.call_later(_MOMENT_S, self._hand_on, SLOW_BODY, True)

    @property
    def _lacks_body(self) -> bool:
        return self._asked is not None or super()._lacks_body

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has left says no more than one that has closed its half. While others wait for long, the work
        of who has left must not be done: his is dropped."""
        return None if self._hot.wait_s > _LONG_S else super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked is not None:
            self._hand_on(LEFT, more=True)
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.leave()
        super().connection_lost(exc)
        if isinstance(self.cycle, _Turn):  # which holds this in turn
            self.cycle = None

    def shutdown(self) -> None:
        if self._asked is not None:
            self._hand_on(LEFT, more=True)
        super().shutdown()

    # Parser callbacks

    def on_message_begin(self) -> None:
        """The scope is made where it is needed."""
        self._count_from_here()
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        if (
            self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and CROWDED not in self.app_state
            and not self.flow.write_paused
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        ):
            try:
                self._asked = self._hot.recognised(self.url, self.headers)
            except Exception as error:
                self._hot.handed_over(error)
        if self._asked is not None:
            self._in_head, self._head, self._asked_at = False, 0, perf_counter()
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._asked is None:
            super().on_body(body)
        else:
            self._elsewhere += len(body)
            self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        asked = self._asked
        if asked is None:
            super().on_message_complete()
            return
        turn = _Turn(self, self.url, self.headers, self._body, self._asked_at)
        full: QueueFull | None = None
        try:
            turn.asking = self._hot.ask(asked, self.headers, self._body, turn, self._asked_at)
        except QueueFull as error:
            full = error
        except Exception as error:  # who takes it from here meets it too, and tells the client of it
            self._hand_on(error, more=False)
            return
        if turn.asking is None and full is None:
            self._hand_on(NOT_PLAIN, more=False)
            return
        self._forget()
        self.cycle = self._turn = turn  # type: ignore[assignment]  # as far as uvicorn asks anything of one
        if full is not None:
            try:
                self._hot.refuse(asked, self.headers, full, turn, self._asked_at)
            except Exception as error:
                self._hot.handed_over(error)
                if not turn.response_complete:
                    self.handed_on(turn, None, RequestRecord())

    def _hand_on(self, reason: str | Exception, more: bool) -> None:
        """What has come of a request, to the others."""
        self._hot.handed_over(reason)
        url, headers, body = self.url, self.headers, self._body
        self._forget()
        self.cycle = self._others(url, headers, body, more, {STARTED_AT: self._asked_at})

    def _forget(self) -> None:
        self._asked, self._body = None, b""
        if self._moment is not None:
            self._moment.cancel()
            self._moment = None

    def _others(
        self, url: bytes, headers: Headers, body: bytes, more: bool, known: dict[str, Any]
    ) -> RequestResponseCycle:
        """As uvicorn does it, of a request that was recognised: a plain path, HTTP/1.1, and a connection to be kept."""
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
            "state": self.app_state | known,
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
        cycle.more_body = more
        if body or not more:
            cycle.message_event.set()
        task = self.loop.create_task(cycle.run_asgi(self.app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        return cycle

    # What became of it

    def answered(self, turn: "_Turn", status: int, headers: Headers, body: bytes) -> None:
        self._turn = None
        usual, says = self._usual.of(turn.usual)
        closes = says or not turn.keep_alive
        parts = [STATUS_LINE[status], usual]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        if closes and not says:
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", body)
        self.transport.write(b"".join(parts))
        turn.over()
        if closes:
            self.transport.close()
        if closes or self.pipeline:
            self.on_response_complete()
        else:  # less of the same: that nothing is asked for long, `_look` sees to as well
            self.server_state.total_requests += 1
            self._since = self.loop.time()

    def handed_on(self, turn: "_Turn", error: DeadlinePassed | None, record: RequestRecord) -> None:
        self._turn = None
        state: dict[str, Any] = {STARTED_AT: turn.since} | ({} if error is None else {DEADLINE_PASSED: (error, record)})
        cycle = self._others(turn.url, turn.headers, turn.body, False, state)
        cycle.keep_alive = turn.keep_alive
        turn.over()
        if self.cycle is turn:  # type: ignore[comparison-overlap]
            self.cycle = cycle


class _Turn:
    """A request that is under way; to uvicorn, the cycle of one."""

    __slots__ = (
        "asking", "body", "connection", "disconnected", "headers", "keep_alive", "response_complete", "since", "url",
        "usual",
    )  # fmt: skip
    message_event = asyncio.Event()  # that nobody waits for
    more_body = False

    def __init__(self, connection: HotConnection, url: bytes, headers: Headers, body: bytes, since: float) -> None:
        self.connection, self.url, self.headers, self.body, self.since = connection, url, headers, body, since
        self.usual = connection.server_state.default_headers  # of when it came: at the end they say that it is
        self.asking: Asking | None = None
        self.response_complete, self.keep_alive, self.disconnected = False, True, False

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        self.connection.answered(self, status, headers, body)

    def hand_on(self, error: DeadlinePassed | None, record: RequestRecord) -> None:
        self.connection.handed_on(self, error, record)

    def leave(self) -> None:
        if self.asking is not None:
            self.asking.leave()

    def over(self) -> None:
        """The connection keeps it until the next one comes: it shall not keep the body."""
        self.response_complete, self.asking, self.headers, self.body = True, None, [], b""


class _Usual:
    """The headers that the server adds to all answers, as they are written; they change once a second."""

    def __init__(self) -> None:
        self._of: Headers | None = None
        self._written: tuple[bytes, bool] = b"", False

    def of(self, headers: Headers) -> tuple[bytes, bool]:
        """(as written, whether they say that the connection ends)"""
        if headers is not self._of:
            self._of = headers
            written = b"".join(b"%s: %s\r\n" % each for each in headers)
            self._written = written, (b"connection", b"close") in headers
        return self._written


def bounded(hot: Hot, head_s: float, keep_alive_s: float, most: int) -> Callable[..., HotConnection]:
    """What makes a connection's protocol."""
    return partial(HotConnection, head_s=head_s, keep_alive_s=keep_alive_s, most=most, hot=hot, usual=_Usual())
