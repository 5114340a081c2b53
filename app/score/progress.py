"""Progress on standard error: one line that is rewritten on a terminal, a new line every ten seconds elsewhere."""

import time
from collections.abc import Callable
from typing import TextIO

_EVERY_S = {True: 0.1, False: 10.0}  # is a terminal → seconds


class Progress:
    def __init__(self, total: int, before: int, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """`before`: images that an earlier run has scored; they do not count for the rate."""
        self._total, self._before, self._stream, self._clock = total, before, stream, clock
        self._terminal = stream.isatty()
        self._start = self._printed = clock()

    def tell(self, done: int) -> None:
        """`done` includes the images of an earlier run."""
        now = self._clock()
        if now - self._printed < _EVERY_S[self._terminal]:
            return
        self._printed = now
        rate = max(1e-9, (done - self._before) / (now - self._start))
        line = f"{done:,} of {self._total:,} images, {rate:,.0f}/s, {_span((self._total - done) / rate)} left"
        self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Clears the line on a terminal for the next message."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _span(seconds: float) -> str:
    if seconds >= 360_000:
        return "days"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
