"""Limits on the work in flight. Requests above them are refused before any work is done for them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import QueueFull

SMALL_BODY = 64 << 10  # bytes


class Admission:
    """Counts the images in flight: of requests that were read and not yet answered."""

    def __init__(self, most: int, on_change: Callable[[int], None] = lambda _: None, reserved: int = 0) -> None:
        """At most `most` images, of which `reserved` are for requests of one small image. `on_change` is called with
        the number of images whenever it changes."""
        self.most, self.images, self.reserved, self._on_change = most, 0, reserved, on_change

    @contextmanager
    def admit(self, images: int, seconds_each: float, large: bool = False) -> Iterator[None]:
        self.enter(images, seconds_each, large)
        try:
            yield
        finally:
            self.leave(images)

    def require(self, images: int, seconds_each: float, large: bool = False) -> None:
        """Raises QueueFull if the images do not fit. Several images, or a `large` one, cannot use reserved places."""
        most = self.most - self.reserved if large or images > 1 else self.most
        if self.images + images > most:
            wait = max(1, math.ceil(self.images * seconds_each))
            raise QueueFull(
                f"{self.images:,} images are in flight, and at most {most:,} are allowed; try again in {wait} s", wait
            )

    def enter(self, images: int, seconds_each: float, large: bool = False) -> None:
        """Counts the images, or raises as `require`. Call `leave` for each successful `enter`."""
        self.require(images, seconds_each, large)
        self._count(images)

    def leave(self, images: int) -> None:
        self._count(-images)

    def hold(self, images: int) -> Callable[[], None]:
        """Counts images whose work continues after their caller has left. Call the result when the work has ended."""
        self._count(images)
        return lambda: self._count(-images)

    def _count(self, change: int) -> None:
        self.images += change
        self._on_change(self.images)


class Bytes:
    """Counts the bytes of all request bodies in memory, from their arrival until their request is answered."""

    def __init__(self, most: int, reserved: int = 0) -> None:
        """At most `most` bytes, of which `reserved` are for small bodies."""
        self.most, self.reserved, self.held = most, reserved, 0

    def require(self, more: int, before: int = 0) -> None:
        """Raises QueueFull if `more` bytes do not fit, of a body of which `before` bytes have arrived."""
        most = self.most if before + more <= SMALL_BODY else self.most - self.reserved
        if self.held + more > most:
            raise QueueFull(
                f"bodies of {self.held:,} bytes are in flight, and at most {most:,} are allowed; try again in 1 s",
                1,
            )

    def acquire(self, more: int, before: int = 0) -> None:
        self.require(more, before)
        self.held += more

    def release(self, bytes_taken: int) -> None:
        self.held -= bytes_taken
