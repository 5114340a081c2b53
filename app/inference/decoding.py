"""Which images are decoded when, where, and within how much memory.

    headers ─▶ refused: too many pixels in the request, or an image that could never fit into the budget
        ├────▶ small: at once, in a thread of this process
        └────▶ large: one by one, in an order that is fair, within a budget of bytes, each in a `Decoder`

The order is that of fair queueing. Each request has a clock that goes on by what its images are expected to cost, from
the moment it came; the image whose clock is behind is next. So a request of one image waits for what has begun, and not
for the hundred images of another that came before.
"""

import asyncio
import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol, TypeVar

import numpy as np

from app.bundle.header import Header, read_header
from app.bundle.manifest import InputSpec
from app.bundle.preprocess import preprocess
from app.errors import DecoderEnded, ImageError, TooManyPixels

Result = TypeVar("Result")
Hold = Callable[[int], Callable[[], None]]  # so many images go on for a while; what it gives is called at their end
RaiseIfAbandoned = Callable[[], None]  # raises where nobody waits any more

_SMALL_S = 0.002  # all images of a request together: what costs less is not worth another process
_SMALL_BYTES = 16 << 20
_SMALL_KINDS = {"PNG", "JPEG", "GIF", "WEBP"}  # whose size and cost their headers tell for sure
_LOOKED_AT_ONCE = 8  # headers; more are read in a thread
_LOOKED_BYTES = 256 << 10
_IDLE_S = 30.0  # after which a decoder that nobody needs ends


class ImageDecoder(Protocol):
    """app.bundle.decoder.Decoder, and what takes its place where there can be no such process."""

    @property
    def lives(self) -> bool: ...

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray: ...

    def close(self) -> None: ...


class InProcessDecoder:
    """In this process, in the thread that asks."""

    lives = True

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray:
        return preprocess(data, spec, max_pixels)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Limits:
    image_pixels: int
    request_pixels: int
    memory: int  # bytes, of all that is being decoded


class Abandoned(Exception):
    """The caller has left: nobody will see this."""


@dataclass(slots=True, eq=False)
class _Job:
    data: bytes
    spec: InputSpec
    memory: int
    future: "asyncio.Future[np.ndarray]"
    clock: float  # of its request, when it will have been decoded
    begun: bool = False
    over: list[Callable[[], None]] = field(default_factory=list)


class Decoding:
    def __init__(
        self,
        pool: Executor,
        limits: Limits,
        decoders: int = 1,
        make: Callable[[], ImageDecoder] = InProcessDecoder,
        idle_s: float = _IDLE_S,
    ) -> None:
        """At most so many `decoders`, which `make` makes when they are needed; `pool` is for small images."""
        self.limits = limits
        self._pool, self._most, self._make, self._idle_s = pool, decoders, make, idle_s
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="graft-decoder")  # one waits for each
        self._waiting: list[tuple[float, int, _Job]] = []
        self._count = itertools.count()
        self._clock = 0.0  # that of the image which began last
        self._idle: list[tuple[float, ImageDecoder]] = []  # since when, the longest first
        self._busy: set[ImageDecoder] = set()
        self._running = 0
        self.held = 0  # bytes

    # --- before anything is decoded ----------------------------------------------------------------------------------

    async def look(self, files: Sequence[bytes], spec: InputSpec) -> list[Header]:
        """Of each file; refused is what is too large, or is not an image by its header."""
        if len(files) <= _LOOKED_AT_ONCE and sum(map(len, files)) <= _LOOKED_BYTES:
            return self._look(files, spec)
        return await asyncio.wrap_future(self._pool.submit(self._look, files, spec))

    def _look(self, files: Sequence[bytes], spec: InputSpec) -> list[Header]:
        headers, pixels, most = [], 0, self.limits.request_pixels
        for index, data in enumerate(files):
            try:
                header = read_header(data, self.limits.image_pixels)
                self._require_room(header, spec)
            except ImageError as error:
                error.index = index if len(files) > 1 else None
                raise
            headers.append(header)
            pixels += header.pixels
        if pixels > most:
            raise TooManyPixels(
                f"the images of this request have {pixels:,} pixels in all; at most {most:,} are allowed "
                "(MAX_REQUEST_PIXELS): send them in several requests"
            )
        return headers

    def _require_room(self, header: Header, spec: InputSpec) -> None:
        needed = header.peak_bytes(spec)
        if needed > self.limits.memory:
            raise TooManyPixels(
                f"{header.width} × {header.height} pixels of this {header.kind} take {needed:,} bytes to decode; "
                f"there are {self.limits.memory:,} for that (DECODE_MB): send it smaller, or in another format"
            )

    @staticmethod
    def is_small(headers: Sequence[Header], spec: InputSpec) -> bool:
        """All of them together."""
        return (
            all(header.kind in _SMALL_KINDS for header in headers)
            and sum(header.seconds(spec) for header in headers) <= _SMALL_S
            and max(header.peak_bytes(spec) for header in headers) <= _SMALL_BYTES
        )

    # --- decoding ----------------------------------------------------------------------------------------------------

    async def decoded(
        self, files: Sequence[bytes], headers: Sequence[Header], spec: InputSpec, hold: Hold
    ) -> np.ndarray:
        """(n, H, W, C) uint8."""
        if self.is_small(headers, spec):
            return await self.in_thread(lambda check: self._all(files, spec, check), len(files), hold)
        loop = asyncio.get_running_loop()
        clock, jobs = self._clock, []
        for data, header in zip(files, headers, strict=True):
            clock += header.seconds(spec)
            job = _Job(data, spec, header.peak_bytes(spec), loop.create_future(), clock)
            jobs.append(job)
            heapq.heappush(self._waiting, (clock, next(self._count), job))
        self._begin()
        images = np.empty((len(files), *spec.shape), np.uint8)
        try:
            for index, job in enumerate(jobs):
                try:
                    images[index] = await job.future
                except ImageError as error:
                    error.index = index if len(files) > 1 else None
                    raise
        finally:
            self._drop([job for job in jobs if not job.future.done() or job.future.cancelled()], hold)
            for job in jobs:
                if job.future.done() and not job.future.cancelled():
                    job.future.exception()  # of several, the first one is told
        return images

    def _all(self, files: Sequence[bytes], spec: InputSpec, raise_if_abandoned: RaiseIfAbandoned) -> np.ndarray:
        images = np.empty((len(files), *spec.shape), np.uint8)
        for index, data in enumerate(files):
            raise_if_abandoned()
            try:
                images[index] = preprocess(data, spec, self.limits.image_pixels)
            except ImageError as error:
                error.index = index if len(files) > 1 else None
                raise
        return images

    async def in_thread(self, work: Callable[[RaiseIfAbandoned], Result], images: int, hold: Hold) -> Result:
        """If the caller leaves, work that has not begun never does, and work that has ends at its next check."""
        left = threading.Event()

        def raise_if_abandoned() -> None:
            if left.is_set():
                raise Abandoned

        running = self._pool.submit(work, raise_if_abandoned)
        ended = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            left.set()
            if not running.cancel():
                over = hold(images)
                ended.add_done_callback(lambda ended: (over(), ended.exception()))  # which is of no use to anybody
            raise

    def _drop(self, jobs: Sequence[_Job], hold: Hold) -> None:
        """Those that run go on to their end, for nobody."""
        for job in jobs:
            job.future.cancel()
            job.data = b""
            if job.begun:
                job.over.append(hold(1))

    def _begin(self) -> None:
        """As many as there are decoders and memory for. Nothing overtakes the one that is next."""
        while self._waiting:
            clock, _, job = self._waiting[0]
            if job.future.done():  # nobody waits for it any more
                heapq.heappop(self._waiting)
                continue
            if self._running >= self._most or self.held + job.memory > self.limits.memory:
                return
            heapq.heappop(self._waiting)
            self._clock = max(self._clock, clock)
            self._run(job)

    def _run(self, job: _Job) -> None:
        job.begun = True
        self._running += 1
        self.held += job.memory
        _, decoder = self._idle.pop() if self._idle else (0.0, None)
        running = asyncio.wrap_future(self._threads.submit(self._decode, decoder, job))
        running.add_done_callback(lambda running: self._ended(job, running))

    def _decode(self, decoder: ImageDecoder | None, job: _Job) -> tuple[ImageDecoder | None, np.ndarray | Exception]:
        """In a thread: the decoder, if it can go on, and what it gave."""
        if decoder is not None and not decoder.lives:  # ended while nobody needed it
            decoder.close()
            decoder = None
        try:
            decoder = decoder or self._make()
            self._busy.add(decoder)
            try:
                return decoder, decoder.decode(job.data, job.spec, self.limits.image_pixels, job.memory)
            finally:
                self._busy.discard(decoder)
        except DecoderEnded as error:
            return None, error
        except Exception as error:
            return decoder, error

    def _ended(self, job: _Job, running: "asyncio.Future[tuple[ImageDecoder | None, np.ndarray | Exception]]") -> None:
        self._running -= 1
        self.held -= job.memory
        job.data = b""
        for over in job.over:
            over()
        if running.cancelled():
            job.future.cancel()
            return
        decoder, outcome = running.result()
        if decoder is not None:
            self._idle.append((monotonic(), decoder))
            running.get_loop().call_later(self._idle_s, self._end_idle)
        if not job.future.done():
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        self._begin()

    def _end_idle(self) -> None:
        while self._idle and self._idle[0][0] + self._idle_s <= monotonic():
            _, decoder = self._idle.pop(0)
            self._threads.submit(decoder.close)

    def close(self) -> None:
        """Whoever still waits gets an error; no process is left."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for decoder in [*(decoder for _, decoder in self._idle), *self._busy]:
            with contextlib.suppress(OSError):
                decoder.close()
        self._idle.clear()
