"""Requests that bypass FastAPI, or the whole application, get the answer that FastAPI would give."""

from typing import Any

import httpx
import pytest
from support import assert_problem

from app.api.dispatch import infer_model
from app.bundle.drawings import garment
from app.bundle.encode import png

GOOD = png(garment("bag"))  # small: the hottest path
LARGE = png(garment("bag").resize((300, 300)))
NPY = {"accept": "application/x-npy"}
PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 6, 4, 1], "data": list(range(24))}


def output(answer: httpx.Response) -> tuple[int, str, bytes]:
    return answer.status_code, answer.headers["content-type"], answer.content


@pytest.mark.parametrize("operation", ["classify", "encode", "reconstruct", "anomaly", "predict"])
@pytest.mark.parametrize("headers", [{}, NPY, {"accept": "image/png"}, {"accept": "text/html"}])
@pytest.mark.parametrize("image", [GOOD, LARGE], ids=["small", "large"])
def test_an_operation_gets_the_same_answer(
    client: httpx.Client, operation: str, headers: dict[str, str], image: bytes
) -> None:
    path, files = f"/v1/{operation}", {"image": image}
    direct = client.post(path, files=files, headers=headers)
    by_parameter = client.post(f"{path}?model=tiny", files=files, headers=headers)
    by_deadline = client.post(path, files=files, headers=headers | {"x-timeout-ms": "20000"})
    if direct.status_code == 406:
        assert_problem(direct, 406, "not-acceptable")
        assert by_parameter.status_code == by_deadline.status_code == 406
    else:
        assert direct.status_code == 200
        assert output(direct) == output(by_parameter) == output(by_deadline)


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer"])
@pytest.mark.parametrize("more", [{}, {"inputs": []}, {"outputs": [{"name": "embedding"}]}])
def test_an_infer_request_gets_the_same_answer(client: httpx.Client, path: str, more: dict[str, Any]) -> None:
    question = {"id": "7", "inputs": [PIXELS], **more}
    direct = client.post(path, json=question)
    assert output(direct) == output(client.post(f"{path}?x=1", json=question))
    assert direct.status_code == (400 if more == {"inputs": []} else 200)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v2/models/a/infer", "a"),
        ("/v2/models/a/versions/1/infer", "a@1"),
        ("/v2/models/a/versions//infer", None),
        ("/v2/models//infer", None),
        ("/v2/models/infer", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/a/versions/1/2/infer", None),
        ("/v2/models/a/ready", None),
    ],
)
def test_the_path_of_an_infer_request_names_its_model(path: str, model: str | None) -> None:
    assert infer_model(path) == model
