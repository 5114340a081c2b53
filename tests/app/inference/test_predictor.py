import asyncio
from pathlib import Path

import numpy as np
import pytest
from support import save_tiny

from app.bundle import load
from app.bundle.drawings import golden_files
from app.errors import BrokenImage, OperationUnavailable, UnknownModel
from app.inference.predictor import Predictor
from app.inference.repository import Repository

FILES = golden_files()


@pytest.fixture(scope="module")
def predictor(models: Path) -> Predictor:
    repository = Repository(models)
    repository.open()
    return Predictor(repository, max_pixels=1_000_000)


def test_answers_come_in_the_order_of_the_files_and_as_one_by_one(predictor: Predictor, models: Path) -> None:
    bundle, found = asyncio.run(predictor.classify(FILES, None))
    alone = load(models / "tiny/1")
    assert bundle.name == "tiny"
    for together, file in zip(found, FILES, strict=True):
        [single] = alone.classify(alone.preprocess(file)[None])
        assert together.label == single.label
        np.testing.assert_allclose([p for _, p in together.ranked], [p for _, p in single.ranked], atol=1e-6)


def test_a_broken_image_carries_its_place_where_there_are_several(predictor: Predictor) -> None:
    broken = FILES[0][:40]
    with pytest.raises(BrokenImage) as several:
        asyncio.run(predictor.classify([FILES[0], broken], None))
    assert several.value.index == 1
    with pytest.raises(BrokenImage) as one:
        asyncio.run(predictor.classify([broken], None))
    assert one.value.index is None


def test_an_unknown_model_is_known_before_anything_is_decoded(predictor: Predictor) -> None:
    with pytest.raises(UnknownModel):
        asyncio.run(predictor.classify([b"not decoded"], "other"))


def test_a_model_without_a_head_says_what_it_can_do(tmp_path: Path) -> None:
    save_tiny(tmp_path, head=False)
    repository = Repository(tmp_path)
    repository.open()
    with pytest.raises(OperationUnavailable, match="it can: encode, reconstruct, anomaly"):
        asyncio.run(Predictor(repository, 10**6).classify([FILES[0]], None))


def test_decoding_leaves_the_event_loop_free(predictor: Predictor) -> None:
    """While a request of many images is worked on, the loop turns."""

    async def both() -> int:
        turns = 0
        work = asyncio.ensure_future(predictor.classify(FILES * 200, None))
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(both()) > 10
