"""The service and pictures that are made to cost: refused on every way in, late at the deadline, and nothing left."""

import base64
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from hostile import DRAWN, bmp_run_length
from support import assert_error, assert_problem, eventually, running, save_tiny, serving

from app.bundle.decoder import AVAILABLE
from app.bundle.header import read_header
from app.settings import Settings

WHOLE = DRAWN["WebP RGBA, lossless"](1000, 1000)
LARGE = DRAWN["WebP RGBA, lossless"](1900, 1900)
SLOW = bmp_run_length(2000, 2000)  # most of a second
SMALL = DRAWN["PNG RGBA"](20, 20)
WEBP, BMP, PNG = ({"content-type": f"image/{kind}"} for kind in ("webp", "bmp", "png"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    models = tmp_path_factory.mktemp("models")
    save_tiny(models)
    settings = Settings(
        models=models,
        max_images=8,
        max_pixels=4_000_000,
        max_request_pixels=4_000_000,
        decode_mb=45,
        max_queue=16,
        timeout_ms=120_000,
    )
    with serving(settings) as client:
        client.timeout = 150
        yield client


def test_the_pixels_of_a_request_are_bounded_on_every_way_in(client: httpx.Client) -> None:
    message = "5,000,000 pixels in total; at most 4,000,000"
    text = base64.b64encode(WHOLE).decode()
    form = client.post("/v1/classify", files=[("image", WHOLE)] * 5)
    assert "index" not in assert_problem(form, 413, "too-many-pixels", message)
    assert_problem(client.post("/v1/predict?top_k=1", json={"images": [text] * 5}), 413, "too-many-pixels", message)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [5], "data": [text] * 5}
    assert_error(client.post("/v2/models/tiny/infer", json={"inputs": [tensor]}), 413, message)
    binary = b"".join(len(WHOLE).to_bytes(4, "little") + WHOLE for _ in range(5))
    named = {"name": "image", "datatype": "BYTES", "shape": [5], "parameters": {"binary_data_size": len(binary)}}
    head = json.dumps({"inputs": [named]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    assert_error(client.post("/v2/models/tiny/infer", content=head + binary, headers=length), 413, message)
    assert client.post("/v1/classify", files=[("image", WHOLE)] * 4).status_code == 200


def test_an_image_that_could_never_fit_is_refused_with_both_numbers(client: httpx.Client) -> None:
    assert read_header(LARGE).pixels < 4_000_000
    answer = client.post("/v1/classify", content=LARGE, headers=WEBP)
    body = assert_problem(answer, 413, "too-many-pixels", "at most 45,000,000 are available")
    assert "1900 × 1900 pixels of this WEBP take " in body["detail"]
    several = client.post("/v1/classify", files=[("image", SMALL), ("image", LARGE)])
    assert assert_problem(several, 413, "too-many-pixels")["index"] == 1


def test_one_that_waits_longer_than_its_deadline_is_late_and_the_others_are_answered(client: httpx.Client) -> None:
    statuses: list[int] = []

    def ask() -> None:
        answer = httpx.post(f"{client.base_url}/v1/classify", content=SLOW, headers=BMP, timeout=150)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    late = client.post("/v1/classify", content=WHOLE, headers=WEBP | {"X-Timeout-Ms": "100"})
    assert_problem(late, 504, "deadline-passed")
    assert client.post("/v1/classify", content=SMALL, headers=PNG).status_code == 200
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4


def test_a_queue_full_of_large_images_has_room_for_a_plain_one(client: httpx.Client) -> None:
    done, statuses = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            answer = httpx.post(f"{client.base_url}/v1/classify", files=[("image", WHOLE)] * 4, timeout=60)
            statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        assert eventually(lambda: 429 in statuses)
        for _ in range(50):
            plain = client.post("/v1/classify", content=DRAWN["PNG 8-bit grey"](20, 20), headers=PNG)
            assert plain.status_code == 200
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {200, 429}


@pytest.mark.skipif(not AVAILABLE, reason="there is no such process on this system")
def test_a_decoder_that_is_killed_costs_one_image_and_none_is_left_at_the_end(models: Path) -> None:
    with running(GRAFT_MODELS=str(models), GRAFT_THREADS="1") as (process, address, _):
        service = psutil.Process(process.pid)
        assert not service.children()
        assert httpx.post(f"{address}/v1/classify", content=WHOLE, headers=WEBP, timeout=60).status_code == 200
        [decoder] = service.children()
        threading.Timer(0.2, os.kill, (decoder.pid, signal.SIGKILL)).start()
        hurt = httpx.post(f"{address}/v1/classify", files=[("image", SLOW)] * 20, timeout=60)
        assert_problem(hurt, 503, "decoder-ended", "SIGKILL")
        assert httpx.post(f"{address}/v1/classify", content=SLOW, headers=BMP, timeout=150).status_code == 200
        [second] = service.children()
        process.terminate()
        assert process.wait(20) == 0
        assert eventually(lambda: not second.is_running())
