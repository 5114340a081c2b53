"""/v1/embeddings: the unmodified client of OpenAI's API, and what it never sends."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support import LATENT, ROOT, metric_value, read_metrics, save_tiny, serving

from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.settings import Settings

FILES = [png(garment(kind)) for kind in GARMENTS]
KEY = "a-key"
PATH = "/v1/embeddings"


def uri(file: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    models = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        save_tiny(models, seed=seed)
    with serving(Settings(models=models, max_images=12, max_body_mb=1, api_keys=KEY)) as client:
        client.headers["authorization"] = f"Bearer {KEY}"
        yield client


@pytest.fixture(scope="module")
def embeddings(service: httpx.Client) -> np.ndarray:
    """What /v1/encode says of each file, alone."""
    answers = [service.post("/v1/encode", files={"image": file}).json()["results"] for file in FILES]
    return np.array([result["embedding"] for [result] in answers], np.float32)


def ask(service: httpx.Client, **body: Any) -> httpx.Response:
    return service.post(PATH, json=body)


def assert_refused(answer: httpx.Response, status: int, kind: str, message: str) -> dict[str, Any]:
    """A problem, whose `error` is what that API's clients read."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) - {"index"} == {"type", "title", "status", "detail", "request_id", "error"}
    assert (body["status"], body["type"]) == (status, f"urn:graft:problem:{kind}")
    assert message in body["detail"]
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert body["detail"] in error["message"]
    assert error["code"] == kind
    return body


def test_the_unmodified_client_gets_the_embeddings_of_encode(
    service: httpx.Client, embeddings: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    openai = pytest.importorskip("openai")
    assert Path(openai.__file__).parent.name == "openai"
    address = f"{service.base_url}/v1"
    with openai.OpenAI(base_url=address, api_key=KEY, max_retries=0) as client:
        for options in ({}, {"encoding_format": "float"}, {"dimensions": LATENT, "user": "me"}):  # first: base64
            answer = client.embeddings.create(model="tiny@2", input=[uri(file) for file in FILES], **options)
            assert [each.index for each in answer.data] == list(range(len(FILES)))
            found = np.array([each.embedding for each in answer.data], np.float32)
            np.testing.assert_allclose(found, embeddings, rtol=1e-5)
            assert (answer.model, answer.usage.total_tokens, answer.object) == ("tiny@2", 0, "list")
        one = client.embeddings.create(model="tiny", input=uri(FILES[0]))
        np.testing.assert_array_equal(np.array(one.data[0].embedding, np.float32), embeddings[0])
        with pytest.raises(openai.NotFoundError, match="there is no model 'text-embedding-3-small'") as unknown:
            client.embeddings.create(model="text-embedding-3-small", input=uri(FILES[0]))
        assert unknown.value.code == "unknown-model"
        with pytest.raises(openai.BadRequestError, match=r"input\[1\] is no image") as text:
            client.embeddings.create(model="tiny", input=[uri(FILES[0]), "a cat"])
        assert text.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError, match="not trained to be cut"):
            client.embeddings.create(model="tiny", input=uri(FILES[0]), dimensions=2)
        with pytest.raises(openai.UnprocessableEntityError, match="input 1: broken PNG"):
            client.embeddings.create(model="tiny", input=[uri(FILES[0]), uri(FILES[0][:60])])
    with (
        openai.OpenAI(base_url=address, api_key="another", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="an API key is required"),
    ):
        client.embeddings.create(model="tiny", input=uri(FILES[0]))


def test_numbers_are_float32_in_base64_or_a_list(service: httpx.Client, embeddings: np.ndarray) -> None:
    packed = ask(service, input=uri(FILES[0]), encoding_format="base64").json()
    [listed] = ask(service, input=[uri(FILES[0])]).json()["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4"), embeddings[0])
    assert np.array(listed["embedding"], np.float32).tolist() == embeddings[0].tolist()
    assert packed["digest"] == service.post("/v1/encode", files={"image": FILES[0]}).json()["model"]["digest"]


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        ([], 400, "malformed-request", "a JSON object"),
        ({}, 400, "malformed-request", "input[0]"),
        ({"input": []}, 400, "malformed-request", "at least one"),
        ({"input": "a cat"}, 400, "malformed-request", "input[0] is no image as a data URI"),
        ({"input": [[1, 2, 3]]}, 400, "malformed-request", "not text, tokens or addresses"),
        ({"input": "https://example.org/cat.png"}, 400, "malformed-request", "addresses"),
        ({"input": "data:image/png,abc"}, 400, "malformed-request", "input[0]"),
        ({"input": "data:image/png;base64,"}, 400, "malformed-request", "zero bytes"),
        ({"input": "data:image/png;base64,=x"}, 400, "malformed-request", "input[0] is not base64"),
        ({"input": [uri(FILES[0]), 7]}, 400, "malformed-request", "input[1]"),
        ({"input": [uri(FILES[0])] * 13}, 413, "too-many-images", "12"),
        ({"input": "x" * 1_000_001}, 413, "body-too-large", "1,000,000"),
        ({"input": [1] * 1000}, 413, "too-many-images", "more values"),
        ({"input": uri(b"text")}, 415, "not-an-image", "begins with"),
        ({"input": uri(FILES[0]), "model": 3}, 400, "malformed-request", "model: 3 is not a string"),
        ({"input": uri(FILES[0]), "model": "tiny@9"}, 404, "unknown-model", "tiny@2"),
        ({"input": uri(FILES[0]), "encoding_format": "hex"}, 400, "malformed-request", "'hex' is neither float nor"),
        ({"input": uri(FILES[0]), "dimensions": LATENT - 1}, 400, "malformed-request", f"have {LATENT}"),
        ({"input": uri(FILES[0]), "dimensions": True}, 400, "malformed-request", "whole number"),
        ({"input": uri(FILES[0]), "images": []}, 400, "malformed-request", "'images' is not supported"),
    ],
)
def test_what_is_wrong_is_said_in_both_dialects(
    service: httpx.Client, body: Any, status: int, kind: str, message: str
) -> None:
    assert_refused(service.post(PATH, json=body), status, kind, message)


def test_so_it_is_where_the_request_does_not_get_as_far(service: httpx.Client) -> None:
    question = {"input": uri(FILES[0])}
    assert_refused(service.post(PATH, json=question, headers={"authorization": ""}), 401, "unauthorised", "API key")
    assert_refused(service.get(PATH), 405, "method-not-allowed", "GET")
    assert_refused(
        service.post(PATH, content="{", headers={"content-type": "text/plain"}), 415, "unsupported-media-type", ""
    )
    assert_refused(
        service.post(PATH, content=json.dumps(question)[:-1], headers={"content-type": "application/json"}),
        400,
        "malformed-request",
        "not JSON",
    )
    answer = service.post(PATH, json=question, headers={"x-timeout-ms": "0"})
    assert_refused(answer, 400, "malformed-request", "X-Timeout-Ms")
    samples = read_metrics(service.get("/metrics").text)
    counted = {"operation": "embeddings", "model": "-", "version": "-", "status": 415}
    assert (metric_value(samples, "graft_requests_total", **counted) or 0) >= 1


def test_the_pages_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai")
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/embeddings.md").read_text(), re.DOTALL)
    with serving(Settings(models=ROOT / "models")) as client:
        exec(code.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/")), {})
    assert capsys.readouterr().out.strip() == code.rpartition("# ")[2].strip()
