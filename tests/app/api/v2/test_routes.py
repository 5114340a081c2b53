"""The protocol over a real socket: what it answers, that it is what /v1 answers, and how it fails."""

import base64
import gzip
import io
import json
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import LABELS, LATENT, ROOT, assert_error, save_tiny, serving

from app.api import pictures
from app.bundle import load
from app.bundle.drawings import garment, golden_files
from app.bundle.encode import png
from app.inference.answer import OutputRequest, Outputs, answer
from app.inference.batcher import Batcher
from app.main import create_app
from app.settings import Settings

GOOD = png(garment("bag"))
LENGTH = "inference-header-content-length"
DTYPES = {"FP32": np.float32, "FP64": np.float64}
INFER = "/v2/models/tiny/infer"
Tensor = dict[str, Any]


def as_pixels(pixels: np.ndarray) -> Tensor:
    return {"name": "image", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.tolist()}


def as_files(files: Sequence[bytes]) -> Tensor:
    data = [base64.b64encode(file).decode() for file in files]
    return {"name": "image", "shape": [len(files)], "datatype": "BYTES", "data": data}


def prefixed(files: Sequence[bytes]) -> bytes:
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def binary(question: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Arguments of a request whose inputs come after the JSON."""
    inputs = [
        {name: given[name] for name in ("name", "shape", "datatype")} | {"parameters": {"binary_data_size": len(data)}}
        for given, data in zip(question["inputs"], tensors, strict=True)
    ]
    head = json.dumps(question | {"inputs": inputs}).encode()
    headers = {LENGTH: str(len(head)), "content-type": "application/octet-stream"}
    return {"content": head + b"".join(tensors), "headers": headers}


def ask(client: httpx.Client, path: str = INFER, **request: Any) -> dict[str, Any]:
    answer = client.post(path, **request)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def arrays(answer: httpx.Response | dict[str, Any]) -> dict[str, np.ndarray]:
    """By output, whichever way they came."""
    if isinstance(answer, dict):
        return {o["name"]: np.array(o["data"], DTYPES[o["datatype"]]).reshape(o["shape"]) for o in answer["outputs"]}
    assert answer.status_code == 200, answer.text
    at = int(answer.headers[LENGTH])
    found = {}
    for output in json.loads(answer.content[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        data = answer.content[at : at + size]
        found[output["name"]] = np.frombuffer(data, DTYPES[output["datatype"]]).reshape(output["shape"])
        at += size
    assert at == len(answer.content)
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, strict=True, err_msg=name)


@pytest.fixture(scope="module")
def shipped() -> Iterator[httpx.Client]:
    """The service with the models that it comes with."""
    with serving(Settings(models=ROOT / "models")) as client:
        yield client


# --- the same answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-seed"])
def test_it_answers_bit_for_bit_what_v1_answers(shipped: httpx.Client, name: str) -> None:
    labels = load(ROOT / f"models/{name}/1").manifest.classifier.labels
    for file in golden_files()[:4]:
        [old] = shipped.post("/v1/predict", params={"model": name}, files={"image": file}).json()["results"]
        new = arrays(ask(shipped, f"/v2/models/{name}/infer", json={"inputs": [as_files([file])]}))
        assert new["probabilities"][0].tolist() == [old["probabilities"][label] for label in labels]
        assert new["embedding"][0].tolist() == old["embedding"]
        assert new["anomaly_score"].tolist() == [old["score"]]
        assert new["p_value"].tolist() == [old["p_value"]]
        assert pictures.base64_of(pictures.unit_png(new["reconstruction"][0])) == old["image"]


def test_files_and_pixels_binary_and_json_agree(shipped: httpx.Client) -> None:
    path = "/v2/models/fashion-mnist/infer"
    bundle = load(ROOT / "models/fashion-mnist/1")
    files = golden_files()[:5]
    pixels = np.stack([bundle.preprocess(file) for file in files])
    expected = arrays(ask(shipped, path, json={"inputs": [as_files(files)]}))
    assert expected["probabilities"].shape == (5, 10)
    ways: list[dict[str, Any]] = [
        {"json": {"inputs": [as_pixels(pixels)]}},
        {"json": {"inputs": [as_pixels(pixels) | {"data": pixels.ravel().tolist()}]}},
        binary({"inputs": [as_pixels(pixels)]}, pixels.tobytes()),
        binary({"inputs": [as_files(files)]}, prefixed(files)),
    ]
    for way in ways:
        assert_same(arrays(ask(shipped, path, **way)), expected)
    wanted = {"binary_data_output": True}
    both = shipped.post(path, **binary({"inputs": [as_files(files)], "parameters": wanted}, prefixed(files)))
    assert both.headers["content-type"] == "application/octet-stream"
    assert_same(arrays(both), expected)


def test_a_body_may_be_one_images_pixels_and_nothing_else(client: httpx.Client) -> None:
    pixels = np.arange(24, dtype=np.uint8)
    found = client.post(INFER, content=pixels.tobytes(), headers={LENGTH: "0"})
    assert_same(arrays(found), arrays(ask(client, json={"inputs": [as_pixels(pixels.reshape(1, 6, 4, 1))]})))
    assert_error(client.post(INFER, content=b"x" * 23, headers={LENGTH: "0"}), 400, "23 bytes of data")


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-type": "application/json"}])
def test_whatever_content_type_a_body_has_it_is_read(client: httpx.Client, headers: dict[str, str]) -> None:
    body = json.dumps({"inputs": [as_files([GOOD])]}).encode()
    assert client.post(INFER, content=body, headers=headers).status_code == 200


def test_a_body_may_come_compressed(client: httpx.Client) -> None:
    request = binary({"inputs": [as_files([GOOD])]}, prefixed([GOOD]))
    expected = ask(client, **request)
    for coding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = request["headers"] | {"content-encoding": coding}
        assert ask(client, content=pack(request["content"]), headers=headers) == expected


# --- what is asked for -----------------------------------------------------------------------------------------


def test_the_id_comes_back_and_none_stays_none(client: httpx.Client) -> None:
    question: dict[str, Any] = {"inputs": [as_files([GOOD])]}
    for given in ("42", "", 'ü "'):
        assert ask(client, json=question | {"id": given})["id"] == given
    assert "id" not in ask(client, json=question)
    assert "id" not in ask(client, json=question | {"id": None})


def test_an_answer_says_which_model_gave_it(client: httpx.Client, models: Path) -> None:
    digest = load(models / "tiny/1").digest
    for path in (INFER, "/v2/models/tiny/versions/1/infer", "/v2/models/tiny@1/infer"):
        found = ask(client, path, json={"inputs": [as_files([GOOD])]})
        assert (found["model_name"], found["model_version"]) == ("tiny", "1")
        assert found["parameters"] == {"digest": digest}


def test_outputs_come_as_each_was_asked_for(client: httpx.Client) -> None:
    everything = arrays(ask(client, json={"inputs": [as_files([GOOD])]}))
    assert list(everything) == [
        *("embedding", "reconstruction", "logits", "probabilities", "anomaly_score", "p_value"),
    ]
    requested = [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "embedding"}]
    question = {"inputs": [as_files([GOOD])], "outputs": requested, "parameters": {"binary_data_output": True}}
    found = client.post(INFER, json=question)
    at = int(found.headers[LENGTH])
    logits, embedding = json.loads(found.content[:at])["outputs"]
    assert logits["data"] == everything["logits"][0].tolist()
    assert embedding["parameters"] == {"binary_data_size": 4 * LATENT}
    assert found.content[at:] == everything["embedding"].tobytes()


def test_classification_gives_the_best_and_their_labels(client: httpx.Client) -> None:
    [chances] = arrays(ask(client, json={"inputs": [as_files([GOOD])]}))["probabilities"]
    order = np.argsort(-chances)
    expected = [f"{chances[i]}:{i}:{LABELS[i]}" for i in order]
    for count, binary_data in ((1, False), (2, True), (99, False)):
        parameters = {"classification": count, "binary_data": binary_data}
        question = {"inputs": [as_files([GOOD])], "outputs": [{"name": "probabilities", "parameters": parameters}]}
        found = client.post(INFER, json=question)
        at = int(found.headers.get(LENGTH, len(found.content)))
        [output] = json.loads(found.content[:at])["outputs"]
        assert (output["datatype"], output["shape"]) == ("BYTES", [1, min(count, 3)])
        if binary_data:
            assert found.content[at:] == prefixed([text.encode() for text in expected[:count]])
        else:
            assert output["data"] == expected[:count]


def test_the_decoder_and_the_head_are_reached_by_what_they_take(shipped: httpx.Client) -> None:
    path = "/v2/models/fashion-mnist/infer"
    whole = arrays(ask(shipped, path, json={"inputs": [as_files([GOOD])]}))
    codes = {
        name: {"name": name, "shape": list(whole[name].shape), "datatype": "FP32", "data": whole[name].tolist()}
        for name in ("embedding", "features")
    }
    drawn = arrays(ask(shipped, path, json={"inputs": [codes["embedding"]]}))
    assert_same(drawn, {"reconstruction": whole["reconstruction"]})
    answer_text = arrays(ask(shipped, path, **binary({"inputs": [codes["features"]]}, whole["features"].tobytes())))
    assert_same(answer_text, {name: whole[name] for name in ("logits", "probabilities")})
    both = arrays(ask(shipped, path, json={"inputs": list(codes.values()), "outputs": [{"name": "reconstruction"}]}))
    assert_same(both, drawn)
    refused = shipped.post(path, json={"inputs": [codes["embedding"]], "outputs": [{"name": "logits"}]})
    assert_error(refused, 400, "has no 'logits' for embedding; it has: reconstruction")


def test_many_codes_are_decoded_as_v1_decodes_them(client: httpx.Client) -> None:
    codes = np.random.default_rng(0).normal(size=(8, LATENT)).astype(np.float32)
    given = {"name": "embedding", "shape": [8, LATENT], "datatype": "FP32"}
    requested = [{"name": "reconstruction"}]
    found = arrays(ask(client, **binary({"inputs": [given], "outputs": requested}, codes.tobytes())))
    npy = io.BytesIO()
    np.save(npy, codes)
    headers = {"accept": "application/x-npy", "content-type": "application/x-npy"}
    old = client.post("/v1/decode", content=npy.getvalue(), headers=headers)
    np.testing.assert_array_equal(found["reconstruction"], np.load(io.BytesIO(old.content)), strict=True)


# --- one machinery with /v1 ------------------------------------------------------------------------------------


class Held:
    """A service whose model waits at a gate before every batch, and notes what is asked of it."""

    def __init__(self, models: Path, **settings: Any) -> None:
        given = Settings(models=models, max_queue=4, max_images=4, **settings)
        self.app = create_app(given)
        self.gate, self.batches = threading.Event(), list[list[OutputRequest]]()
        self._serving = serving(given, self.app)

    def __enter__(self) -> "Held":
        self.client = self._serving.__enter__()
        model = self.app.state.repository.get(None)

        def run(wishes: Sequence[OutputRequest]) -> list[Outputs]:
            self.gate.wait(20)
            self.batches.append(list(wishes))
            return answer(model.bundle, wishes)

        model.batcher = Batcher(run, most=32, pool=ThreadPoolExecutor(1))
        return self

    def __exit__(self, *error: object) -> None:
        self.gate.set()
        self._serving.__exit__(None, None, None)

    def wait_for(self, images: int) -> None:
        while self.app.state.predictor.admission.images != images:
            threading.Event().wait(0.005)


@pytest.mark.parametrize(
    ("requested", "wishes"),
    [
        (["embedding"], {"embedding"}),
        (["logits", "probabilities"], {"logits"}),
        (["anomaly_score", "p_value"], {"distances"}),
        (["reconstruction", "embedding"], {"reconstruction", "embedding"}),
    ],
)
def test_only_what_is_asked_for_is_run(models: Path, requested: list[str], wishes: set[str]) -> None:
    with Held(models) as held:
        held.gate.set()
        question = {"inputs": [as_files([GOOD])], "outputs": [{"name": name} for name in requested]}
        assert list(arrays(ask(held.client, json=question))) == requested
        [[wish]] = held.batches
        assert wish.outputs == wishes


def test_requests_of_both_kinds_run_together(models: Path) -> None:
    question = {"inputs": [as_files([GOOD])], "outputs": [{"name": "embedding"}]}
    with Held(models) as held, ThreadPoolExecutor(4) as callers:
        old = [callers.submit(held.client.post, "/v1/encode", files={"image": GOOD})]
        held.wait_for(1)
        new = [callers.submit(held.client.post, INFER, json=question) for _ in range(2)]
        old.append(callers.submit(held.client.post, "/v1/encode", files={"image": GOOD}))
        held.wait_for(4)
        assert_error(held.client.post(INFER, json=question), 429, "at most 4 are allowed")
        assert int(held.client.post(INFER, json=question).headers["retry-after"]) >= 1
        held.gate.set()
        codes = [each.result().json()["results"][0]["embedding"] for each in old]
        codes += [arrays(each.result().json())["embedding"][0].tolist() for each in new]
        assert [len(batch) for batch in held.batches] == [1, 3]
        np.testing.assert_allclose(codes, [codes[0]] * 4, rtol=1e-5)


def test_a_late_answer_is_504_by_header_parameter_or_setting(models: Path) -> None:
    question = {"inputs": [as_files([GOOD])]}
    with Held(models, timeout_ms=150) as held:
        assert_error(held.client.post(INFER, json=question), 504, "within 150 ms")
        assert_error(held.client.post(INFER, json=question, headers={"X-Timeout-Ms": "60"}), 504, "within 60 ms")
        hurried = question | {"parameters": {"timeout": 50_000}}  # microseconds
        assert_error(held.client.post(INFER, json=hurried), 504, "within 50 ms")
        codes = {"name": "embedding", "shape": [1, LATENT], "datatype": "FP32", "data": [0.0] * LATENT}
        assert ask(held.client, json={"inputs": [codes]}), "which needs no batch"


def test_what_was_done_is_counted(models: Path) -> None:
    with serving(Settings(models=models)) as client:
        for _ in range(2):
            ask(client, json={"inputs": [as_files([GOOD] * 3)]})
        assert_error(client.post(INFER, json={}), 400)
        client.post("/v1/encode", files={"image": GOOD}).raise_for_status()
        families = text_string_to_metric_families(client.get("/metrics").text)
        answer_text = {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}
        [stats] = client.get("/v2/models/tiny/stats").json()["model_stats"]
    of_tiny = [("model", "tiny"), ("version", "1")]
    infer = (("model", "tiny"), ("operation", "infer"))
    assert answer_text["graft_requests_total", *infer, ("status", "200"), ("version", "1")] == 2
    assert answer_text["graft_requests_total", *infer, ("status", "400"), ("version", "1")] == 1
    assert answer_text["graft_confidence_count", *of_tiny] == answer_text["graft_anomaly_score_count", *of_tiny] == 6
    assert answer_text["graft_requests_refused_total", ("type", "malformed-request")] == 1
    assert (stats["name"], stats["version"]) == ("tiny", "1")
    assert (stats["inference_count"], stats["execution_count"]) == (7, 3)
    parts = stats["inference_stats"]
    assert parts["success"]["count"] == parts["queue"]["count"] == parts["compute_infer"]["count"] == 3
    assert parts["fail"]["count"] == 1
    spent = parts["queue"]["ns"] + parts["compute_input"]["ns"] + parts["compute_infer"]["ns"]
    assert parts["success"]["ns"] > spent > 0


# --- models ----------------------------------------------------------------------------------------------------


def test_metadata_and_configuration_name_the_tensors(client: httpx.Client) -> None:
    for path in ("/v2", "/v2/"):
        server = client.get(path, follow_redirects=False).json()
        assert server["name"] == "graft"
        assert "binary_tensor_data" in server["extensions"]
    for path in ("/v2/models/tiny", "/v2/models/tiny/versions/1"):
        answer_text = client.get(path).json()
        assert answer_text["versions"] == ["1"]
        assert answer_text["platform"] == "onnx_onnxv1"
        assert answer_text["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 6, 4, 1]}]
        found = ask(client, json={"inputs": [as_files([GOOD] * 2)]})["outputs"]
        given = [{"name": o["name"], "datatype": o["datatype"], "shape": [-1, *o["shape"][1:]]} for o in found]
        assert answer_text["outputs"] == given
    config = client.get("/v2/models/tiny/config").json()
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [6, 4, 1]}]
    assert [output["name"] for output in config["output"]] == [output["name"] for output in answer_text["outputs"]]


def test_health_says_both_words_that_clients_look_for(client: httpx.Client, tmp_path: Path) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path).json() == {"live": True, "ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    with serving(Settings(models=tmp_path)) as empty:
        assert empty.get("/v2/health/live").json() == {"live": True, "ready": False}
        assert_error(empty.get("/v2/health/ready"), 503, "no model can be served")


def test_a_model_that_lacks_parts_gives_what_it_has(tmp_path: Path) -> None:
    save_tiny(tmp_path, "plain", head=False, decoder=False)
    with serving(Settings(models=tmp_path)) as client:
        found = ask(client, "/v2/models/plain/infer", json={"inputs": [as_files([GOOD])]})
        assert [output["name"] for output in found["outputs"]] == ["embedding"]
        codes = {"name": "embedding", "shape": [1, LATENT], "datatype": "FP32", "data": [0.0] * LATENT}
        refused = client.post("/v2/models/plain/infer", json={"inputs": [codes]})
        assert_error(refused, 400, "no output that follows from embedding")


@pytest.mark.parametrize("body", [b"", b'""', b"{}", b'{"ready": false}'])
def test_the_index_lists_what_is_loaded_and_what_was_refused(tmp_path: Path, body: bytes) -> None:
    save_tiny(tmp_path, "good")
    (save_tiny(tmp_path, "bad") / "encoder.onnx").write_bytes(b"")
    with serving(Settings(models=tmp_path)) as client:
        bad, good = client.post("/v2/repository/index", content=body).json()
        assert good == {"name": "good", "version": "1", "state": "READY", "reason": ""}
        assert (bad["name"], bad["version"], bad["state"]) == ("bad", "1", "UNAVAILABLE")
        assert "encoder.onnx" in bad["reason"]
        assert client.post("/v2/repository/index", json={"ready": True}).json() == [good]
        assert_error(client.post("/v2/repository/index", content=b'{"ready": 1}'), 400, "neither true nor false")
        assert_error(client.post("/v2/repository/index", content=b"[]"), 400, "not a JSON object")


def test_models_are_loaded_and_unloaded_by_calls_only_where_the_setting_says_so(
    client: httpx.Client, tmp_path: Path
) -> None:
    for call in ("load", "unload"):
        assert_error(client.post(f"/v2/repository/models/tiny/{call}"), 403, "GRAFT_MODEL_CONTROL")
    save_tiny(tmp_path, "tiny", seed=1)
    save_tiny(tmp_path, "tiny", seed=2)
    with serving(Settings(models=tmp_path, model_control="explicit")) as own:
        question = {"inputs": [as_files([GOOD])]}
        assert ask(own, json=question)["model_version"] == "2"
        back = own.post("/v2/repository/models/tiny/load", json={"parameters": {"version": "1"}})
        assert back.json() == {"name": "tiny", "version": "1"}
        assert ask(own, json=question)["model_version"] == "1"
        assert own.post("/v2/repository/models/tiny/load").status_code == 200
        assert ask(own, json=question)["model_version"] == "2"
        assert own.post("/v2/repository/models/tiny/unload", content=b'""').status_code == 200
        assert_error(own.post(INFER, json=question), 404, "there is no model 'tiny'")
        assert_error(own.post("/v2/repository/models/tiny/unload"), 404)
        for parameters, message in (
            ({"version": "7"}, "no version '7'"),
            ({"version": 1.5}, "version 1.5: a string"),
            ({"config": "{}"}, "config"),
        ):
            refused = own.post("/v2/repository/models/tiny/load", json={"parameters": parameters})
            assert_error(refused, 404 if "7" in message else 400, message)


@pytest.mark.parametrize("path", ["/v1/classify", INFER])
def test_who_is_told_of_a_deadline_is_told_so_though_the_model_has_gone(tmp_path: Path, path: str) -> None:
    save_tiny(tmp_path)
    body, headers = (GOOD, {"content-type": "image/png"}) if path != INFER else (bytes(24), {LENGTH: "0"})
    held = Held(tmp_path, model_control="explicit", timeout_ms=500)
    with held, ThreadPoolExecutor(1) as asking:
        late = asking.submit(held.client.post, path, content=body, headers=headers)
        held.wait_for(1)
        assert httpx.post(held.client.base_url.join("/v2/repository/models/tiny/unload")).status_code == 200
        answer_text = late.result(20)
        metrics = held.client.get("/metrics").text
    assert answer_text.status_code == 504
    assert "not answered within 500 ms" in answer_text.text
    assert answer_text.text.startswith('{"error":') == (path == INFER)
    operation = "infer" if path == INFER else "classify"
    counted = f'graft_requests_total{{model="tiny",operation="{operation}",status="504",version="1"}} 1.0'
    assert counted in metrics


# --- failures --------------------------------------------------------------------------------------------------


def test_every_failure_has_the_protocols_shape(client: httpx.Client, models: Path) -> None:
    question = {"inputs": [as_files([GOOD])]}
    assert_error(client.get("/v2/nothing"), 404, "nothing at /v2/nothing")
    assert_error(client.get("/v2/models/other"), 404, "no model 'other'")
    assert_error(client.post("/v2/models/other/infer", json=question), 404, "no model 'other'")
    assert_error(client.post("/v2/models/tiny/versions/2/infer", json=question), 404, "no version '2'")
    assert_error(client.get(INFER), 405)
    assert_error(client.post(INFER, json=question, headers={"X-Timeout-Ms": "soon"}), 400, "X-Timeout-Ms")
    assert_error(client.post(INFER, content=b"x" * 1_000_001), 413, "at most 1,000,000")
    assert_error(client.post(INFER, json={"inputs": [as_files([GOOD] * 9)]}), 413, "at most 8")
    broken = {"inputs": [as_files([GOOD, GOOD[:40]])]}
    assert assert_error(client.post(INFER, json=broken), 422).startswith("image 1: ")
    assert_error(client.post(INFER, json={"inputs": [as_files([b"text"])]}), 415)
    assert_error(client.post(INFER, content=b"x", headers={"content-encoding": "br"}), 415, "'br'")
    with serving(Settings(models=models, api_keys="k")) as closed:
        refused = closed.post(INFER, json=question)
        assert_error(refused, 401, "API key is required")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert closed.post(INFER, json=question, headers={"X-API-Key": "k"}).status_code == 200
        assert closed.get("/v2/health/ready").status_code == 200
    with serving(Settings(models=models, root_path="/graft")) as behind:
        for path in ("/graft/v2/nothing", "/v2/nothing"):
            assert_error(behind.get(path), 404)


def test_what_nothing_foresaw_has_it_too(models: Path) -> None:
    settings = Settings(models=models)
    app = create_app(settings)
    with serving(settings, app) as client:
        app.state.repository.get(None).batcher = None
        assert_error(client.post(INFER, json={"inputs": [as_files([GOOD])]}), 500, "an error in the service")


def test_codes_beyond_all_numbers_are_refused(client: httpx.Client) -> None:
    codes = {"name": "embedding", "shape": [1, LATENT], "datatype": "FP32", "data": [3e38] * LATENT}
    assert_error(client.post(INFER, json={"inputs": [codes]}), 400, "is not finite")
    assert_error(client.post(INFER, json={"inputs": [codes | {"data": [1e39] * LATENT}]}), 400, "not finite")


def test_json_of_more_values_than_are_needed_is_refused_before_it_is_built(client: httpx.Client) -> None:
    for hostile in (b"[" + b"[]," * 300_000 + b"[]]", b'{"inputs":' + b"[" * 900_000, b"[" + b"1," * 490_000 + b"1]"):
        assert_error(client.post(INFER, content=hostile), 413, "more values")
