"""What a deadline does to the task that sets it."""

import asyncio
import time

import pytest

from app.api.deadlines import Deadlines


def test_a_deadline_cancels_its_own_task_only() -> None:
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


def test_a_cleared_deadline_does_not_fire() -> None:
    async def through() -> int:
        deadlines = Deadlines()
        deadlines.set(0.01).clear()
        await asyncio.sleep(0.1)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(through()) == 0


def test_a_task_can_await_again_after_its_deadline_fired() -> None:
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


def test_after_moment_is_called_once() -> None:
    async def calls(seconds: float) -> int:
        deadlines, called = Deadlines(), []
        deadline = deadlines.set(60, after_moment=called.append)
        await asyncio.sleep(seconds)
        deadline.clear()
        await asyncio.sleep(0.1)
        assert called in ([], [deadline])
        return len(called)

    assert asyncio.run(calls(0)) == 0
    assert asyncio.run(calls(0.3)) == 1


def test_deadlines_work_on_a_new_event_loop_after_the_first_has_ended() -> None:
    deadlines = Deadlines()

    async def left_behind() -> None:
        deadlines.set(60)

    async def fires() -> str:
        deadline = deadlines.set(0.01)
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            pass
        finally:
            deadline.clear()
        return deadline.fired

    asyncio.run(left_behind())
    assert asyncio.run(fires()) == "late"
