"""The order of decoding, its memory budget, and what happens when a decoder dies."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hostile import DRAWN
from support import eventually, spec

from app.bundle.header import read_header
from app.bundle.manifest import InputSpec
from app.errors import BrokenImage, DecoderEnded, TooManyPixels
from app.inference.decoding import Decoding, ImageDecoder, InProcessDecoder, Limits, default_memory

SPEC = spec(8, 8, 3)
LARGE, MIDDLE, SMALL = (DRAWN["TIFF 16-bit RGBA, deflated"](*size) for size in ((900, 700), (500, 400), (90, 80)))
ROOMY = Limits(10_000_000, 100_000_000, 1 << 30)


def need(data: bytes) -> int:
    return read_header(data).peak_bytes(SPEC)


class RecordingDecoder(InProcessDecoder):
    """Records what it decodes, and waits until the test lets it continue."""

    def __init__(self, open_: bool = True) -> None:
        self.order: list[bytes] = []
        self.begun, self.gate = threading.Semaphore(0), threading.Event()
        self.closed = self.dies = False
        self.at_once, self.most_at_once = 0, 0
        if open_:
            self.gate.set()

    @property
    def alive(self) -> bool:  # type: ignore[override]
        return not self.closed

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray:
        self.order.append(data)
        self.begun.release()
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.gate.wait(20)
        self.at_once -= 1
        if self.dies:
            self.dies = False
            raise DecoderEnded("it ended")
        return super().decode(data, spec, max_pixels, memory)

    def close(self) -> None:
        self.closed = True


@contextmanager
def decoding(
    make: Callable[[], ImageDecoder], limits: Limits = ROOMY, decoders: int = 1, idle_s: float = 30
) -> Iterator[Decoding]:
    with ThreadPoolExecutor(2) as pool:
        made = Decoding(pool, limits, decoders, make, idle_s)
        try:
            yield made
        finally:
            made.close()


def hold(images: int) -> Callable[[], None]:
    return lambda: None


async def decoded(of: Decoding, *files: bytes) -> np.ndarray:
    headers = await of.read_headers(files, SPEC)
    return await of.decode(files, headers, SPEC, hold)


def test_the_default_budget_is_a_share_of_the_containers_memory(tmp_path: Path) -> None:
    for name, text in {
        "proc/self/cgroup": "0::/graft",
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/graft/memory.max": str(512 << 20),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert default_memory(tmp_path) == int(0.55 * (512 << 20))
    assert default_memory(tmp_path / "elsewhere") > 0  # without a limit, a share of the machine's


def test_one_image_does_not_wait_for_all_images_of_an_earlier_request() -> None:
    one = RecordingDecoder(open_=False)

    async def ask(of: Decoding) -> None:
        many = asyncio.ensure_future(decoded(of, *[LARGE] * 20))
        await asyncio.to_thread(one.begun.acquire)
        single = asyncio.ensure_future(decoded(of, SMALL))
        await asyncio.sleep(0.05)
        one.gate.set()
        await asyncio.gather(many, single)

    with decoding(lambda: one) as of:
        asyncio.run(ask(of))
    assert one.order[:2] == [LARGE, SMALL]
    assert len(one.order) == 21


def test_requests_of_many_images_take_turns() -> None:
    one = RecordingDecoder(open_=False)

    async def ask(of: Decoding) -> None:
        first = asyncio.ensure_future(decoded(of, *[LARGE] * 10))
        await asyncio.to_thread(one.begun.acquire)
        second = asyncio.ensure_future(decoded(of, *[MIDDLE] * 10))
        await asyncio.sleep(0.05)
        one.gate.set()
        await asyncio.gather(first, second)

    with decoding(lambda: one) as of:
        asyncio.run(ask(of))
    turns = "".join("L" if each == LARGE else "M" for each in one.order)
    assert turns.rindex("M") < turns.rindex("L")
    assert turns.index("M") < 3


def test_concurrent_decoding_stays_within_the_budget_and_decodes_everything() -> None:
    every = RecordingDecoder(open_=False)
    limits = Limits(10_000_000, 100_000_000, 2 * need(LARGE) + need(SMALL) // 2)
    most = 0

    async def ask(of: Decoding) -> list[np.ndarray]:
        nonlocal most
        asking = [asyncio.ensure_future(decoded(of, LARGE, SMALL, MIDDLE)) for _ in range(6)]
        for _ in range(2):
            await asyncio.to_thread(every.begun.acquire)
        every.gate.set()
        while not all(each.done() for each in asking):
            most = max(most, of.held)
            await asyncio.sleep(0.001)
        return [each.result() for each in asking]

    with decoding(lambda: every, limits, decoders=8) as of:
        assert all(len(images) == 3 for images in asyncio.run(ask(of)))
        assert of.held == 0
    assert 0 < most <= limits.memory
    assert every.most_at_once >= 2


def test_an_image_that_could_never_fit_is_refused_with_both_numbers() -> None:
    with decoding(InProcessDecoder, Limits(10_000_000, 100_000_000, need(LARGE) - 1)) as of:
        numbers = f"take {need(LARGE):,} bytes.* at most {need(LARGE) - 1:,} are"
        with pytest.raises(TooManyPixels, match=numbers) as refused:
            asyncio.run(decoded(of, SMALL, LARGE))
        assert refused.value.index == 1
        assert len(asyncio.run(decoded(of, MIDDLE))) == 1


@pytest.mark.parametrize("count", [3, 30], ids=["on the loop", "in a thread"])
def test_the_pixels_of_a_request_are_bounded_before_anything_is_decoded(count: int) -> None:
    one = RecordingDecoder()
    with decoding(lambda: one, Limits(10_000_000, count * 200_000 - 1, 1 << 30)) as of:
        with pytest.raises(
            TooManyPixels, match=f"{count * 200_000:,} pixels in total; at most {count * 200_000 - 1:,}"
        ):
            asyncio.run(decoded(of, *[MIDDLE] * count))
        assert len(asyncio.run(decoded(of, *[MIDDLE] * (count - 1)))) == count - 1
    assert len(one.order) == count - 1


def test_the_images_of_a_caller_that_leaves_are_not_decoded() -> None:
    one = RecordingDecoder(open_=False)

    async def ask(of: Decoding) -> None:
        first = asyncio.ensure_future(decoded(of, LARGE))
        await asyncio.to_thread(one.begun.acquire)
        leaver = asyncio.ensure_future(decoded(of, *[MIDDLE] * 5))
        last = asyncio.ensure_future(decoded(of, LARGE))
        await asyncio.sleep(0.05)
        leaver.cancel()
        await asyncio.wait({leaver})
        one.gate.set()
        await asyncio.gather(first, last)
        assert of.held == 0

    with decoding(lambda: one) as of:
        asyncio.run(ask(of))
    assert one.order == [LARGE, LARGE]


def test_when_a_decoder_dies_its_image_fails_and_another_decodes_the_next() -> None:
    made: list[RecordingDecoder] = []

    def make() -> RecordingDecoder:
        made.append(RecordingDecoder())
        made[-1].dies = len(made) == 1
        return made[-1]

    async def ask(of: Decoding) -> list[np.ndarray | BaseException]:
        return await asyncio.gather(decoded(of, LARGE), decoded(of, MIDDLE), return_exceptions=True)

    with decoding(make) as of:
        first, second = asyncio.run(ask(of))
        assert isinstance(first, DecoderEnded)
        assert isinstance(second, np.ndarray)
        assert of.held == 0
    assert [each.order for each in made] == [[LARGE], [MIDDLE]]


def test_that_a_decoder_dies_is_no_fault_of_one_image_alone() -> None:
    one = RecordingDecoder()
    one.dies = True

    async def ask(of: Decoding) -> np.ndarray:
        files = [LARGE, MIDDLE]
        return await of.decode(files, await of.read_headers(files, SPEC), SPEC, hold, {})

    with decoding(lambda: one) as of, pytest.raises(DecoderEnded):
        asyncio.run(ask(of))


def test_a_decoder_that_died_while_idle_fails_no_image() -> None:
    made: list[RecordingDecoder] = []

    def make() -> RecordingDecoder:
        made.append(RecordingDecoder())
        return made[-1]

    async def ask(of: Decoding) -> None:
        await decoded(of, LARGE)
        made[0].closed = True
        await decoded(of, LARGE)

    with decoding(make) as of:
        asyncio.run(ask(of))
    assert len(made) == 2


def test_an_idle_decoder_is_closed_and_started_again_when_needed() -> None:
    made: list[RecordingDecoder] = []

    def make() -> RecordingDecoder:
        made.append(RecordingDecoder())
        return made[-1]

    async def ask(of: Decoding) -> None:
        await decoded(of, LARGE)
        assert not made[0].closed
        for _ in range(500):
            if made[0].closed:
                break
            await asyncio.sleep(0.01)
        assert made[0].closed
        await decoded(of, LARGE)

    with decoding(make, idle_s=0.05) as of:
        asyncio.run(ask(of))
    assert len(made) == 2
    assert eventually(lambda: made[1].closed)


def test_a_broken_image_reports_its_index_and_stops_the_later_ones() -> None:
    one = RecordingDecoder()
    broken = LARGE[:8] + bytes(len(LARGE) - 200) + LARGE[-192:]
    with decoding(lambda: one) as of:
        with pytest.raises(BrokenImage) as found:
            asyncio.run(decoded(of, MIDDLE, broken, *[LARGE] * 30))
        assert found.value.index == 1
    assert len(one.order) < 10


def test_small_images_stay_in_this_process() -> None:
    one = RecordingDecoder()
    files = [DRAWN[name](40, 30) for name in ("PNG RGBA", "JPEG RGB", "GIF", "WebP RGB")]
    with decoding(lambda: one) as of:
        for file in files:
            assert asyncio.run(decoded(of, file)).shape == (1, 8, 8, 3)
        assert not one.order
        asyncio.run(decoded(of, *files * 30))  # each is small, all together are not
        assert len(one.order) == 120
