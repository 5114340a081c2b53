"""A signal that asks for an end, kept until the batch at hand is written."""

import signal
from types import FrameType, TracebackType


class Stop:
    """`number` is the signal's, once there was one; a second one ends at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()

    def _asked(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
