"""The tiny bundle, with a reference of random images: dim ones, of which bright ones are told."""

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support import assert_problem, eventually, serving, tiny

from app.bundle import Bundle, load, save
from app.bundle.drift import BASIS, CONFIDENCES, EMBEDDINGS, SCORES, StreamScores
from app.bundle.encode import png
from app.bundle.scoring import probabilities
from app.bundle.sets import arrays_of
from app.inference.answer import DISTANCES, EMBEDDING, LOGITS, OutputRequest, answer
from app.inference.drift import Window
from app.settings import Settings

OUTPUTS = frozenset({EMBEDDING, LOGITS, DISTANCES})


def images(rng: np.random.Generator, count: int, brightest: int = 120) -> np.ndarray:
    return rng.integers(0, brightest, (count, 6, 4, 1), dtype=np.uint8)


def with_reference(models: Path, stream: bool = True) -> Path:
    """With `stream` also what a martingale and an estimated accuracy need; labels are drawn by the model itself."""
    fields, files = tiny()
    plain = load(save(models, "plain", fields, files))
    encoded = plain.encode(images(np.random.default_rng(0), 1000))
    with np.load(io.BytesIO(files["reference.npz"])) as stored:
        arrays = dict(stored)
    arrays[EMBEDDINGS] = encoded["embedding"]
    arrays[CONFIDENCES] = probabilities(plain.logits(encoded), 1.0).max(axis=1)
    if stream:
        others = plain.encode(images(np.random.default_rng(1), 1000))
        arrays[BASIS] = StreamScores.basis_of(arrays[EMBEDDINGS])
        arrays[SCORES] = StreamScores(arrays[EMBEDDINGS], arrays[BASIS]).of(others["embedding"])
        rows = probabilities(plain.logits(others), 1.0)
        arrays |= arrays_of(rows, (rows.cumsum(axis=1) < np.random.default_rng(2).random((1000, 1))).sum(axis=1))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return save(models, "tiny", fields, {**files, "reference.npz": buffer.getvalue()})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(with_reference(tmp_path_factory.mktemp("models")))


@pytest.fixture
def window(bundle: Bundle) -> Window:
    assert bundle.drift is not None
    return Window(bundle, bundle.drift)


def serve(window: Window, bundle: Bundle, rows: np.ndarray, outputs: frozenset[str] = OUTPUTS) -> None:
    for start in range(0, len(rows), 20):
        batch = [OutputRequest(rows[start + at : start + at + 5], outputs) for at in range(0, 20, 5)]
        window.add(answer(bundle, batch))


def test_before_there_are_enough_images_nothing_is_said_of_the_codes(window: Window, bundle: Bundle) -> None:
    assert not window.has_new_requests
    empty = window.compute()
    assert (empty.images, empty.window, empty.p_value, empty.confidence) == (0, 400, None, None)
    serve(window, bundle, images(np.random.default_rng(1), 380))
    assert window.has_new_requests
    some = window.compute()
    assert (some.images, some.p_value, some.discrepancy) == (380, None, None)
    assert some.confidence is not None
    assert not window.has_new_requests


def test_the_latest_images_are_judged_and_no_more_are_kept(window: Window, bundle: Bundle) -> None:
    rng = np.random.default_rng(2)
    serve(window, bundle, images(rng, 4000))
    alike = window.compute()
    assert alike.images == 400
    assert alike.p_value is not None
    assert alike.p_value > 0.01
    serve(window, bundle, images(rng, 400, brightest=160))
    other = window.compute()
    assert other.p_value == 0.001
    assert other.confidence is not None
    assert alike.confidence is not None
    assert other.anomaly_score is not None
    assert len(window._latest) == 400
    serve(window, bundle, images(rng, 400))
    assert window.compute().p_value == pytest.approx(alike.p_value, abs=1)
    assert (window.compute().p_value or 0) > 0.001, "it is over when it is over"


def test_what_was_not_asked_for_is_not_judged_and_what_is_no_number_is_left_out(window: Window, bundle: Bundle) -> None:
    serve(window, bundle, images(np.random.default_rng(3), 400), frozenset({EMBEDDING}))
    window.add([{EMBEDDING: np.full((3, 5), np.nan, np.float32)}])
    found = window.compute()
    assert (found.confidence, found.anomaly_score) == (None, None)
    assert found.images == 400
    assert found.p_value is not None
    assert found.p_value > 0.01


def test_the_service_tells_drift_and_counts_it(tmp_path: Path) -> None:
    with_reference(tmp_path)
    rng = np.random.default_rng(4)
    with serving(Settings(models=tmp_path, default_model="tiny")) as client:

        def ask(brightest: int) -> None:
            for _ in range(25):
                files = [("image", png_of(image)) for image in images(rng, 20, brightest)]
                client.post("/v1/predict", files=files).raise_for_status()

        ask(120)
        body = client.get("/v1/models/tiny/drift").json()
        assert (body["images"], body["window"], body["drifted"]) == (400, 400, False)
        assert body["model"]["name"] == "tiny"
        ask(160)
        body = client.get("/v1/models/tiny@1/drift").json()
        assert (body["p_value"], body["drifted"]) == (0.001, True)
        output = gauges(client)
        assert output["graft_drift_p_value"] == {"": 0.001}
        assert output["graft_drift_discrepancy"][""] == pytest.approx(body["discrepancy"])
        assert output["graft_drift_stability"] == {
            "confidence": pytest.approx(body["confidence_stability"]),
            "anomaly_score": pytest.approx(body["anomaly_score_stability"]),
        }
        assert "estimated_accuracy" not in body, "it is of images like the held-out ones"
        answer = client.get("/v1/models/plain/drift")
        assert_problem(answer, 409, "operation-unavailable", "plain@1 has no reference for drift")
        assert_problem(client.get("/v1/models/none/drift"), 404, "unknown-model")


def test_the_martingale_sees_all_operations_and_its_alarm_withholds_the_accuracy(tmp_path: Path) -> None:
    with_reference(tmp_path)
    rng = np.random.default_rng(5)
    with serving(Settings(models=tmp_path, default_model="tiny")) as client:

        def ask(operation: str, brightest: int) -> dict[str, Any]:
            files = [("image", png_of(image)) for image in images(rng, 40, brightest)]
            client.post(f"/v1/{operation}?model=tiny", files=files).raise_for_status()
            body: dict[str, Any] = client.get("/v1/models/tiny/drift").json()
            return body

        seen = [ask(operation, 120)["watched"] for operation in ("encode", "classify", "anomaly", "reconstruct")]
        assert seen == [40, 80, 120, 160]
        assert "estimated_accuracy" not in ask("encode", 120), "40 images were classified: too few"
        body = [ask("classify", 120) for _ in range(3)][-1]
        low, high = body["estimated_accuracy_interval"]
        assert low < body["estimated_accuracy"] < high
        assert body["alarm"] is False
        assert body["martingale_alarm_at"] == 100
        assert body["martingale_over_time"][0] == [0, 1.0]
        assert body["martingale_over_time"][-1] == [320, pytest.approx(body["martingale"])]
        output = gauges(client)
        assert output["graft_drift_martingale"][""] == pytest.approx(body["martingale"])
        assert output["graft_drift_alarm"][""] == 0
        assert eventually(lambda: bool(ask("encode", 160)["alarm"]))
        body = ask("classify", 120)
        assert body["alarm"] is True, "it stays"
        assert 320 < body["alarm_after"] <= body["watched"]
        assert "estimated_accuracy" not in body
        assert gauges(client)["graft_drift_alarm"][""] == 1
        assert np.isnan(gauges(client, "graft_estimated_accuracy")["graft_estimated_accuracy"][""])


def test_older_references_have_no_martingale(tmp_path: Path) -> None:
    with_reference(tmp_path, stream=False)
    with serving(Settings(models=tmp_path, default_model="tiny")) as client:
        assert not {"watched", "martingale", "alarm"} & client.get("/v1/models/tiny/drift").json().keys()


def png_of(image: np.ndarray) -> bytes:
    return png(Image.fromarray(image[..., 0]))


def gauges(client: httpx.Client, prefix: str = "graft_drift") -> dict[str, dict[str, float]]:
    return {
        family.name: {sample.labels.get("of", ""): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(client.get("/metrics").text)
        if family.name.startswith(prefix)
    }
