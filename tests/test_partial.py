"""`partial=true`: the good images of a request are answered, and in the place of each bad one stands its problem."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from support import assert_problem, metric_value, read_metrics, save_tiny, serving, tiled_spec

from app.bundle.drawings import GARMENTS, garment
from app.bundle.encode import png
from app.settings import Settings

GOOD = [png(garment(kind)) for kind in GARMENTS][:2]
BROKEN = GOOD[0][: len(GOOD[0]) // 2]
HUGE = png(Image.new("L", (2000, 600)))
MIXED = [GOOD[0], b"text", BROKEN, GOOD[1], b"", HUGE]
EXPECTED = {
    1: (415, "not-an-image"),
    2: (422, "broken-image"),
    4: (400, "malformed-request"),
    5: (413, "too-many-pixels"),
}
OPERATIONS = ("classify", "encode", "reconstruct", "anomaly", "predict", "similar")


def bmp(side: int) -> bytes:
    """Decoded by another process, as it is no format whose header can be relied on."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "BMP")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    models = tmp_path_factory.mktemp("models")
    save_tiny(models, index=True)
    save_tiny(models, name="tiled", shape=tiled_spec())
    feedback = tmp_path_factory.mktemp("feedback")
    settings = Settings(models=models, default_model="tiny", max_images=8, max_pixels=1_000_000, feedback=feedback)
    with serving(settings) as client:
        yield client


def form(*files: bytes) -> dict[str, Any]:
    return {"files": [("image", file) for file in files]}


def assert_in_place(answer: httpx.Response, alone: list[httpx.Response], expected: dict[int, tuple[int, str]]) -> None:
    """`alone` are the answers to the good images, each sent by itself."""
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    problems = {index: result for index, result in enumerate(results) if "status" in result}
    assert {at: (each["status"], each["type"].rpartition(":")[2]) for at, each in problems.items()} == expected
    for index, each in problems.items():
        assert set(each) == {"type", "title", "status", "detail", "request_id", "index"}
        assert each["index"] == index
        assert each["request_id"] == answer.headers["x-request-id"]
    good = [result for result in results if "status" not in result]
    for result, own in zip(good, alone, strict=True):
        [single] = own.json()["results"]
        assert result.keys() == single.keys()
        for name, value in single.items():
            if isinstance(value, float):
                assert result[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_bad_image_gets_its_problem_and_the_others_their_answers(client: httpx.Client, operation: str) -> None:
    path = f"/v1/{operation}"
    alone = [client.post(path, files={"image": file}) for file in GOOD]
    assert_in_place(client.post(f"{path}?partial=true", **form(*MIXED)), alone, EXPECTED)
    texts = [base64.b64encode(file).decode() for file in MIXED]
    document = {"images": [*texts, 7, "no=base64"]}
    more = {6: (400, "malformed-request"), 7: (400, "malformed-request")}
    assert_in_place(client.post(f"{path}?partial=true", json=document), alone, EXPECTED | more)
    assert_problem(client.post(path, **form(*MIXED[:4])), 415, "not-an-image")


def test_of_all_bad_images_each_has_its_problem(client: httpx.Client) -> None:
    raw = {"content": BROKEN, "headers": {"content-type": "image/png"}}
    assert_in_place(client.post("/v1/classify?partial=true", **raw), [], {0: (422, "broken-image")})
    expected = {0: (422, "broken-image"), 1: (415, "not-an-image")}
    assert_in_place(client.post("/v1/classify?partial=true", **form(BROKEN, b"text")), [], expected)
    for model in ("tiny", "tiled"):
        answer = client.post(f"/v1/anomaly?partial=true&model={model}", **form(bmp(300)[:-9], bmp(300)[:-99]))
        assert_in_place(answer, [], {0: (422, "broken-image"), 1: (422, "broken-image")})


@pytest.mark.parametrize("model", ["tiny", "tiled"])
def test_images_that_another_process_decodes_are_told_apart(client: httpx.Client, model: str) -> None:
    path = f"/v1/anomaly?model={model}"
    good = bmp(300), bmp(200)
    alone = [client.post(path, files={"image": file}) for file in good]
    answer = client.post(f"{path}&partial=true", **form(good[0], good[0][:-9], b"text", good[1]))
    assert_in_place(answer, alone, {1: (422, "broken-image"), 2: (415, "not-an-image")})


def test_what_is_wrong_with_the_whole_request_refuses_it(client: httpx.Client) -> None:
    for send, status, kind in (
        (form(*GOOD * 5), 413, "too-many-images"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "malformed-request"),
        ({"json": {"images": []}}, 400, "malformed-request"),
        ({"files": {"image": (None, "no file")}}, 400, "malformed-request"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unsupported-media-type"),
    ):
        assert_problem(client.post("/v1/classify?partial=true", **send), status, kind)
    assert_problem(client.post("/v1/classify?partial=some", **form(*GOOD)), 400, "malformed-request", "partial")
    assert client.post("/v1/classify?partial=some", **form(*GOOD)).json()["detail"].count("query.partial") == 1
    assert_problem(client.post("/v1/classify?partial=true&model=x", **form(*MIXED)), 404, "unknown-model")
    assert_problem(client.post("/v1/regions?partial=true", **form(*MIXED)), 404, "not-found")


@pytest.mark.parametrize(("operation", "accept"), [("encode", "application/x-npy"), ("reconstruct", "image/png")])
def test_only_json_can_hold_problems(client: httpx.Client, operation: str, accept: str) -> None:
    answer = client.post(f"/v1/{operation}?partial=true", files={"image": GOOD[0]}, headers={"accept": accept})
    assert_problem(answer, 406, "not-acceptable", "application/json")


def test_bad_images_are_counted_and_good_ones_take_the_fast_path(client: httpx.Client) -> None:
    def count(name: str, **labels: object) -> float:
        return metric_value(read_metrics(client.get("/metrics").text), name, **labels) or 0

    def bad() -> float:
        return count("graft_images_refused_total", type="not-an-image")

    def handed_over() -> float:
        return count("graft_fast_path_handovers_total", reason="refused")

    def answered() -> float:
        return count("graft_requests_total", operation="classify", model="tiny", version=1, status=200)

    before = bad(), handed_over(), answered()
    assert "status" not in client.post("/v1/classify?partial=true", **form(*GOOD)).text
    assert (bad(), handed_over(), answered()) == (before[0], before[1], before[2] + 1)
    client.post("/v1/classify?partial=true", **form(*GOOD, b"text", b"text"))
    assert (bad(), handed_over(), answered()) == (before[0] + 2, before[1] + 1, before[2] + 2)


def test_feedback_never_means_another_image_than_the_index_says(client: httpx.Client) -> None:
    whole = client.post("/v1/classify?partial=true", **form(*GOOD)).headers["x-request-id"]
    assert client.post(f"/v1/feedback?label=cat&request_id={whole}&index=1").status_code == 200
    gap = client.post("/v1/classify?partial=true", **form(b"text", *GOOD)).headers["x-request-id"]
    assert_problem(client.post(f"/v1/feedback?label=cat&request_id={gap}&index=1"), 404, "request-forgotten")


def test_the_description_shows_that_a_problem_may_stand_among_results(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for operation in OPERATIONS:
        route = document["paths"][f"/v1/{operation}"]["post"]
        assert "partial" in [parameter["name"] for parameter in route["parameters"]]
        named = route["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        kinds = document["components"]["schemas"][named]["properties"]["results"]["items"]["anyOf"]
        assert {"$ref": "#/components/schemas/Problem"} in kinds


def test_the_deadline_is_that_of_the_whole_request(client: httpx.Client) -> None:
    answer = client.post("/v1/classify?partial=true", **form(bmp(900), b"text"), headers={"x-timeout-ms": "1"})
    assert_problem(answer, 504, "deadline-passed")
