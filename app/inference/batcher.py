"""Natural micro-batches: what waits when the model is free is run together, and nothing waits for company."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from app.telemetry.requests import log


class Sized(Protocol):
    def __len__(self) -> int: ...


Work = TypeVar("Work", bound=Sized)
Result = TypeVar("Result")


@dataclass(slots=True)  # frozen ones take twice as long to make
class Done(Generic[Result]):
    result: Result
    queue_s: float  # from the asking until its batch began
    run_s: float  # of the whole batch
    batch: int  # images in it


@dataclass(slots=True, eq=False)
class Item(Generic[Work, Result]):
    """A work that waits, or runs."""

    work: Work
    then: "Callable[[Done[Result] | Exception], None]"
    asked: float
    gone: bool = False


class Batcher(Generic[Work, Result]):
    """`run` takes the works of one batch and gives a result for each; a work's length is its images.

    Batches run one after the other. One that is expected to be short runs on the event loop, which spares two changes
    of thread; a longer one runs in `pool`, and the loop stays free. All of it belongs to one event loop. A batch is
    of nobody's context: what it logs carries no request's id.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Result]],
        most: int,
        pool: Executor,
        on_loop: Callable[[Sequence[Work]], bool] = lambda works: False,
        ran: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        """`most` images make a batch, or a single work that has more; `on_loop` says which works are short together.

        `ran` hears of every batch its images and seconds.
        """
        self._run, self._most, self._pool, self._on_loop, self._ran = run, most, pool, on_loop, ran
        self._waiting: deque[Item[Work, Result]] = deque()
        self._busy = False  # a flush is coming, or a batch is running in the pool

    async def submit(self, work: Work) -> Done[Result]:
        future: asyncio.Future[Done[Result]] = asyncio.get_running_loop().create_future()

        def then(outcome: Done[Result] | Exception) -> None:
            if future.done():  # cancelled in this turn of the loop
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        item = self.put(work, then)
        try:
            return await future
        except asyncio.CancelledError:
            self.drop(item)
            raise

    def put(self, work: Work, then: Callable[[Done[Result] | Exception], None]) -> Item[Work, Result]:
        """`then` is called on the event loop."""
        item: Item[Work, Result] = Item(work, then, time.perf_counter())
        self._waiting.append(item)
        if not self._busy:
            self._busy = True
            self._soon()  # after whatever else this turn of the loop brings
        return item

    def drop(self, item: Item[Work, Result]) -> None:
        """Nothing more of it is told, nor kept; what has not begun never does."""
        item.gone = True
        with contextlib.suppress(ValueError):  # its batch has been taken
            self._waiting.remove(item)

    def _soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._flush, context=Context())

    def _flush(self) -> None:
        items = self._take()
        if not items:
            self._busy = False
            return
        loop = asyncio.get_running_loop()
        if self._on_loop([item.work for item in items]):
            self._soon()  # whatever becomes of this batch
            outcome = self._attempt(items)
            self._settle(items, outcome, time.perf_counter())
            return
        try:
            running = loop.run_in_executor(self._pool, lambda: (self._attempt(items), time.perf_counter()))
        except RuntimeError as error:  # the pool was shut down: nobody may be left waiting
            self._soon()
            self._settle(items, _failed(items, error), time.perf_counter())
        else:
            running.add_done_callback(lambda ran: self._after(items, ran))

    def _after(self, items: list[Item[Work, Result]], ran: "asyncio.Future[tuple[_Outcome[Result], float]]") -> None:
        try:
            outcome, ended = ran.result()
        except BaseException as error:  # as above, or a library's SystemExit in its thread
            outcome, ended = _failed(items, error), time.perf_counter()
        self._soon()
        self._settle(items, outcome, ended)

    def _take(self) -> list[Item[Work, Result]]:
        """The oldest, as many as make a batch."""
        items: list[Item[Work, Result]] = []
        images = 0
        while self._waiting:
            item = self._waiting[0]
            if items and images + len(item.work) > self._most:
                break
            items.append(self._waiting.popleft())
            images += len(item.work)
        return items

    def _attempt(self, items: list[Item[Work, Result]]) -> "_Outcome[Result]":
        """Where a batch fails, each of its works is run alone: the one at fault fails, and its neighbours do not."""
        began = time.perf_counter()
        try:
            return _Outcome(list(self._run([item.work for item in items])), began)
        except Exception as error:
            if len(items) == 1:
                return _Outcome([error], began)
            log.warning("a batch of %d requests failed (%s); each is run alone", len(items), type(error).__name__)
        return _Outcome([result for item in items for result in self._attempt([item]).results], began)

    def _settle(self, items: list[Item[Work, Result]], outcome: "_Outcome[Result]", ended: float) -> None:
        images = sum(len(item.work) for item in items)
        for item, result in zip(items, outcome.results, strict=True):
            if item.gone:  # its caller left while it ran
                continue
            try:
                if isinstance(result, BaseException):
                    item.then(_bearable(result))
                else:
                    item.then(Done(result, outcome.began - item.asked, ended - outcome.began, images))
            except Exception as error:  # its neighbours are answered all the same
                log.error("unexpected %s where a result was taken", type(error).__name__, exc_info=error)
        self._ran(images, ended - outcome.began)  # last: nobody waits for what it may do


@dataclass(slots=True)
class _Outcome(Generic[Result]):
    results: Sequence[Result | BaseException]
    began: float


def _bearable(error: BaseException) -> Exception:
    """What a future takes and a request survives: StopIteration, SystemExit and the like are none of theirs."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"the batch ended in {type(error).__name__}: {error}")


def _failed(items: Sequence[Item[Work, Result]], error: BaseException) -> _Outcome[Result]:
    return _Outcome([error] * len(items), time.perf_counter())
