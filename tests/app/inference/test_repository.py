import asyncio
import re
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import save_tiny

from app.errors import ChecksumMismatch, LoadingNotAllowed, NotReady, UnknownModel
from app.inference.answer import EMBEDDING, OutputRequest
from app.inference.model import Model
from app.inference.repository import Repository
from app.settings import ModelControl
from app.telemetry.metrics import Metrics


def test_an_empty_or_missing_folder_is_not_ready(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        repository = Repository(folder)
        repository.open()
        assert not repository.ready
        assert repository.all() == []
        with pytest.raises(NotReady):
            repository.get(None)


def test_without_a_default_the_first_by_name_answers(tmp_path: Path) -> None:
    for name in ("beta", "alpha"):
        save_tiny(tmp_path, name)
    repository = Repository(tmp_path)
    repository.open()
    assert repository.get(None).name == "alpha@1"
    assert [model.name for model in repository.all()] == ["alpha@1", "beta@1"]


def test_a_default_that_was_refused_is_not_ready(tmp_path: Path) -> None:
    save_tiny(tmp_path, "alpha")
    (save_tiny(tmp_path, "beta") / "head.onnx").unlink()
    repository = Repository(tmp_path, default="beta")
    repository.open()
    assert not repository.ready
    assert list(repository.refused) == ["beta/1"]


def test_what_lies_beside_the_bundles_is_left_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path, "tiny")
    (tmp_path / "README.md").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "tiny/notes").mkdir()
    repository = Repository(tmp_path)
    repository.open()
    assert [model.name for model in repository.all()] == ["tiny@1"]
    assert repository.refused == {}


def test_versions_count_as_numbers(tmp_path: Path) -> None:
    for version in (9, 10):
        save_tiny(tmp_path, version=version)
    repository = Repository(tmp_path)
    repository.open()
    assert repository.get("tiny").name == "tiny@10"
    assert repository.get("tiny@9").name == "tiny@9"
    with pytest.raises(UnknownModel, match="tiny@9, tiny@10"):
        repository.get("tiny@8")


# --- live models -----------------------------------------------------------------------------------------------


def opened(models: Path, control: ModelControl, **changes: Any) -> Repository:
    repository = Repository(models, control=control, **changes)
    repository.open()
    return repository


def states(repository: Repository) -> list[tuple[str, int, str]]:
    return [(entry.name, entry.version, entry.state) for entry in repository.index()]


def answered_by(repository: Repository, model: str | None = None) -> str:
    return repository.get(model).name


def request(model: Model) -> OutputRequest:
    return OutputRequest(np.zeros((1, *model.bundle.manifest.input.shape), np.uint8), frozenset({EMBEDDING}))


async def recompute_statistics(repository: Repository) -> None:
    """Two looks, as a folder has to lie still from one to the next; then a turn of the loop for what was freed."""
    for _ in range(2):
        await repository.look()
    await asyncio.sleep(0)


def test_a_call_loads_a_version_in_place_of_the_others_and_rolls_back(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_tiny(tmp_path, seed=seed)
    repository = opened(tmp_path, "explicit")

    async def calls() -> None:
        assert states(repository) == [("tiny", 1, "READY"), ("tiny", 2, "READY")]
        assert (await repository.load("tiny", "1")).name == "tiny@1"
        assert answered_by(repository) == answered_by(repository, "tiny") == answered_by(repository, "tiny@1")
        with pytest.raises(UnknownModel, match="no version '2'; loaded: tiny@1"):
            repository.get("tiny@2")
        await asyncio.sleep(0)
        assert states(repository) == [("tiny", 1, "READY"), ("tiny", 2, "UNAVAILABLE")]
        save_tiny(tmp_path, seed=2)
        assert (await repository.load("tiny")).name == "tiny@3", "the highest there is now"
        assert (await repository.load("tiny", 2)).name == answered_by(repository) == "tiny@2"

    asyncio.run(calls())


def test_who_began_on_a_version_ends_on_it_and_it_is_freed_with_the_last(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_tiny(tmp_path, seed=seed)
    metrics = Metrics("")
    freed = threading.Semaphore(0)
    repository = opened(tmp_path, "explicit", metrics=metrics, on_freed=freed.release)

    def output() -> set[str]:
        return set(re.findall(r'graft_model_info{.*version="(\d)"', metrics.exposition().decode()))

    async def calls() -> None:
        begun = repository.get("tiny@2")
        gone = weakref.ref(begun.bundle)
        await repository.load("tiny", 1)
        assert answered_by(repository, "tiny") == "tiny@1"
        assert states(repository) == [("tiny", 1, "READY"), ("tiny", 2, "UNLOADING")]
        done = await begun.batcher.submit(request(begun))
        assert np.array_equal(done.result[EMBEDDING], begun.bundle.encode(request(begun).images)[EMBEDDING])
        assert output() == {"1", "2"}
        assert await asyncio.to_thread(freed.acquire, timeout=30), "tiny@1 as it was before it was read anew"
        assert not freed.acquire(blocking=False)
        del begun
        await asyncio.sleep(0)
        assert gone() is None
        assert await asyncio.to_thread(freed.acquire, timeout=30)
        assert states(repository) == [("tiny", 1, "READY"), ("tiny", 2, "UNAVAILABLE")]
        assert output() == {"1"}

    asyncio.run(calls())


def test_the_event_loop_goes_on_while_a_version_is_loaded(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    repository = opened(tmp_path, "explicit")

    async def calls() -> None:
        loading = asyncio.create_task(repository.load("tiny"))
        seen = set()
        while not loading.done():
            await asyncio.sleep(0)
            seen |= {(entry.version, entry.state) for entry in repository.index()}
            assert answered_by(repository) == "tiny@1"
        assert loading.result().name == "tiny@1"
        assert seen >= {(1, "READY")}
        assert repository._loading is None

    asyncio.run(calls())


def test_a_bad_version_is_refused_told_once_and_counted_and_the_old_one_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny(tmp_path)
    metrics = Metrics("")
    repository = opened(tmp_path, "explicit", metrics=metrics)
    bad = save_tiny(tmp_path, seed=1)
    head = bad / "head.onnx"
    data = head.read_bytes()

    async def calls() -> None:
        before = repository.get("tiny")
        head.write_bytes(data[:-1] + b"\x00")
        for _ in range(2):
            with pytest.raises(ChecksumMismatch, match=r"tiny/2/head.onnx: SHA-256"):
                await repository.load("tiny", "2")
            assert repository.get("tiny") is before
        assert repository.index()[1].reason == repository.refused["tiny/2"]
        head.write_bytes(data)
        await repository.load("tiny")
        assert repository.refused == {}

    asyncio.run(calls())
    assert [record.message[:30] for record in caplog.records if record.levelname == "ERROR"] == [
        "refused tiny/2/head.onnx: SHA-"
    ]
    text = metrics.exposition().decode()
    assert 'graft_model_loads_total{model="tiny",outcome="refused"} 2.0' in text
    assert 'graft_model_loads_total{model="tiny",outcome="loaded"} 2.0' in text


def test_unloading_takes_every_version_and_loading_brings_one_back(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_tiny(tmp_path, seed=seed)
    save_tiny(tmp_path, "other")
    repository = opened(tmp_path, "explicit", default="tiny")

    async def calls() -> None:
        assert repository.ready
        await repository.unload("tiny")
        assert not repository.ready, "the default is gone"
        assert [model.name for model in repository.all()] == ["other@1"]
        with pytest.raises(NotReady, match="default"):
            repository.get(None)
        with pytest.raises(UnknownModel):
            await repository.unload("tiny")
        await repository.load("tiny")
        assert repository.ready
        assert answered_by(repository) == "tiny@2"

    asyncio.run(calls())


@pytest.mark.parametrize(("name", "version"), [("none", None), ("..", None), ("tiny", "9"), ("tiny", "../1")])
def test_what_is_not_in_the_folder_cannot_be_loaded(tmp_path: Path, name: str, version: str | None) -> None:
    save_tiny(tmp_path)
    repository = opened(tmp_path, "explicit")
    with pytest.raises(UnknownModel, match="the models folder has no"):
        asyncio.run(repository.load(name, version))
    assert repository.refused == {}


@pytest.mark.parametrize("control", ["none", "poll"])
def test_calls_are_obeyed_only_where_they_are_wanted(tmp_path: Path, control: ModelControl) -> None:
    save_tiny(tmp_path)
    repository = opened(tmp_path, control)
    for call in (repository.load("tiny"), repository.unload("tiny")):
        with pytest.raises(LoadingNotAllowed, match=f"GRAFT_MODEL_CONTROL is {control}"):
            asyncio.run(call)


def test_a_version_that_comes_is_served_and_one_that_goes_is_not(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    repository = opened(tmp_path, "poll")

    async def looks() -> None:
        save_tiny(tmp_path, seed=1)
        save_tiny(tmp_path, "other")
        await repository.look()
        assert states(repository)[1:] == [("tiny", 1, "READY"), ("tiny", 2, "UNAVAILABLE")], "it may still be written"
        await recompute_statistics(repository)
        assert [model.name for model in repository.all()] == ["other@1", "tiny@1", "tiny@2"]
        assert answered_by(repository, "tiny") == "tiny@2"
        shutil.rmtree(tmp_path / "tiny/2")
        shutil.rmtree(tmp_path / "other")
        await recompute_statistics(repository)
        assert answered_by(repository, "tiny") == "tiny@1"
        assert states(repository) == [("tiny", 1, "READY")]

    asyncio.run(looks())


def test_a_version_that_is_being_copied_is_not_loaded_and_nothing_is_said_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """File by file, the manifest neither first nor last, with a look after each."""
    models = tmp_path / "models"
    save_tiny(models)
    whole = save_tiny(tmp_path / "elsewhere", seed=1)
    repository = opened(models, "poll")

    async def looks() -> None:
        for file in sorted(whole.iterdir()):
            for part in (1, 2):
                (models / "tiny/2").mkdir(exist_ok=True)
                (models / "tiny/2" / file.name).write_bytes(file.read_bytes()[:: 3 - part])
                await repository.look()
                assert answered_by(repository) == "tiny@1"
        assert repository.refused == {}
        await recompute_statistics(repository)
        assert answered_by(repository) == "tiny@2"

    asyncio.run(looks())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_bad_version_that_lies_still_is_refused_once_and_tried_again_when_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tiny(tmp_path)
    repository = opened(tmp_path, "poll")
    head = save_tiny(tmp_path, seed=1) / "head.onnx"
    data = head.read_bytes()
    head.unlink()

    async def looks() -> None:
        for _ in range(5):
            await repository.look()
        assert answered_by(repository) == "tiny@1"
        assert "tiny/2/head.onnx" in repository.refused["tiny/2"]
        head.write_bytes(data)
        await recompute_statistics(repository)
        assert answered_by(repository) == "tiny@2"
        assert repository.refused == {}

    asyncio.run(looks())
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


def test_a_version_that_is_replaced_in_its_folder_is_swapped_and_a_bad_replacement_is_not(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    repository = opened(tmp_path, "poll")

    async def looks() -> None:
        before = repository.get(None)
        shutil.rmtree(folder)
        save_tiny(tmp_path, version=1, seed=1)
        await recompute_statistics(repository)
        after = repository.get(None)
        assert after.bundle.digest != before.bundle.digest
        (folder / "encoder.onnx").write_bytes(b"damaged")
        await recompute_statistics(repository)
        assert repository.get(None) is after
        assert [(entry.state, entry.reason[:19]) for entry in repository.index()] == [("READY", "tiny/1/encoder.onnx")]

    asyncio.run(looks())


def test_a_folder_that_is_away_takes_no_model_with_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = tmp_path / "models"
    save_tiny(models)
    repository = opened(models, "poll")

    async def looks() -> None:
        models.rename(tmp_path / "away")
        await recompute_statistics(repository)
        assert answered_by(repository) == "tiny@1"
        (tmp_path / "away").rename(models)
        await recompute_statistics(repository)
        assert answered_by(repository) == "tiny@1"

    asyncio.run(looks())
    assert [record.message[:36] for record in caplog.records if record.levelname == "ERROR"] == [
        "the models folder cannot be read, lo"
    ]


def test_polling_goes_on_until_it_is_cancelled(tmp_path: Path) -> None:
    repository = opened(tmp_path, "poll")

    async def polled() -> None:
        polling = asyncio.create_task(repository.poll(0.01))
        save_tiny(tmp_path)
        for _ in range(2000):
            await asyncio.sleep(0.01)
            if repository.ready:
                break
        assert answered_by(repository) == "tiny@1"
        polling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await polling

    asyncio.run(polled())
