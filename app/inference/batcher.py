"""Natural micro-batches: when the model is free, all waiting inputs run together; none waits for others to come."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from app.telemetry.logs import log


class Sized(Protocol):
    def __len__(self) -> int: ...


Input = TypeVar("Input", bound=Sized)
Output = TypeVar("Output")


@dataclass(slots=True)  # not frozen: a frozen one takes twice as long to create
class Completed(Generic[Output]):
    """The output for one input, with the times of its batch."""

    result: Output
    queue_s: float  # from `put` until its batch began
    run_s: float  # of the whole batch
    batch: int  # images in the batch


@dataclass(slots=True, eq=False)
class Pending(Generic[Input, Output]):
    """An input that waits or runs."""

    value: Input
    callback: "Callable[[Completed[Output] | Exception], None]"
    since: float  # perf_counter
    dropped: bool = False


class Batcher(Generic[Input, Output]):
    """`run` takes the inputs of one batch and returns an output for each; the length of an input is its images.

    Batches run one after another. A batch that is expected to be short runs on the event loop, which saves two thread
    switches; a longer one runs in `pool`, so the loop stays free. A Batcher belongs to one event loop. A batch runs
    outside every request's context: its log lines carry no request id.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Input]], Sequence[Output]],
        most: int,
        pool: Executor,
        on_loop: Callable[[Sequence[Input]], bool] = lambda inputs: False,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        """`most`: images in a batch; an input of more runs alone. `on_loop`: whether a batch of these inputs is short.

        `on_batch` is called after each batch with its images and seconds.
        """
        self._run, self._most, self._pool, self._on_loop, self._on_batch = run, most, pool, on_loop, on_batch
        self._waiting: deque[Pending[Input, Output]] = deque()
        self._busy = False  # a flush is scheduled, or a batch is running in the pool

    async def submit(self, value: Input) -> Completed[Output]:
        future: asyncio.Future[Completed[Output]] = asyncio.get_running_loop().create_future()

        def callback(outcome: Completed[Output] | Exception) -> None:
            if future.done():  # cancelled in this iteration of the loop
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        item = self.put(value, callback)
        try:
            return await future
        except asyncio.CancelledError:
            self.drop(item)
            raise

    def put(self, value: Input, callback: Callable[[Completed[Output] | Exception], None]) -> Pending[Input, Output]:
        """`callback` is called on the event loop."""
        item: Pending[Input, Output] = Pending(value, callback, time.perf_counter())
        self._waiting.append(item)
        if not self._busy:
            self._busy = True
            self._schedule_flush()  # what this iteration of the loop still adds joins the batch
        return item

    def drop(self, item: Pending[Input, Output]) -> None:
        """Its callback is never called; if it has not begun, it does not run."""
        item.dropped = True
        with contextlib.suppress(ValueError):  # its batch is running
            self._waiting.remove(item)

    def _schedule_flush(self) -> None:
        asyncio.get_running_loop().call_soon(self._flush, context=Context())

    def _flush(self) -> None:
        items = self._take()
        if not items:
            self._busy = False
            return
        loop = asyncio.get_running_loop()
        if self._on_loop([item.value for item in items]):
            self._schedule_flush()  # first, so that it is done even if this batch raises
            outcome = self._attempt(items)
            self._settle(items, outcome, time.perf_counter())
            return
        try:
            running = loop.run_in_executor(self._pool, lambda: (self._attempt(items), time.perf_counter()))
        except RuntimeError as error:  # the pool was shut down; every caller must still get an answer
            self._schedule_flush()
            self._settle(items, _failed(items, error), time.perf_counter())
        else:
            running.add_done_callback(lambda on_batch: self._after(items, on_batch))

    def _after(
        self, items: list[Pending[Input, Output]], on_batch: "asyncio.Future[tuple[_Outcome[Output], float]]"
    ) -> None:
        try:
            outcome, ended = on_batch.result()
        except BaseException as error:  # the pool was shut down, or a library raised SystemExit in the thread
            outcome, ended = _failed(items, error), time.perf_counter()
        self._schedule_flush()
        self._settle(items, outcome, ended)

    def _take(self) -> list[Pending[Input, Output]]:
        """Removes the oldest items that fit in a batch from the queue."""
        items: list[Pending[Input, Output]] = []
        images = 0
        while self._waiting:
            item = self._waiting[0]
            if items and images + len(item.value) > self._most:
                break
            items.append(self._waiting.popleft())
            images += len(item.value)
        return items

    def _attempt(self, items: list[Pending[Input, Output]]) -> "_Outcome[Output]":
        """If a batch fails, each of its inputs runs alone, so that only the one at fault fails."""
        began = time.perf_counter()
        try:
            return _Outcome(list(self._run([item.value for item in items])), began)
        except Exception as error:
            if len(items) == 1:
                return _Outcome([error], began)
            log.warning("a batch of %d requests failed (%s); running each alone", len(items), type(error).__name__)
        return _Outcome([result for item in items for result in self._attempt([item]).results], began)

    def _settle(self, items: list[Pending[Input, Output]], outcome: "_Outcome[Output]", ended: float) -> None:
        images = sum(len(item.value) for item in items)
        for item, result in zip(items, outcome.results, strict=True):
            if item.dropped:  # the client disconnected while it ran
                continue
            try:
                if isinstance(result, BaseException):
                    item.callback(_as_exception(result))
                else:
                    item.callback(Completed(result, outcome.began - item.since, ended - outcome.began, images))
            except Exception as error:  # the other items must get their results
                log.error("unexpected %s in the callback of a result", type(error).__name__, exc_info=error)
        self._on_batch(images, ended - outcome.began)  # last, so that no caller waits for it


@dataclass(slots=True)
class _Outcome(Generic[Output]):
    results: Sequence[Output | BaseException]
    began: float


def _as_exception(error: BaseException) -> Exception:
    """An exception that a future accepts and that ends one request only: not StopIteration, SystemExit and the like."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"the batch ended in {type(error).__name__}: {error}")


def _failed(items: Sequence[Pending[Input, Output]], error: BaseException) -> _Outcome[Output]:
    return _Outcome([error] * len(items), time.perf_counter())
