"""A bound in time on what a task awaits, at the price of one timer, a fraction of what asyncio.timeout costs."""

import asyncio


class Alarm:
    """Cancels the task that sets it when its seconds are over, or when it is told to; whoever sets it puts it `off`."""

    __slots__ = ("_task", "_timer", "rang")

    def __init__(self, seconds: float) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, seconds), self.ring, "late")
        self.rang = ""

    def ring(self, why: str) -> None:
        if not self.rang and self._task is not None:
            self.rang = why
            self._task.cancel()

    def off(self) -> None:
        self._timer.cancel()
        if self.rang and self._task is not None:
            self._task.uncancel()
