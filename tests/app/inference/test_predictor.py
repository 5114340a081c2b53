import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.bundle import load
from app.bundle.drawings import golden_files
from app.bundle.manifest import InputSpec
from app.bundle.scoring import classify
from app.errors import BrokenImage, QueueFull
from app.inference.admission import Admission
from app.inference.answer import LOGITS
from app.inference.decoding import Decoding, ImageDecoder, InProcessDecoder, Limits
from app.inference.predictor import Prediction, Predictor
from app.inference.repository import Repository

FILES = golden_files()


def predictor_of(
    models: Path, max_queue: int = 100_000, max_batch: int = 32, make: Callable[[], ImageDecoder] = InProcessDecoder
) -> Predictor:
    repository = Repository(models, max_batch=max_batch)
    repository.open()
    decoding = Decoding(ThreadPoolExecutor(2), Limits(1_000_000, 100_000_000, 1 << 30), make=make)
    return Predictor(repository, Admission(max_queue), decoding, max_batch)


@pytest.fixture(scope="module")
def predictor(models: Path) -> Predictor:
    return predictor_of(models)


def requested(predictor: Predictor, files: Sequence[bytes]) -> Coroutine[Any, Any, Prediction]:
    return predictor.predict(files, predictor.repository.get(None), frozenset({LOGITS}))


def classified(predictor: Predictor, files: Sequence[bytes]) -> Prediction:
    return asyncio.run(requested(predictor, files))


def test_results_are_in_the_order_of_the_files_and_equal_single_ones(predictor: Predictor, models: Path) -> None:
    found = classified(predictor, FILES)
    alone = load(models / "tiny/1")
    classifier = alone.manifest.classifier
    assert found.bundle.name == "tiny"
    assert classifier is not None
    for together, file in zip(classify(found.outputs[LOGITS], classifier), FILES, strict=True):
        [single] = alone.classify(alone.preprocess(file)[None])
        assert together.label == single.label
        np.testing.assert_allclose([p for _, p in together.ranked], [p for _, p in single.ranked], atol=1e-6)


def test_a_broken_image_among_several_reports_its_index(predictor: Predictor) -> None:
    broken = FILES[0][:40]
    with pytest.raises(BrokenImage) as several:
        classified(predictor, [FILES[0], broken])
    assert several.value.index == 1
    with pytest.raises(BrokenImage) as one:
        classified(predictor, [broken])
    assert one.value.index is None


def test_decoding_leaves_the_event_loop_free(predictor: Predictor) -> None:
    """The loop runs while a request of many images is processed."""

    async def both() -> int:
        turns = 0
        work = asyncio.ensure_future(requested(predictor, FILES * 200))
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(both()) > 10


def test_requests_beyond_the_queue_are_refused_and_those_in_it_are_answered(models: Path) -> None:
    predictor = predictor_of(models, max_queue=2 * len(FILES))

    async def three() -> list[Prediction | BaseException]:
        each = [requested(predictor, FILES) for _ in range(3)]
        return await asyncio.gather(*each, return_exceptions=True)

    first, second, third = asyncio.run(three())
    assert isinstance(third, QueueFull)
    assert third.retry_after >= 1
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert predictor.admission.images == 0
    assert len(classified(predictor, FILES).images) == len(FILES)


def test_broken_images_and_callers_that_leave_free_their_places(models: Path) -> None:
    predictor = predictor_of(models, max_queue=len(FILES))

    async def leaving() -> None:
        work = asyncio.ensure_future(requested(predictor, FILES))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait({work})

    with pytest.raises(BrokenImage):
        classified(predictor, [FILES[0][:40]])
    asyncio.run(leaving())
    assert predictor.admission.images == 0


def test_more_images_than_a_batch_run_as_several_with_equal_results(models: Path) -> None:
    files = FILES * 3
    split, whole = classified(predictor_of(models, max_batch=4), files), classified(predictor_of(models), files)
    assert split.batch == 4
    assert whole.batch > 4
    assert split.outputs.keys() == whole.outputs.keys()
    for name, values in whole.outputs.items():
        np.testing.assert_allclose(split.outputs[name], values, atol=1e-5)


class Slow(InProcessDecoder):
    def __init__(self) -> None:
        self.begun, self.gate = threading.Semaphore(0), threading.Event()

    def decode(self, data: bytes, spec: InputSpec, max_pixels: int, memory: int) -> np.ndarray:
        self.begun.release()
        self.gate.wait(10)
        return super().decode(data, spec, max_pixels, memory)


def test_when_the_caller_leaves_decoding_ends_after_the_current_image_and_frees_its_places(
    models: Path,
) -> None:
    emptied, slow = asyncio.Event(), Slow()
    predictor = predictor_of(models, make=lambda: slow)
    predictor.admission = Admission(1000, lambda images: None if images else emptied.set())

    async def leaving() -> None:
        work = asyncio.ensure_future(requested(predictor, FILES * 4))
        await asyncio.to_thread(slow.begun.acquire)
        work.cancel()
        await asyncio.wait({work})
        assert predictor.admission.images == 1, "one is still at it"
        slow.gate.set()
        await asyncio.wait_for(emptied.wait(), 10)

    asyncio.run(leaving())
    assert not slow.begun.acquire(blocking=False), "the next image was decoded for nobody"


def test_decoding_that_has_not_started_is_cancelled_when_the_caller_leaves(models: Path) -> None:
    """The decoder is busy when the caller comes and leaves."""
    slow = Slow()
    predictor = predictor_of(models, make=lambda: slow)

    async def leaving() -> None:
        first = asyncio.ensure_future(requested(predictor, FILES * 4))
        await asyncio.to_thread(slow.begun.acquire)
        work = asyncio.ensure_future(requested(predictor, FILES * 4))
        await asyncio.sleep(0.05)
        work.cancel()
        await asyncio.wait({work}, timeout=5)
        assert work.cancelled()
        assert predictor.admission.images == len(FILES) * 4
        slow.gate.set()
        await first

    asyncio.run(leaving())
    assert predictor.admission.images == 0
