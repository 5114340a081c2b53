"""How much may be under way at once. What is beyond it is refused at the door, before any work is done for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import QueueFull


class Admission:
    """Counts the images of all requests that have been read and not yet answered."""

    def __init__(self, most: int) -> None:
        self.most, self.images = most, 0

    @contextmanager
    def admit(self, images: int, seconds_each: float) -> Iterator[None]:
        if self.images + images > self.most:
            wait = max(1, math.ceil(self.images * seconds_each))
            raise QueueFull(
                f"{self.images:,} images are waiting, and at most {self.most:,} may; try again in {wait} s", wait
            )
        self.images += images
        try:
            yield
        finally:
            self.images -= images
