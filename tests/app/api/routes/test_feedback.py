"""POST /v1/feedback, over a real socket: stored, or refused with a reason."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support import assert_problem, eventually, running, save_tiny, serving

from app.bundle import load
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.bundle.spool import FILE, Record, read
from app.errors import SettingsInvalid
from app.main import create_app
from app.settings import Settings

BAG, SHOE = png(garment("bag")), png(garment("sneaker"))
Start = Callable[..., httpx.Client]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder)
    save_tiny(folder, "encoder", head=False, decoder=False)
    save_tiny(folder, "several", thresholds=(0.5, 0.5, 0.5))
    return folder


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(**changes: Any) -> httpx.Client:
            given = {"models": folder, "default_model": "tiny", "feedback": tmp_path / "spool", **changes}
            service: AbstractContextManager[httpx.Client] = serving(Settings(**given))
            return stack.enter_context(service)

        yield begin


def stored(folder: Path) -> list[Record]:
    found = list(read(folder))
    assert all(isinstance(each, Record) for each in found)
    return [each for each in found if isinstance(each, Record)]


def test_each_image_of_a_request_is_a_line(start: Start, folder: Path, tmp_path: Path) -> None:
    client, bundle = start(), load(folder / "tiny/1")
    answer = client.post("/v1/feedback?label=owl", files=[("a", BAG), ("b", SHOE)], headers={"x-request-id": "mine"})
    assert answer.status_code == 200
    predicted = [each.label for each in bundle.classify(np.stack([bundle.preprocess(each) for each in (BAG, SHOE)]))]
    assert answer.json()["results"] == [{"label": "owl", "predicted": each} for each in predicted]
    first, second = stored(tmp_path / "spool")
    assert (first.request_id, first.index, second.index) == ("mine", 0, 1)
    assert (first.model, first.version, first.digest) == ("tiny", 1, bundle.digest)
    assert first.encoder == bundle.manifest.files["encoder.onnx"]
    assert (first.label, first.of_anomaly, first.predicted) == ("owl", False, predicted[0])
    assert second.image == sha256(SHOE).hexdigest()
    assert second.picture is None
    expected = bundle.encode(bundle.preprocess(SHOE)[None])["embedding"][0]
    np.testing.assert_allclose(second.tensors["embedding"], expected, rtol=1e-5)


def test_pictures_are_kept_where_that_is_allowed(start: Start, tmp_path: Path) -> None:
    start(feedback_pictures=True).post("/v1/feedback?label=cat", files={"image": BAG})
    assert [each.picture for each in stored(tmp_path / "spool")] == [BAG]


def test_sound_and_defect_are_verdicts_on_the_anomaly_score(start: Start, tmp_path: Path) -> None:
    client = start()
    for label in ("sound", "defect"):
        assert client.post(f"/v1/feedback?label={label}", files={"image": BAG}).json()["results"][0]["predicted"] in (
            "sound",
            "defect",
        )
    found = stored(tmp_path / "spool")
    assert [(each.label, each.of_anomaly) for each in found] == [("sound", True), ("defect", True)]
    assert all(each.distances is not None and len(each.distances) == 2 for each in found)


@pytest.mark.parametrize("asked", ["/v1/classify", "/v1/encode?model=several", "/v1/predict?top_k=1"])
@pytest.mark.parametrize("large", [False, True], ids=["at the connection", "through FastAPI"])
def test_a_request_is_named_by_its_id(start: Start, tmp_path: Path, asked: str, large: bool) -> None:
    client = start()
    padding = [("note", (None, "x" * 70_000))] if large else []
    answer = client.post(asked, files=[("a", BAG), ("b", SHOE), *padding])
    given = {"request_id": answer.headers["x-request-id"], "index": 1, "label": "sound"}
    assert client.post("/v1/feedback", params=given).status_code == 200
    [record] = stored(tmp_path / "spool")
    assert (record.request_id, record.index, record.image) == (given["request_id"], 1, sha256(SHOE).hexdigest())
    assert record.model == ("several" if "several" in asked else "tiny")


def test_what_is_not_remembered_is_asked_for(start: Start) -> None:
    client = start(feedback_recent_mb=0)
    answer = client.post("/v1/classify", files={"image": BAG})
    query = f"/v1/feedback?label=cat&request_id={answer.headers['x-request-id']}"
    assert_problem(client.post(query), 404, "request-forgotten", "send the image")


def test_an_image_that_the_request_did_not_have_is_refused(start: Start) -> None:
    client = start()
    client.post("/v1/classify", files={"image": BAG}, headers={"x-request-id": "one"})
    answer = client.post("/v1/feedback?label=cat&request_id=one&index=1")
    assert_problem(answer, 400, "malformed-request", "the request had 1 images")


@pytest.mark.parametrize(
    ("query", "status", "kind", "message"),
    [
        ("", 400, "malformed-request", "label"),
        ("?label=", 400, "malformed-request", "label"),
        ("?label=fish", 400, "malformed-request", "'fish' is none of cat, dog, owl, sound, defect"),
        ("?label=cat&model=several", 400, "malformed-request", "'cat' is none of sound, defect"),
        ("?label=cat&model=encoder", 409, "operation-unavailable", "neither one label an image nor an anomaly score"),
        ("?label=cat&model=other", 404, "unknown-model", "other"),
        ("?label=cat&index=-1", 400, "malformed-request", "index"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(
    start: Start, tmp_path: Path, query: str, status: int, kind: str, message: str
) -> None:
    assert_problem(start().post(f"/v1/feedback{query}", files={"image": BAG}), status, kind, message)
    assert stored(tmp_path / "spool") == []


def test_a_broken_image_stores_none_of_its_request(start: Start, tmp_path: Path) -> None:
    answer = start().post("/v1/feedback?label=cat", files=[("a", BAG), ("b", BAG[:-30])])
    assert assert_problem(answer, 422, "broken-image")["index"] == 1
    assert stored(tmp_path / "spool") == []


def test_a_full_spool_is_507(start: Start, tmp_path: Path) -> None:
    client = start(feedback_mb=1)
    (tmp_path / "spool" / FILE).write_bytes(bytes(999_900) + b"\n")
    assert_problem(client.post("/v1/feedback?label=cat", files={"image": BAG}), 507, "not-stored", "FEEDBACK_MB")


def test_a_folder_that_has_gone_is_507(start: Start, tmp_path: Path) -> None:
    client = start()
    (tmp_path / "spool" / FILE).unlink()
    (tmp_path / "spool").rmdir()
    answer = client.post("/v1/feedback?label=cat", files={"image": BAG})
    assert_problem(answer, 507, "not-stored", "No such file or directory")


def test_without_a_folder_none_is_accepted(client: httpx.Client) -> None:
    answer = client.post("/v1/feedback?label=cat", files={"image": BAG})
    assert_problem(answer, 403, "feedback-not-allowed", "GRAFT_FEEDBACK")


def test_it_takes_a_key_as_other_operations_do(start: Start) -> None:
    client = start(api_keys="secret")
    assert_problem(client.post("/v1/feedback?label=cat", files={"image": BAG}), 401, "unauthorised")
    keyed = {"x-api-key": "secret"}
    assert client.post("/v1/feedback?label=cat", files={"image": BAG}, headers=keyed).status_code == 200


def test_a_page_of_another_origin_may_not_give_any(start: Start, tmp_path: Path) -> None:
    answer = start().post("/v1/feedback?label=cat", files={"image": BAG}, headers={"origin": "https://evil.example"})
    assert_problem(answer, 403, "cross-origin", "GRAFT_CORS_ORIGINS")
    assert stored(tmp_path / "spool") == []


def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsInvalid, match="GRAFT_FEEDBACK="):
        create_app(Settings(feedback=tmp_path / "file"))


def test_several_workers_write_into_one_spool(folder: Path, tmp_path: Path) -> None:
    settings = {"GRAFT_MODELS": str(folder), "GRAFT_FEEDBACK": str(tmp_path), "GRAFT_DEFAULT_MODEL": "tiny"}
    with running(**settings, GRAFT_WORKERS="2") as (_, address, _):

        def one() -> int:
            return httpx.post(f"{address}/v1/feedback?label=cat", files={"image": BAG}).status_code

        assert [one() for _ in range(20)] == [200] * 20
        assert eventually(lambda: len(stored(tmp_path)) == 20)
    assert os.listdir(tmp_path) == [FILE]
