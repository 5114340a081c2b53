"""Files → decoded batches, prefetched in threads."""

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from app.bundle.bundle import Bundle
from app.bundle.decode import upright_size
from app.bundle.header import read_header, require_memory
from app.bundle.regions import Size
from app.errors import BodyTooLarge, GraftError
from app.score.paths import FileProblem, problem_of


def read_file(path: str, most: int) -> bytes:
    """The file's bytes. Raises BodyTooLarge for one of more than `most` bytes, without reading it."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or device might never end
        raise OSError("not a file")
    if status.st_size > most:
        raise BodyTooLarge(f"{status.st_size:,} bytes; at most {most:,} are allowed (--max-body-mb)")
    with open(path, "rb") as file:
        return file.read()


class Budget:
    """Bytes that all threads together may take to decode; the longest-waiting thread is next."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """At most `most`."""
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            self._changed.wait_for(lambda: self._waiting[0] is turn and self.held + size <= self.most)
            self._waiting.popleft()
            self.held += size
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.held -= size
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Batch:
    paths: list[str]
    images: np.ndarray  # (len(paths), H, W, C) uint8
    sizes: list[Size]  # of the upright pictures; empty unless Batches was told to measure them
    problems: list[FileProblem]


class _Image(NamedTuple):
    pixels: np.ndarray  # (H, W, C) uint8
    size: Size | None


class Batches:
    """Batches of `size` in the order of `paths`, without batches whose paths are all in `done`.

    The size of a batch can change the last digits of its results, and a resumed run must give the results of an
    uninterrupted one. So the batches do not depend on `done`: a batch with one new path also contains its done paths,
    and the caller does not write those again.
    """

    def __init__(
        self,
        bundle: Bundle,
        paths: Sequence[str],
        done: Collection[str],
        size: int,
        threads: int,
        max_pixels: int,
        max_bytes: int,
        budget: Budget,
        sized: bool = False,
        read: Callable[[str, int], bytes] = read_file,
    ) -> None:
        """`budget` is for all images that are being decoded; with `sized` batches have the sizes of their pictures."""
        self._bundle, self._paths, self._done = bundle, paths, done
        # Pictures in tiles are of many sizes, and large: one at a time, and one ahead.
        self._size, self._threads = (1, 1) if bundle.tiled else (size, threads)
        self._max_pixels, self._max_bytes, self._read_bytes = max_pixels, max_bytes, read
        self._budget, self._sized = budget, sized
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Batch]:
        ahead: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="graft-decode")
        try:
            for start in range(0, len(self._paths), self._size):
                paths = self._paths[start : start + self._size]
                if all(path in self._done for path in paths):
                    continue
                ahead.append(pool.submit(self._read, paths))
                if len(ahead) > self._threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)

    def _read(self, paths: Sequence[str]) -> Batch:
        images, problems = self._decoded([path for path in paths if path not in self._done])
        if images:
            images |= self._decoded([path for path in paths if path in self._done])[0]
        decoded = [path for path in paths if path in images]
        shape = images[decoded[0]].pixels.shape if decoded else self._bundle.manifest.input.shape
        stacked = np.empty((len(decoded), *shape), np.uint8)
        for index, path in enumerate(decoded):
            stacked[index] = images[path].pixels
        sizes = [size for path in decoded if (size := images[path].size) is not None]
        return Batch(decoded, stacked, sizes, problems)

    def _decoded(self, paths: Sequence[str]) -> tuple[dict[str, _Image], list[FileProblem]]:
        images: dict[str, _Image] = {}
        problems = []
        for path in paths:
            if self._stopped.is_set():
                break
            try:
                images[path] = self._preprocessed(self._read_bytes(path, self._max_bytes))
            except (OSError, MemoryError, GraftError) as error:
                problems.append(problem_of(path, error))
        return images, problems

    def _preprocessed(self, data: bytes) -> _Image:
        header = read_header(data, self._max_pixels)
        with self._budget.hold(require_memory(header, self._bundle.manifest.input, self._budget.most)):
            pixels = self._bundle.preprocess(data, self._max_pixels)
        return _Image(pixels, Size(*upright_size(data)) if self._sized else None)
