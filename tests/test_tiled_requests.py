"""Pictures in tiles: their memory is counted until their tiles have run, and they let others pass."""

import asyncio
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import save_tiny, tiled_spec, tiny

from app.bundle import load, save
from app.bundle.drift import EMBEDDINGS
from app.bundle.encode import png
from app.bundle.header import read_header
from app.bundle.manifest import ANOMALY_MAP
from app.errors import BrokenImage, QueueFull, TooManyPixels
from app.inference.admission import Admission
from app.inference.answer import DISTANCES, EMBEDDING, answer_pictures
from app.inference.decoding import Decoding, InProcessDecoder, Limits
from app.inference.predictor import Predictor
from app.inference.repository import Repository

TILED = tiled_spec(channels=3)
OUTPUTS = frozenset({EMBEDDING, ANOMALY_MAP, DISTANCES})


def picture(width: int, height: int, seed: int = 0) -> bytes:
    """A JPEG: large enough ones are not decoded on the side."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


LARGE, OTHER = picture(1000, 700), picture(1000, 700, seed=1)
SMALL = png(Image.new("L", (30, 20)))


@contextmanager
def decoding() -> Iterator[Decoding]:
    with ThreadPoolExecutor(2) as pool:
        made = Decoding(pool, Limits(10_000_000, 100_000_000, 1 << 30), 2, InProcessDecoder)
        try:
            yield made
        finally:
            made.close()


def hold(images: int) -> "object":
    return lambda: None


def test_the_bytes_of_a_picture_are_reserved_while_it_is_in_use() -> None:
    async def use(made: Decoding) -> None:
        headers = await made.read_headers([LARGE], TILED)
        async with made.picture([LARGE], 0, headers.each[0], TILED, hold) as pixels:  # type: ignore[arg-type]
            assert pixels.shape == (700, 1000, 3)
            assert made.held == pixels.nbytes
        assert made.held == 0
        with pytest.raises(RuntimeError, match="while its tiles ran"):
            async with made.picture([LARGE], 0, headers.each[0], TILED, hold):  # type: ignore[arg-type]
                raise RuntimeError("while its tiles ran")
        assert made.held == 0
        broken = LARGE[: len(LARGE) // 2]
        with pytest.raises(BrokenImage):
            async with made.picture([broken], 0, headers.each[0], TILED, hold):  # type: ignore[arg-type]
                pass
        assert made.held == 0

    with decoding() as made:
        asyncio.run(use(made))


def test_two_large_pictures_at_a_time_are_in_memory_and_small_ones_do_not_wait_for_them() -> None:
    async def use(made: Decoding) -> None:
        entered, leave = asyncio.Semaphore(0), asyncio.Event()

        async def one(data: bytes) -> None:
            async with made.picture([data], 0, read_header(data), TILED, hold):  # type: ignore[arg-type]
                entered.release()
                await leave.wait()

        large = [asyncio.create_task(one(LARGE)) for _ in range(5)]
        for _ in range(2):
            await entered.acquire()
        small = asyncio.create_task(one(SMALL))
        await entered.acquire()
        assert made.held == 2 * 700 * 1000 * 3
        large[-1].cancel()  # one that waits for its turn
        leave.set()
        await asyncio.gather(*large[:-1], small)
        assert made.held == 0

    with decoding() as made:
        asyncio.run(use(made))


def test_a_caller_that_leaves_while_its_picture_is_decoded_leaves_nothing_reserved() -> None:
    async def use(made: Decoding) -> None:
        async def one() -> None:
            async with made.picture([LARGE], 0, read_header(LARGE), TILED, hold):  # type: ignore[arg-type]
                raise AssertionError("it had left")

        task = asyncio.create_task(one())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert made.held > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(1000):  # what was begun is decoded to its end
            await asyncio.sleep(0.01 if made.held else 0)
        assert made.held == 0

    with decoding() as made:
        asyncio.run(asyncio.wait_for(use(made), 30))


@contextmanager
def predictor_of(models: Path, max_queue: int = 10_000, reserved: int = 0) -> Iterator[Predictor]:
    repository = Repository(models, max_batch=32)
    repository.open()
    with decoding() as made:
        yield Predictor(repository, Admission(max_queue, reserved=reserved), made, 32)
    repository.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    save_tiny(tmp_path, shape=TILED)
    return tmp_path


def test_served_and_offline_a_picture_has_the_same_results(models: Path) -> None:
    bundle = load(models / "tiny/1")
    with predictor_of(models) as predictor:
        found = asyncio.run(predictor.predict([LARGE, SMALL], predictor.repository.get(None), OUTPUTS))
    alone = answer_pictures(bundle, [bundle.preprocess(LARGE), bundle.preprocess(SMALL)], OUTPUTS)
    for name in (EMBEDDING, DISTANCES):
        np.testing.assert_allclose(found.outputs[name], alone[name], rtol=1e-5)
    for one, other in zip(found.outputs[ANOMALY_MAP], alone[ANOMALY_MAP], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found.outputs[ANOMALY_MAP][0].shape == (88, 125)
    assert found.images.shape == (2, 0, 0, 3)


def test_tiles_fill_the_queue_and_a_picture_that_never_fits_is_not_told_to_try_again(models: Path) -> None:
    """Of 31 × 21 tiles, where 700 fit, of which 100 are for single small images."""
    with predictor_of(models, max_queue=700, reserved=100) as predictor:
        model, admission = predictor.repository.get(None), predictor.admission
        with pytest.raises(TooManyPixels, match=r"651 tiles of 64 pixels; at most 600 are allowed \(MAX_QUEUE\)"):
            asyncio.run(predictor.predict([LARGE], model, OUTPUTS))
        admission.most = 760
        with admission.admit(100, 0.0), pytest.raises(QueueFull):
            asyncio.run(predictor.predict([LARGE], model, OUTPUTS))
        release = admission.hold(750)
        asyncio.run(predictor.predict([SMALL], model, OUTPUTS))
        release()
        asyncio.run(predictor.predict([LARGE], model, OUTPUTS))
        assert admission.images == 0


def test_a_small_picture_passes_large_ones_that_came_before(models: Path) -> None:
    """Their tiles wait a batch at a time: those of three pictures would be served before otherwise."""
    with predictor_of(models) as predictor:
        predictor._max_batch = 2
        model, order = predictor.repository.get(None), []

        async def one(name: str, files: list[bytes]) -> None:
            await predictor.predict(files, model, OUTPUTS)
            order.append(name)

        async def all_of_them() -> None:
            tasks = [asyncio.create_task(one(f"large {number}", [LARGE, OTHER])) for number in range(3)]
            for _ in range(20):  # until they have begun
                await asyncio.sleep(0)
            assert predictor.admission.images > 3000
            await asyncio.gather(*tasks, one("small", [SMALL]))

        asyncio.run(all_of_them())
        assert order[0] == "small"


def test_drift_counts_pictures_and_not_their_tiles(tmp_path: Path) -> None:
    fields, files = tiny(TILED)
    with np.load(io.BytesIO(files["reference.npz"])) as stored:
        arrays = dict(stored)
    arrays[EMBEDDINGS] = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    save(tmp_path, "tiny", fields, {**files, "reference.npz": buffer.getvalue()})
    with predictor_of(tmp_path) as predictor:
        model = predictor.repository.get(None)
        assert model.drift is not None
        asyncio.run(predictor.predict([LARGE, SMALL], model, OUTPUTS))
        assert model.drift.compute().images == 2
