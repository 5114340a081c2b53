"""Records and headers of requests."""

import asyncio
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import serving

from app.settings import Settings
from app.telemetry.logs import RequestLog
from app.telemetry.metrics import Metrics
from app.telemetry.requests import RequestRecord, Requests, current_record

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        PARENT.upper(),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"{PARENT}-more",  # version 00 has no more
        f"{PARENT} ",
        f"{PARENT}, {PARENT}",
    ],
)
def test_an_invalid_traceparent_is_ignored(given: str) -> None:
    assert asyncio.run(seen([(b"traceparent", given.encode())])).trace_id is None


def test_a_traceparent_gives_the_trace_id_and_later_versions_may_have_more_fields() -> None:
    assert asyncio.run(seen([(b"traceparent", PARENT.encode())])).trace_id == TRACE
    assert asyncio.run(seen([(b"traceparent", f"cc{PARENT[2:]}-more".encode())])).trace_id == TRACE
    assert asyncio.run(seen([(b"traceparent", PARENT.encode())] * 2)).trace_id is None


async def seen(headers: list[tuple[bytes, bytes]], path: str = "/v1/classify") -> RequestRecord:
    """The record of a request with these headers, as its handler finds it."""
    found: list[RequestRecord] = []

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        found.append(await asyncio.to_thread(current_record))
        assert found == [current_record()]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        given = dict(message["headers"])
        assert TRACE.encode() not in b"".join(given.values())

    async def receive() -> Any:
        raise AssertionError("nothing to read")

    scope = {"type": "http", "headers": headers, "path": path, "method": "GET"}
    await Requests(handler, RequestLog(Metrics("1"), "none").finished)(scope, receive, send)
    return found[0]


def test_concurrent_requests_have_separate_records() -> None:
    async def both() -> None:
        one, other = await asyncio.gather(seen([(b"traceparent", PARENT.encode())]), seen([]))
        assert (one.trace_id, other.trace_id) == (TRACE, None)

    asyncio.run(both())


def test_outside_a_request_records_are_not_shared() -> None:
    current_record().model = "tiny"
    assert current_record().model is None


def test_server_timing_has_the_known_times(client: httpx.Client) -> None:
    header = RequestRecord(queue_s=0.0002, decode_s=0.001, run_s=0.0025).timing(0.004)
    assert header == b"queue;dur=0.200, decode;dur=1.000, run;dur=2.500, total;dur=4.000"
    for path in ("/healthz", "/nowhere"):
        assert re.fullmatch(r"total;dur=\d+\.\d{3}", client.get(path).headers["server-timing"])


def test_a_client_that_disconnects_before_its_answer_counts_as_499(models: Path) -> None:
    with serving(Settings(models=models)) as client:
        port = client.base_url.port
        assert port
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(
                b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
            )
        for _ in range(200):
            text = client.get("/metrics").text
            if 'status="499"' in text:
                break
    assert re.search(r'graft_requests_total\{.*operation="classify".*status="499".*\} 1\.0', text)
