"""How much may be under way at once. What is beyond it is refused at the door, before any work is done for it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import QueueFull


class Admission:
    """Counts the images of all requests that have been read and not yet answered."""

    def __init__(self, most: int, told: Callable[[int], None] = lambda _: None) -> None:
        """`told` hears how many there are, whenever that changes."""
        self.most, self.images, self._told = most, 0, told

    @contextmanager
    def admit(self, images: int, seconds_each: float) -> Iterator[None]:
        self.enter(images, seconds_each)
        try:
            yield
        finally:
            self.leave(images)

    def require(self, images: int, seconds_each: float) -> None:
        """QueueFull where there is no room for so many."""
        if self.images + images > self.most:
            wait = max(1, math.ceil(self.images * seconds_each))
            raise QueueFull(
                f"{self.images:,} images are waiting, and at most {self.most:,} may; try again in {wait} s", wait
            )

    def enter(self, images: int, seconds_each: float) -> None:
        """Whoever enters leaves, too."""
        self.require(images, seconds_each)
        self._count(images)

    def leave(self, images: int) -> None:
        self._count(-images)

    def linger(self, images: int) -> Callable[[], None]:
        """For work that goes on a little after its caller has left: call what this gives when it has ended."""
        self._count(images)
        return lambda: self._count(-images)

    def _count(self, more: int) -> None:
        self.images += more
        self._told(self.images)


class Bytes:
    """Counts the bytes of all bodies that lie in memory: those being read, and those being worked on."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def require(self, more: int) -> None:
        """QueueFull where there is no room for so many."""
        if self.held + more > self.most:
            raise QueueFull(
                f"requests of {self.held:,} bytes are under way, and at most {self.most:,} may; try again in 1 s", 1
            )

    def take(self, more: int) -> None:
        self.require(more)
        self.held += more

    def give_back(self, bytes_taken: int) -> None:
        self.held -= bytes_taken
