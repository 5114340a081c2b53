import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.bundles import bundle
from benchmarks.workloads import (
    WORKLOADS,
    Request,
    Workload,
    infer,
    inferred,
    loaded,
    many,
    photographs,
    small,
)

NAMED = {workload.name: workload for workload in WORKLOADS}


def test_no_two_images_are_the_same() -> None:
    assert len({files[0] for files in small(500)(0)}) == 500
    assert len({file for files in many(4, 64)(0) for file in files}) == 256
    assert len({files[0] for files in photographs(5, 40, 60)(0)}) == 5


def test_drawings_are_the_same_every_time() -> None:
    assert small(5)(0) == small(5)(0) != small(5)(1)


def test_photographs_have_the_size_that_is_asked_for() -> None:
    [[file]] = photographs(1, 40, 60)(0)
    with Image.open(io.BytesIO(file)) as image:
        assert (image.size, image.mode, image.format) == ((60, 40), "RGB", "JPEG")


@pytest.mark.parametrize(("body", "images"), [("form", 1), ("form", 3), ("raw", 1)])
def test_requests_are_what_the_service_reads(client: httpx.Client, body: Any, images: int) -> None:
    workload = Workload("w", "w", "w", many(2, images), {"graft": "/v1/classify"}, body=body)
    for request in workload.requests("graft"):
        answer = client.post(request.path, content=request.body, headers=request.headers)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"]) == images


def test_a_request_on_the_wire_says_how_long_it_is() -> None:
    wire = Request("/there", {"Content-Type": "a/b"}, b"body").wire
    assert wire == b"POST /there HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: a/b\r\nContent-Length: 4\r\n\r\nbody"


def answer_to(workload: Workload, files: list[bytes]) -> dict[str, Any]:
    _, graphs = loaded(bundle(workload.model))
    return {"results": graphs.classify(np.stack([graphs.pixels(file) for file in files]))}


def test_a_right_answer_is_right() -> None:
    files = many(1, 3)(0)[0]
    assert NAMED["many"].wrong("naive", files, json.dumps(answer_to(NAMED["many"], files)).encode()) is None


def test_graft_and_its_peers_see_the_same_in_a_small_png() -> None:
    [[file]] = small(1)(0)
    answer = json.dumps(answer_to(NAMED["png"], [file])).encode()
    assert NAMED["png"].wrong("graft", [file], answer) is None


def test_wrong_answers_are_told() -> None:
    workload = NAMED["png"]
    [[file], [other]] = small(2)(0)
    answer = answer_to(workload, [file])

    def wrong(changed: dict[str, Any]) -> str:
        return workload.wrong("naive", [file], json.dumps(changed).encode()) or "right"

    assert "probabilities off by" in wrong(answer_to(workload, [other]))
    assert "2 results for 1 images" in wrong({"results": answer["results"] * 2})
    del answer["results"][0]["probabilities"]["Bag"]
    assert "labels" in wrong(answer)


def test_the_other_operations_answers_are_held_to_the_model_too() -> None:
    [[file]] = small(1)(0)
    _, graphs = loaded(bundle(NAMED["anomaly"].model))
    pixels = graphs.pixels(file)[None]
    [error] = graphs.errors(pixels)
    answer = {"results": [{"reconstruction_error": error}]}
    assert NAMED["anomaly"].wrong("naive", [file], json.dumps(answer).encode()) is None
    answer["results"][0]["reconstruction_error"] += 0.01
    assert "reconstruction_error off by" in (NAMED["anomaly"].wrong("naive", [file], json.dumps(answer).encode()) or "")
    buffer = io.BytesIO()
    np.save(buffer, graphs.encode(pixels))
    assert NAMED["encode"].wrong("naive", [file], buffer.getvalue()) is None
    assert "shape" in (NAMED["encode"].wrong("naive", [file, file], buffer.getvalue()) or "")


def test_pixels_and_probabilities_travel_in_json_or_behind_it() -> None:
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)
    _, body = infer(images, binary=False)
    [taken] = json.loads(body)["inputs"]
    assert np.array_equal(np.array(taken["data"], np.uint8).reshape(taken["shape"]), images)
    headers, body = infer(images, binary=True)
    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:length])["inputs"][0]["parameters"] == {"binary_data_size": 24}
    assert body[length:] == images.tobytes()
    for datatype, kind in (("FP32", np.float32), ("FP64", np.float64)):
        values = np.array([[0.25, 0.75]], kind)
        output = {"name": "probabilities", "shape": [1, 2], "datatype": datatype}
        in_json = json.dumps({"outputs": [{**output, "data": [0.25, 0.75]}]}).encode()
        behind = json.dumps({"outputs": [{"name": "other", "shape": [0]}, output]}).encode() + values.tobytes()
        assert np.array_equal(inferred(in_json), values)
        assert np.array_equal(inferred(behind), values)
