"""Bounds in time on what tasks await. One timer looks at all of them, again and again while there are any: to set one
for each would cost more than many a request."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from time import monotonic

_TICK_S = 0.005  # between two looks: so much later than it should an alarm may ring
_MOMENT_S = 0.02  # most work is done within it


class Alarm:
    """Rings when its time is over, or when it is told to; whoever sets it puts it `off`.

    It cancels the task that has set it, or calls `ring`.
    """

    __slots__ = ("_among", "_at", "_later", "_ring", "_task", "rang", "since")

    def __init__(
        self,
        among: "Alarms",
        seconds: float,
        later: "Callable[[Alarm], None] | None",
        ring: Callable[[], None] | None,
    ) -> None:
        self._among, self._later, self._ring, self.rang = among, later, ring, ""
        self._task = asyncio.current_task() if ring is None else None
        self.since = monotonic()
        self._at = self.since + seconds

    def look(self, now: float) -> None:
        if now >= self._at:
            self.ring("late")
        elif self._later is not None and now >= self.since + _MOMENT_S:
            later, self._later = self._later, None
            later(self)

    def ring(self, why: str) -> None:
        if self.rang:
            return
        self.rang = why
        if self._ring is not None:
            self._ring()
        elif self._task is not None:
            self._task.cancel()

    def off(self) -> None:
        self._among.forget(self)
        self._ring = None  # which may hold who holds this
        if self.rang and self._task is not None:
            self._task.uncancel()


class Alarms:
    def __init__(self) -> None:
        self._set: dict[Alarm, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # on which the next look is due

    def set(
        self,
        seconds: float,
        later: Callable[[Alarm], None] | None = None,
        ring: Callable[[], None] | None = None,
    ) -> Alarm:
        """`later` is called once, if the alarm is still set after a moment."""
        alarm = Alarm(self, seconds, later, ring)
        self._set[alarm] = None
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._look_soon(loop)
        return alarm

    def forget(self, alarm: Alarm) -> None:
        self._set.pop(alarm, None)

    def _look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.call_later(_TICK_S, self._look, context=Context())  # it belongs to no request

    def _look(self) -> None:
        loop, self._loop = self._loop, None
        if not self._set:
            return
        assert loop is not None
        self._look_soon(loop)
        now = monotonic()
        for alarm in list(self._set):
            alarm.look(now)
