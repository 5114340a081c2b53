"""How much may be under way at once. What is beyond it is refused at the door, before any work is done for it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import QueueFull

SMALL_BODY = 64 << 10  # bytes


class Admission:
    """Counts the images of all requests that have been read and not yet answered."""

    def __init__(self, most: int, told: Callable[[int], None] = lambda _: None, reserved: int = 0) -> None:
        """`reserved` of them are for requests of one small image. `told` hears how many there are, whenever that
        changes."""
        self.most, self.images, self.reserved, self._told = most, 0, reserved, told

    @contextmanager
    def admit(self, images: int, seconds_each: float, large: bool = False) -> Iterator[None]:
        self.enter(images, seconds_each, large)
        try:
            yield
        finally:
            self.leave(images)

    def require(self, images: int, seconds_each: float, large: bool = False) -> None:
        """QueueFull if there is no room for so many. Several images, and `large` ones, leave reserved places free."""
        most = self.most - self.reserved if large or images > 1 else self.most
        if self.images + images > most:
            wait = max(1, math.ceil(self.images * seconds_each))
            raise QueueFull(
                f"{self.images:,} images are waiting, and at most {most:,} may; try again in {wait} s", wait
            )

    def enter(self, images: int, seconds_each: float, large: bool = False) -> None:
        """As `require`; every enter is followed by a leave."""
        self.require(images, seconds_each, large)
        self._count(images)

    def leave(self, images: int) -> None:
        self._count(-images)

    def hold(self, images: int) -> Callable[[], None]:
        """For work that goes on a little after its caller has left: call what this gives when it has ended."""
        self._count(images)
        return lambda: self._count(-images)

    def _count(self, more: int) -> None:
        self.images += more
        self._told(self.images)


class Bytes:
    """Counts the bytes of all bodies that lie in memory: those being read, and those being worked on."""

    def __init__(self, most: int, reserved: int = 0) -> None:
        """`reserved` of them are for small bodies."""
        self.most, self.reserved, self.held = most, reserved, 0

    def require(self, more: int, before: int = 0) -> None:
        """QueueFull if there is no room for so many more bytes of a body that has `before` already."""
        most = self.most if before + more <= SMALL_BODY else self.most - self.reserved
        if self.held + more > most:
            raise QueueFull(
                f"requests of {self.held:,} bytes are under way, and at most {most:,} may; try again in 1 s", 1
            )

    def take(self, more: int, before: int = 0) -> None:
        self.require(more, before)
        self.held += more

    def give_back(self, bytes_taken: int) -> None:
        self.held -= bytes_taken
