"""Deadlines of the tasks that answer requests.

One timer checks all deadlines every few milliseconds, for as long as there are any. A timer for each request would cost
more than many a request does.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from time import monotonic

_TICK_S = 0.005  # between two checks; a deadline may fire this much too late
_MOMENT_S = 0.02  # most work is done within it


class Deadline:
    """Fires when its time has passed, or earlier when `fire` is called. Whoever sets a deadline clears it.

    A deadline that fires cancels the task that set it, or calls `on_expiry` where there is one.
    """

    __slots__ = ("_after_moment", "_at", "_deadlines", "_on_expiry", "_task", "fired", "since")

    def __init__(
        self,
        deadlines: "Deadlines",
        seconds: float,
        after_moment: "Callable[[Deadline], None] | None",
        on_expiry: Callable[[], None] | None,
    ) -> None:
        self._deadlines, self._after_moment, self._on_expiry = deadlines, after_moment, on_expiry
        self._task = asyncio.current_task() if on_expiry is None else None
        self.fired = ""  # the reason, once it has fired
        self.since = monotonic()
        self._at = self.since + seconds

    def check(self, now: float) -> None:
        if now >= self._at:
            self.fire("late")
        elif self._after_moment is not None and now >= self.since + _MOMENT_S:
            after_moment, self._after_moment = self._after_moment, None
            after_moment(self)

    def fire(self, reason: str) -> None:
        if self.fired:
            return
        self.fired = reason
        if self._on_expiry is not None:
            self._on_expiry()
        elif self._task is not None:
            self._task.cancel()

    def clear(self) -> None:
        self._deadlines.remove(self)
        self._on_expiry = None  # may refer to an object that refers to this deadline: break the cycle
        if self.fired and self._task is not None:
            self._task.uncancel()


class Deadlines:
    def __init__(self) -> None:
        self._pending: dict[Deadline, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # on which the next check is scheduled

    def set(
        self,
        seconds: float,
        after_moment: Callable[[Deadline], None] | None = None,
        on_expiry: Callable[[], None] | None = None,
    ) -> Deadline:
        """`after_moment` is called once, if the deadline is still set after 20 ms."""
        deadline = Deadline(self, seconds, after_moment, on_expiry)
        self._pending[deadline] = None
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._schedule_check(loop)
        return deadline

    def remove(self, deadline: Deadline) -> None:
        self._pending.pop(deadline, None)

    def _schedule_check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.call_later(_TICK_S, self._check, context=Context())  # an empty context: the timer serves all requests

    def _check(self) -> None:
        loop, self._loop = self._loop, None
        if not self._pending:
            return
        assert loop is not None
        self._schedule_check(loop)
        now = monotonic()
        for deadline in list(self._pending):
            deadline.check(now)
