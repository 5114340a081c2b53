"""Defers SIGINT and SIGTERM until the current batch is written."""

import signal
from types import FrameType, TracebackType


class Stop:
    """`number` is the signal that arrived, or None. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._received) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _received(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
