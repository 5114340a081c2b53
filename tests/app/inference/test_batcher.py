import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.inference.batcher import Batcher, Completed
from app.telemetry.requests import request_id

Words = tuple[str, ...]


class Loud:
    """The model of these tests: says every word louder, counts its batches, and chokes on `bad`."""

    def __init__(self) -> None:
        self.batches: list[list[Words]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, works: Sequence[Words]) -> list[Words]:
        self.gate.wait(10)
        self.threads.add(threading.get_ident())
        self.batches.append(list(works))
        if any("bad" in work for work in works):
            raise ValueError("bad")
        return [tuple(word.upper() for word in work) for work in works]


@pytest.fixture
def loud() -> Loud:
    return Loud()


def batcher(loud: Loud, most: int = 4, most_on_loop: int = 0) -> Batcher[Words, Words]:
    return Batcher(loud, most, ThreadPoolExecutor(1), lambda works: sum(map(len, works)) <= most_on_loop)


async def ask(to: Batcher[Words, Words], *works: Words) -> list[Completed[Words] | BaseException]:
    return await asyncio.gather(*(to.submit(work) for work in works), return_exceptions=True)


@pytest.mark.parametrize("most_on_loop", [0, 100])
def test_what_waits_runs_together_and_each_gets_its_own(loud: Loud, most_on_loop: int) -> None:
    found = asyncio.run(ask(batcher(loud, 4, most_on_loop), ("a",), ("b", "c"), ("d",), ("e",)))
    assert [done.result for done in found if isinstance(done, Completed)] == [("A",), ("B", "C"), ("D",), ("E",)]
    assert loud.batches == [[("a",), ("b", "c"), ("d",)], [("e",)]]
    assert [done.batch for done in found if isinstance(done, Completed)] == [4, 4, 4, 1]


def test_images_are_counted_and_a_work_larger_than_a_batch_runs_alone(loud: Loud) -> None:
    asyncio.run(ask(batcher(loud, 2), ("a",), ("b", "c", "d"), ("e",), ("f",)))
    assert loud.batches == [[("a",)], [("b", "c", "d")], [("e",), ("f",)]]


def test_a_lone_work_waits_for_nobody(loud: Loud) -> None:
    async def lone() -> int:
        turns = 0
        work = asyncio.ensure_future(batcher(loud, 32, most_on_loop=1).submit(("a",)))
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(lone()) <= 4


def test_short_batches_run_on_the_loop_and_long_ones_do_not(loud: Loud) -> None:
    asyncio.run(ask(batcher(loud, most_on_loop=2), ("a", "b")))
    assert loud.threads == {threading.get_ident()}
    loud.threads.clear()
    asyncio.run(ask(batcher(loud, most_on_loop=2), ("a", "b", "c")))
    assert threading.get_ident() not in loud.threads


@pytest.mark.parametrize("most_on_loop", [0, 100])
def test_a_failing_work_fails_alone(loud: Loud, most_on_loop: int) -> None:
    found = asyncio.run(ask(batcher(loud, 8, most_on_loop), ("a",), ("bad",), ("b",)))
    assert isinstance(found[1], ValueError)
    assert [done.result for done in found if isinstance(done, Completed)] == [("A",), ("B",)]


def test_who_left_before_the_run_costs_nothing_and_harms_nobody(loud: Loud) -> None:
    async def leaving() -> list[Words]:
        loud.gate.clear()
        to = batcher(loud, 8)
        first = asyncio.ensure_future(to.submit(("first",)))
        await asyncio.sleep(0.05)  # it runs now, behind the gate
        left, stays = asyncio.ensure_future(to.submit(("left",))), asyncio.ensure_future(to.submit(("stays",)))
        await asyncio.sleep(0)
        left.cancel()
        loud.gate.set()
        return [(await first).result, (await stays).result]

    assert asyncio.run(leaving()) == [("FIRST",), ("STAYS",)]
    assert loud.batches == [[("first",)], [("stays",)]]


def test_who_leaves_while_it_runs_harms_nobody(loud: Loud) -> None:
    async def leaving() -> Words:
        loud.gate.clear()
        to = batcher(loud, 8)
        both = [asyncio.ensure_future(to.submit((word,))) for word in ("left", "stays")]
        await asyncio.sleep(0.05)
        both[0].cancel()
        loud.gate.set()
        return (await both[1]).result

    assert asyncio.run(leaving()) == ("STAYS",)


def test_the_next_is_answered_after_a_failure(loud: Loud) -> None:
    async def twice() -> Words:
        to = batcher(loud)
        with pytest.raises(ValueError, match="bad"):
            await to.submit(("bad",))
        return (await to.submit(("good",))).result

    assert asyncio.run(twice()) == ("GOOD",)


def test_nobody_is_left_waiting_when_the_pool_is_gone(loud: Loud) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    found = asyncio.run(asyncio.wait_for(ask(Batcher(loud, 4, pool), ("a",)), 5))
    assert isinstance(found[0], RuntimeError)


def test_queue_and_run_are_told_apart(loud: Loud) -> None:
    async def behind() -> Completed[Words]:
        loud.gate.clear()
        to = batcher(loud)
        first = asyncio.ensure_future(to.submit(("a",)))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(to.submit(("b",)))
        await asyncio.sleep(0.1)
        loud.gate.set()
        await first
        return await second

    done = asyncio.run(behind())
    assert done.queue_s > 0.08
    assert done.run_s < 0.08


@pytest.mark.parametrize("on_loop", [False, True])
def test_who_listens_may_fail_and_the_next_is_answered_all_the_same(loud: Loud, on_loop: bool) -> None:
    def failing(images: int, seconds: float) -> None:
        raise OSError("the disk is full")

    async def twice() -> list[Words]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        to = Batcher(loud, 4, ThreadPoolExecutor(1), lambda _: on_loop, failing)
        return [(await asyncio.wait_for(to.submit((word,)), 5)).result for word in ("a", "b")]

    assert asyncio.run(twice()) == [("A",), ("B",)]


# On the loop, which is the main thread's, SystemExit ends the process, as it should.
@pytest.mark.parametrize(
    ("error", "on_loop"), [(StopIteration("odd"), False), (StopIteration("odd"), True), (SystemExit(3), False)]
)
def test_nobody_is_left_waiting_by_an_exception_that_no_future_takes(error: BaseException, on_loop: bool) -> None:
    def run(works: Sequence[Words]) -> list[Words]:
        if ("bad",) in works:
            raise error
        return list(works)

    async def both() -> list[Completed[Words] | BaseException]:
        to = Batcher(run, 1, ThreadPoolExecutor(1), lambda _: on_loop)
        return await asyncio.wait_for(ask(to, ("bad",), ("good",)), 5)

    failed, done = asyncio.run(both())
    assert isinstance(failed, RuntimeError)
    assert type(error).__name__ in str(failed)
    assert isinstance(done, Completed)


def test_what_was_given_up_is_not_kept(loud: Loud) -> None:
    class Pixels(list[str]):
        pass

    async def leaving() -> None:
        loud.gate.clear()
        to = batcher(loud)
        first = asyncio.ensure_future(to.submit(("first",)))
        await asyncio.sleep(0.05)
        pixels = Pixels(["left"])
        kept = weakref.ref(pixels)
        left = asyncio.ensure_future(to.submit(pixels))  # type: ignore[arg-type]
        del pixels
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait({left})
        del left
        gc.collect()
        assert kept() is None, "it waits for a batch that is still far"
        loud.gate.set()
        await first

    asyncio.run(leaving())


@pytest.mark.parametrize("on_loop", [False, True])
def test_a_batch_is_of_nobodys_context(on_loop: bool) -> None:
    seen: list[str] = []

    def run(works: Sequence[Words]) -> list[Words]:
        seen.append(request_id.get())
        return list(works)

    async def one() -> None:
        request_id.set("mine")
        await Batcher(run, 1, ThreadPoolExecutor(1), lambda _: on_loop).submit(("a",))
        assert request_id.get() == "mine"

    asyncio.run(one())
    assert seen == ["-"]


def test_who_chokes_on_his_result_harms_no_neighbour(loud: Loud) -> None:
    async def go() -> list[str]:
        to, output = batcher(loud, most_on_loop=9), list[str]()

        def choke(_: object) -> None:
            raise KeyError("own")

        to.put(("a",), choke)
        to.put(("b",), lambda done: output.append(str(done)))
        await to.submit(("c",))
        return output

    assert len(asyncio.run(go())) == 1
