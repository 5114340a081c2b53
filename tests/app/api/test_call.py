"""Deadlines, disconnects and a full queue, over a real socket; a gate holds the model back."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Response
from prometheus_client.parser import text_string_to_metric_families
from support import assert_problem, serving

from app.api.call import shape_response
from app.bundle.drawings import garment
from app.bundle.encode import png
from app.inference.answer import OutputRequest, Outputs, answer
from app.inference.batcher import Batcher
from app.main import create_app
from app.settings import Settings

GOOD = png(garment("bag"))


class Held:
    """A service whose model waits at a gate before every batch."""

    def __init__(self, app: FastAPI, client: httpx.Client) -> None:
        self.client, self.batches = client, list[int]()
        self.gate = threading.Event()
        self._callers = ThreadPoolExecutor(16)
        self.predictor = app.state.predictor
        model = self.predictor.repository.get(None)

        def run(wishes: Sequence[OutputRequest]) -> list[Outputs]:
            self.gate.wait(20)
            self.batches.append(sum(map(len, wishes)))
            return answer(model.bundle, wishes)

        model.batcher = Batcher(run, most=32, pool=ThreadPoolExecutor(1))

    def post(self, headers: dict[str, str] | None = None, images: int = 1) -> httpx.Response:
        files = [("image", GOOD)] * images
        return self.client.post("/v1/classify", files=files, headers=headers, timeout=30)

    def ask(self, images: int = 1) -> "Future[httpx.Response]":
        """In the background; what is asked is under way when this returns."""
        before = self.predictor.admission.images
        future = self._callers.submit(self.post, None, images)
        until(lambda: self.predictor.admission.images == before + images)
        return future


def until(holds: Callable[[], bool], within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def held(models: Path) -> Iterator[Held]:
    settings = Settings(models=models, max_queue=4, max_images=4, timeout_ms=20_000)
    app = create_app(settings)
    with serving(settings, app) as client:
        found = Held(app, client)
        yield found
        found.gate.set()


def test_past_its_deadline_a_request_is_504_and_its_work_is_dropped(held: Held) -> None:
    first = held.ask()
    start = time.monotonic()
    late = held.post(headers={"X-Timeout-Ms": "200"})
    assert 0.15 < time.monotonic() - start < 5
    assert "within 200 ms" in assert_problem(late, 504, "deadline-passed")["detail"]
    held.gate.set()
    assert first.result().status_code == 200
    assert held.post().status_code == 200
    assert held.batches == [1, 1], "the late one never ran"
    until(lambda: held.predictor.admission.images == 0)


def test_the_setting_limits_the_deadline_of_a_request(models: Path) -> None:
    settings = Settings(models=models, timeout_ms=150)
    app = create_app(settings)
    with serving(settings, app) as client:
        held = Held(app, client)
        for headers in ({}, {"X-Timeout-Ms": "600000"}):
            assert "within 150 ms" in assert_problem(held.post(headers), 504, "deadline-passed")["detail"]
        held.gate.set()
        output = text_string_to_metric_families(client.get("/metrics").text)
        counted = {(s.name, *sorted(s.labels.values())): s.value for family in output for s in family.samples}
        assert counted["graft_requests_total", "1", "504", "classify", "tiny"] == 2
        assert counted["graft_model_seconds_total", "1", "failure", "tiny"] > 0.3


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "9" * 5000])
def test_an_invalid_deadline_is_400(client: httpx.Client, value: str) -> None:
    answer = client.post("/v1/classify", files={"image": GOOD}, headers={"X-Timeout-Ms": value})
    assert "X-Timeout-Ms" in assert_problem(answer, 400, "malformed-request")["detail"]


def test_the_work_of_a_disconnected_client_is_not_run_and_others_are_answered(held: Held) -> None:
    first = held.ask()
    address = held.client.base_url.host, held.client.base_url.port or 80
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(GOOD)}\r\n\r\n"
    with socket.create_connection(address) as leaver:
        leaver.sendall(head.encode() + GOOD)
        until(lambda: held.predictor.admission.images == 2)
        leaver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets the connection
    until(lambda: held.predictor.admission.images == 1)  # its room is given back while the model is still busy
    neighbour = held.ask()
    held.gate.set()
    assert first.result().status_code == neighbour.result().status_code == 200
    assert held.batches == [1, 1]


def test_a_full_queue_is_429_with_retry_after(held: Held) -> None:
    under_way = [held.ask(), held.ask(images=3)]
    refused = held.post()
    assert "at most 4" in assert_problem(refused, 429, "queue-full")["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    held.gate.set()
    assert [each.result().status_code for each in under_way] == [200, 200]
    assert held.post().status_code == 200


def test_health_answers_at_once_while_a_model_is_busy(held: Held) -> None:
    busy = held.ask(images=4)
    for path in ("/healthz", "/readyz", "/v1/models"):
        start = time.monotonic()
        assert held.client.get(path).status_code == 200
        assert time.monotonic() - start < 1
    held.gate.set()
    assert busy.result().status_code == 200


def test_requests_that_wait_together_run_together(held: Held) -> None:
    first = held.ask()
    others = [held.ask() for _ in range(3)]
    held.gate.set()
    assert {each.result().status_code for each in (first, *others)} == {200}
    assert held.batches == [1, 3]


def test_work_is_counted_and_timed(models: Path) -> None:
    with serving(Settings(models=models)) as client:
        for path, images in (("classify", 3), ("predict", 2), ("encode", 1)):
            answer = client.post(f"/v1/{path}", files=[("image", GOOD)] * images)
            timed = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
            assert set(timed) == {"queue", "decode", "run", "total"}
            assert all(float(milliseconds) >= 0 for milliseconds in timed.values())
        families = text_string_to_metric_families(client.get("/metrics").text)
        output = {(s.name, s.labels.get("operation")): s.value for family in families for s in family.samples}
    for operation in ("classify", "predict", "encode"):
        assert output["graft_requests_total", operation] == 1
    assert output["graft_run_seconds_count", None] == output["graft_batch_images_count", None] == 3
    assert output["graft_batch_images_sum", None] == 6
    assert output["graft_confidence_count", None] == 5
    assert output["graft_decode_seconds_count", None] == output["graft_queue_seconds_count", None] == 3
    assert output["graft_queue_images", None] == 0


def test_a_failed_request_is_counted_under_its_model(models: Path) -> None:
    with serving(Settings(models=models)) as client:
        client.post("/v1/classify", content=GOOD[:40], headers={"content-type": "image/png"})
        client.post("/v1/classify?model=other", content=GOOD, headers={"content-type": "image/png"})
        output = client.get("/metrics").text
    assert 'graft_requests_total{model="tiny",operation="classify",status="422",version="1"} 1.0' in output
    assert 'graft_requests_total{model="-",operation="classify",status="404",version="-"} 1.0' in output


def test_large_answers_are_shaped_in_a_thread_and_small_ones_are_not() -> None:
    async def shaped_in(values: int) -> str:
        return (await shape_response(values, lambda: Response(threading.current_thread().name))).body.decode()

    assert asyncio.run(shaped_in(28 * 28)) == threading.current_thread().name
    assert asyncio.run(shaped_in(128 * 224 * 224 * 3)) != threading.current_thread().name
