import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support import save_tiny

from app.bundle import load
from app.bundle.drawings import golden_files
from app.bundle.scoring import classify
from app.errors import BrokenImage, OperationUnavailable, QueueFull, UnknownModel
from app.inference.admission import Admission
from app.inference.answer import LOGITS
from app.inference.predictor import Answered, Predictor
from app.inference.repository import Repository

FILES = golden_files()


def predictor_of(models: Path, max_queue: int = 100_000) -> Predictor:
    repository = Repository(models)
    repository.open()
    return Predictor(repository, Admission(max_queue), ThreadPoolExecutor(2), max_pixels=1_000_000)


@pytest.fixture(scope="module")
def predictor(models: Path) -> Predictor:
    return predictor_of(models)


def classified(predictor: Predictor, files: Sequence[bytes], model: str | None = None) -> Answered:
    return asyncio.run(predictor.predict(files, model, ["classify"], frozenset({LOGITS})))


def test_answers_come_in_the_order_of_the_files_and_as_one_by_one(predictor: Predictor, models: Path) -> None:
    found = classified(predictor, FILES)
    alone = load(models / "tiny/1")
    classifier = alone.manifest.classifier
    assert found.bundle.name == "tiny"
    assert classifier is not None
    for together, file in zip(classify(found.outputs[LOGITS], classifier.labels, 1.0), FILES, strict=True):
        [single] = alone.classify(alone.preprocess(file)[None])
        assert together.label == single.label
        np.testing.assert_allclose([p for _, p in together.ranked], [p for _, p in single.ranked], atol=1e-6)


def test_a_broken_image_carries_its_place_where_there_are_several(predictor: Predictor) -> None:
    broken = FILES[0][:40]
    with pytest.raises(BrokenImage) as several:
        classified(predictor, [FILES[0], broken])
    assert several.value.index == 1
    with pytest.raises(BrokenImage) as one:
        classified(predictor, [broken])
    assert one.value.index is None


def test_an_unknown_model_is_known_before_anything_is_decoded(predictor: Predictor) -> None:
    with pytest.raises(UnknownModel):
        classified(predictor, [b"not decoded"], "other")


def test_a_model_without_a_head_says_what_it_can_do(tmp_path: Path) -> None:
    save_tiny(tmp_path, head=False)
    with pytest.raises(OperationUnavailable, match="it can: encode, reconstruct, anomaly, predict, decode"):
        classified(predictor_of(tmp_path), [b"not decoded"])


def test_decoding_leaves_the_event_loop_free(predictor: Predictor) -> None:
    """While a request of many images is worked on, the loop turns."""

    async def both() -> int:
        turns = 0
        work = asyncio.ensure_future(predictor.predict(FILES * 200, None, ["classify"], frozenset({LOGITS})))
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(both()) > 10


def test_what_is_beyond_the_queue_is_refused_and_what_is_in_it_is_answered(models: Path) -> None:
    predictor = predictor_of(models, max_queue=2 * len(FILES))

    async def three() -> list[Answered | BaseException]:
        each = [predictor.predict(FILES, None, ["classify"], frozenset({LOGITS})) for _ in range(3)]
        return await asyncio.gather(*each, return_exceptions=True)

    first, second, third = asyncio.run(three())
    assert isinstance(third, QueueFull)
    assert third.retry_after >= 1
    assert isinstance(first, Answered)
    assert isinstance(second, Answered)
    assert predictor.admission.images == 0
    assert len(classified(predictor, FILES).images) == len(FILES)


def test_room_is_given_back_where_an_image_is_broken_or_the_caller_leaves(models: Path) -> None:
    predictor = predictor_of(models, max_queue=len(FILES))

    async def leaving() -> None:
        work = asyncio.ensure_future(predictor.predict(FILES, None, ["classify"], frozenset({LOGITS})))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait({work})

    with pytest.raises(BrokenImage):
        classified(predictor, [FILES[0][:40]])
    asyncio.run(leaving())
    assert predictor.admission.images == 0
