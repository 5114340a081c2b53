"""What a deadline does to the task that sets it."""

import asyncio
import time

import pytest

from app.api.deadlines import Deadlines


def test_it_cancels_its_task_when_its_time_is_over_and_no_other() -> None:
    async def sleeper(deadlines: Deadlines, seconds: float) -> str:
        deadline = deadlines.set(seconds)
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            return deadline.fired
        finally:
            deadline.clear()
        return "slept"

    async def both() -> list[str]:
        deadlines = Deadlines()
        return await asyncio.gather(sleeper(deadlines, 0.05), sleeper(deadlines, 60))

    start = time.monotonic()
    assert asyncio.run(both()) == ["late", "slept"]
    assert time.monotonic() - start >= 0.5


def test_what_is_off_does_not_ring_and_the_task_lives_on() -> None:
    async def through() -> int:
        deadlines = Deadlines()
        deadlines.set(0.01).clear()
        await asyncio.sleep(0.1)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(through()) == 0


def test_a_task_that_was_cancelled_by_its_alarm_can_go_on_awaiting() -> None:
    async def through() -> str:
        deadline = Deadlines().set(60)
        deadline.fire("left")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(60)
        deadline.clear()
        async with asyncio.timeout(5):  # which asks the task whether somebody else has cancelled it
            await asyncio.sleep(0)
        return deadline.fired

    assert asyncio.run(through()) == "left"


def test_who_wants_to_know_is_told_once_after_a_moment() -> None:
    async def told(seconds: float) -> int:
        deadlines, heard = Deadlines(), []
        deadline = deadlines.set(60, after_moment=heard.append)
        await asyncio.sleep(seconds)
        deadline.clear()
        await asyncio.sleep(0.1)
        assert heard in ([], [deadline])
        return len(heard)

    assert asyncio.run(told(0)) == 0
    assert asyncio.run(told(0.3)) == 1


def test_deadlines_outlive_a_loop_that_ended_before_they_were_looked_at() -> None:
    deadlines = Deadlines()

    async def left_behind() -> None:
        deadlines.set(60)

    async def rings() -> str:
        deadline = deadlines.set(0.01)
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            pass
        finally:
            deadline.clear()
        return deadline.fired

    asyncio.run(left_behind())
    assert asyncio.run(rings()) == "late"
