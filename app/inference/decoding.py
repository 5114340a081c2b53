"""Decides which images are decoded when, where and with how much memory.

    headers ─▶ refused: too many pixels in the request, or an image that can never fit into the budget
        ├────▶ small: at once, in a thread of this process
        └────▶ large: in a fair order, within a budget of bytes, each in a `Decoder`

The order is fair queueing. Each request has a virtual clock, which starts when the request arrives and advances by the
expected cost of its images; the image with the lowest clock is next. So a request of one image waits for images that
are being decoded, but not for a hundred images of an earlier request.

A picture that is cut into tiles stays in memory, as large as it is, until its tiles have run, and is counted so long. A
few at a time do so: they take a small part of the budget, as decoding one takes several times what it leaves.
"""

import asyncio
import contextlib
import heapq
import itertools
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Protocol, TypeVar

import numpy as np

from app.bundle.container_limits import total_memory
from app.bundle.header import Header, read_header, require_memory
from app.bundle.manifest import InputSpec
from app.bundle.preprocess import preprocess
from app.bundle.tiles import scaled_size
from app.errors import DecoderEnded, Faults, ImageError, TooManyPixels

Result = TypeVar("Result")
Hold = Callable[[int], Callable[[], None]]  # Admission.hold
RaiseIfAbandoned = Callable[[], None]  # raises Abandoned if the caller has left

_MEMORY_SHARE = 0.55  # the rest is for models, request bodies and the processes themselves
_SMALL_S = 0.002  # for all images of a request; cheaper ones are not worth another process
_SMALL_BYTES = 16 << 20
_SMALL_KINDS = {"PNG", "JPEG", "GIF", "WEBP"}  # formats whose headers are reliable about size and cost
_LARGE_PICTURES = 2  # of more than one tile: one runs while the next is decoded
_HEADERS_ON_LOOP = 8  # more are read in a thread
_BYTES_ON_LOOP = 256 << 10
_IDLE_S = 30.0  # after which an unused decoder is closed


class ImageDecoder(Protocol):
    """app.bundle.decoder.Decoder, or its replacement on systems without such processes."""

    @property
    def alive(self) -> bool: ...

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray: ...

    def close(self) -> None: ...


class InProcessDecoder:
    """Decodes in this process, in the calling thread."""

    alive = True

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray:
        return preprocess(data, spec, max_pixels)

    def close(self) -> None:
        pass


def default_memory(root: Path = Path("/")) -> int:
    """The default of GRAFT_DECODE_MB, in bytes: a share of the container's memory, or of the machine's."""
    return int(_MEMORY_SHARE * total_memory(root))


@dataclass(frozen=True, slots=True)
class Limits:
    image_pixels: int
    request_pixels: int
    memory: int  # bytes for all images that are being decoded


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers of a request's files."""

    each: Sequence[Header]
    seconds: float  # to decode them all
    small: bool  # all images together are cheap enough for a thread of this process


class Abandoned(Exception):
    """The caller has left. Nobody sees this exception."""


@dataclass(slots=True, eq=False)
class _Job:
    data: bytes
    spec: InputSpec
    memory: int
    future: "asyncio.Future[np.ndarray]"
    clock: float  # virtual clock of its request after this image
    kept: int = 0  # bytes that stay reserved when it has been decoded
    started: bool = False
    on_end: list[Callable[[], None]] = field(default_factory=list)


class Decoding:
    def __init__(
        self,
        pool: Executor,
        limits: Limits,
        decoders: int = 1,
        make: Callable[[], ImageDecoder] = InProcessDecoder,
        idle_s: float = _IDLE_S,
    ) -> None:
        """`make` creates decoders on demand, at most `decoders` at a time. `pool` decodes small images."""
        self.limits = limits
        self._pool, self._max_decoders, self._make, self._idle_s = pool, decoders, make, idle_s
        # One thread per decoder, which waits for it.
        self._threads = ThreadPoolExecutor(decoders, thread_name_prefix="graft-decoder")
        self._waiting: list[tuple[float, int, _Job]] = []
        self._count = itertools.count()
        self._clock = 0.0  # clock of the image that started last
        self._idle: list[tuple[float, ImageDecoder]] = []  # (idle since, decoder), oldest first
        self._busy: set[ImageDecoder] = set()
        self._running = 0
        self._large_pictures = asyncio.Semaphore(_LARGE_PICTURES)
        self.held = 0  # bytes reserved

    # --- headers -----------------------------------------------------------------------------------------------------

    async def read_headers(self, files: Sequence[bytes], spec: InputSpec, faults: Faults | None = None) -> Headers:
        """Refuses files that are not images, and requests that are too large. With `faults` those files are added to
        it, and the headers are those of the others."""
        if len(files) <= _HEADERS_ON_LOOP and sum(map(len, files)) <= _BYTES_ON_LOOP:
            return self._read_headers(files, spec, faults)
        return await asyncio.wrap_future(self._pool.submit(self._read_headers, files, spec, faults))

    def _read_headers(self, files: Sequence[bytes], spec: InputSpec, faults: Faults | None = None) -> Headers:
        headers, pixels, seconds, most, limit = [], 0, 0.0, 0, self.limits.request_pixels
        for index, data in enumerate(files):
            with set_aside(index, faults), _naming(index, files):
                header = read_header(data, self.limits.image_pixels)
                most = max(most, require_memory(header, spec, self.limits.memory))
                headers.append(header)
                pixels += header.pixels
                seconds += header.seconds(spec)
        if pixels > limit:
            raise TooManyPixels(
                f"the images of this request have {pixels:,} pixels in total; at most {limit:,} are allowed "
                "(MAX_REQUEST_PIXELS): send them in several requests"
            )
        return Headers(headers, seconds, _are_small(headers, seconds, most))

    def decoded_within(self, seconds: float, files: Sequence[bytes], spec: InputSpec) -> np.ndarray | None:
        """(n, H, W, C) uint8 of small files that decode in that time, in the calling thread; None of others."""
        headers = self._read_headers(files, spec)
        if not headers.small or headers.seconds > seconds:
            return None
        return self._decode_all(files, headers, spec, raise_if_abandoned=lambda: None)

    # --- decoding ----------------------------------------------------------------------------------------------------

    async def decode(
        self, files: Sequence[bytes], headers: Headers, spec: InputSpec, hold: Hold, faults: Faults | None = None
    ) -> np.ndarray:
        """(n, H, W, C) uint8. With `faults` broken files are added to it, and have no row."""
        found: Faults | None = None if faults is None else {}
        if headers.small:
            images = await self.in_thread(
                lambda check: self._decode_all(files, headers, spec, check, faults=found), len(files), hold
            )
        else:
            images = await self._decode_in_turn(files, headers, spec, hold, faults=found)
        if not found or faults is None:
            return images
        faults |= found
        return np.delete(images, list(found), axis=0)

    async def _decode_in_turn(
        self, files: Sequence[bytes], headers: Headers, spec: InputSpec, hold: Hold, faults: Faults | None
    ) -> np.ndarray:
        loop = asyncio.get_running_loop()
        clock, jobs = self._clock, []
        for data, header in zip(files, headers.each, strict=True):
            clock += header.seconds(spec)
            job = _Job(data=data, spec=spec, memory=header.peak_bytes(spec), future=loop.create_future(), clock=clock)
            jobs.append(job)
            heapq.heappush(self._waiting, (clock, next(self._count), job))
        self._start_next()
        images = np.empty((len(files), *spec.shape), np.uint8)
        try:
            for index, job in enumerate(jobs):
                with set_aside(index, faults), _naming(index, files):
                    images[index] = await job.future
        finally:
            self._drop([job for job in jobs if not job.future.done() or job.future.cancelled()], hold)
            for job in jobs:
                if job.future.done() and not job.future.cancelled():
                    job.future.exception()  # marks it as retrieved; the first error was raised
        return images

    @contextlib.asynccontextmanager
    async def picture(
        self, files: Sequence[bytes], index: int, header: Header, spec: InputSpec, hold: Hold
    ) -> AsyncIterator[np.ndarray]:
        """One of the files, as (h, w, C) uint8 of a spec with tiles; its bytes are reserved until the end."""
        data, most = files[index], self.limits.image_pixels
        if _are_small([header], header.seconds(spec), header.peak_bytes(spec)):
            with _naming(index, files):
                pixels = await self.in_thread(lambda _: preprocess(data, spec, most, header), 1, hold)
            yield pixels
            return
        turn = self._large_pictures if is_large(header, spec) else contextlib.nullcontext()
        async with turn:
            job = _Job(
                data=data,
                spec=spec,
                memory=header.peak_bytes(spec),
                future=asyncio.get_running_loop().create_future(),
                clock=self._clock + header.seconds(spec),
                kept=_picture_bytes(header, spec),
            )
            heapq.heappush(self._waiting, (job.clock, next(self._count), job))
            self._start_next()
            try:
                with _naming(index, files):
                    pixels = await job.future
                yield pixels
            finally:
                if not job.future.done() or job.future.cancelled():
                    self._drop([job], hold)
                elif job.future.exception() is None:
                    self.held -= job.kept
                    self._start_next()

    def _decode_all(
        self,
        files: Sequence[bytes],
        headers: Headers,
        spec: InputSpec,
        raise_if_abandoned: RaiseIfAbandoned,
        faults: Faults | None = None,
    ) -> np.ndarray:
        images = np.empty((len(files), *spec.shape), np.uint8)
        for index, (data, header) in enumerate(zip(files, headers.each, strict=True)):
            raise_if_abandoned()
            with set_aside(index, faults), _naming(index, files):
                images[index] = preprocess(data, spec, self.limits.image_pixels, header)
        return images

    async def in_thread(self, work: Callable[[RaiseIfAbandoned], Result], images: int, hold: Hold) -> Result:
        """Runs `work` in the pool. If the caller leaves, it is not started any more, or ends at its next check."""
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
                release = hold(images)
                ended.add_done_callback(lambda ended: (release(), ended.exception()))  # marks it as retrieved
            raise

    def _drop(self, jobs: Sequence[_Job], hold: Hold) -> None:
        """Cancels the jobs. Those that are running continue, and hold their places until they end."""
        for job in jobs:
            job.future.cancel()
            job.data = b""
            if job.started:
                job.on_end.append(hold(1))

    def _start_next(self) -> None:
        """Starts as many jobs as decoders and memory allow. No job overtakes the next one, even if it would fit."""
        while self._waiting:
            clock, _, job = self._waiting[0]
            if job.future.done():  # its caller has left
                heapq.heappop(self._waiting)
                continue
            if self._running >= self._max_decoders or self.held + job.memory > self.limits.memory:
                return
            heapq.heappop(self._waiting)
            self._clock = max(self._clock, clock)
            self._run(job)

    def _run(self, job: _Job) -> None:
        job.started = True
        self._running += 1
        self.held += job.memory
        _, decoder = self._idle.pop() if self._idle else (0.0, None)
        running = asyncio.wrap_future(self._threads.submit(self._decode, decoder, job))
        running.add_done_callback(lambda running: self._finish(job, running))

    def _decode(self, decoder: ImageDecoder | None, job: _Job) -> tuple[ImageDecoder | None, np.ndarray | Exception]:
        """Runs in a thread. Returns the decoder, if it is still usable, and the image or error."""
        if decoder is not None and not decoder.alive:  # it died while idle
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

    def _finish(self, job: _Job, running: "asyncio.Future[tuple[ImageDecoder | None, np.ndarray | Exception]]") -> None:
        self._running -= 1
        self.held -= job.memory
        if not job.future.done() and not running.cancelled() and not isinstance(running.result()[1], Exception):
            self.held += job.kept
        job.data = b""
        for release in job.on_end:
            release()
        if running.cancelled():
            job.future.cancel()
            return
        decoder, outcome = running.result()
        if decoder is not None:
            self._idle.append((monotonic(), decoder))
            running.get_loop().call_later(self._idle_s, self._close_idle)
        if not job.future.done():
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        self._start_next()

    def _close_idle(self) -> None:
        while self._idle and self._idle[0][0] + self._idle_s <= monotonic():
            _, decoder = self._idle.pop(0)
            self._threads.submit(decoder.close)

    def close(self) -> None:
        """Ends all decoders. Requests that still wait get an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for decoder in [*(decoder for _, decoder in self._idle), *self._busy]:
            with contextlib.suppress(OSError):
                decoder.close()
        self._idle.clear()


def is_large(header: Header, spec: InputSpec) -> bool:
    """Whether a picture has more than one tile."""
    return max(scaled_size(header.width, header.height, spec)) > spec.height


def _picture_bytes(header: Header, spec: InputSpec) -> int:
    return math.prod(scaled_size(header.width, header.height, spec)) * spec.channels


def _are_small(headers: Sequence[Header], seconds: float, peak_bytes: int) -> bool:
    """Given what decoding all of them takes, and the most memory that one of them does."""
    return seconds <= _SMALL_S and peak_bytes <= _SMALL_BYTES and all(each.kind in _SMALL_KINDS for each in headers)


@contextlib.contextmanager
def set_aside(index: int, faults: Faults | None) -> Iterator[None]:
    """Adds an image's error to `faults`, where there are some. That a decoder ended is not the image's error alone, and
    starting another for each would cost too much."""
    try:
        yield
    except ImageError as error:
        if faults is None or isinstance(error, DecoderEnded):
            raise
        faults[index] = error


@contextlib.contextmanager
def _naming(index: int, files: Sequence[bytes]) -> Iterator[None]:
    """An error says which of several images it is about."""
    try:
        yield
    except ImageError as error:
        error.index = index if len(files) > 1 else None
        raise
