"""Slow bodies, and bodies beyond the limit on bytes in memory, over a real socket."""

import socket
import time
from pathlib import Path

import httpx
from support import assert_problem, serving

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.settings import Settings

GOOD, RAW = png(garment("bag")), {"content-type": "image/png"}


def begin(client: httpx.Client, length: int, body: bytes) -> socket.socket:
    """A request of which only `body` has been sent."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=20)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def test_a_slow_body_is_408_and_its_connection_is_closed(models: Path) -> None:
    with serving(Settings(models=models, body_timeout_s=1)) as client, begin(client, 100, b"x" * 42) as slow:
        answer = b""
        while more := slow.recv(4096):
            answer += more
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 1 s; 42 bytes did" in answer
        assert client.post("/v1/classify", content=GOOD, headers=RAW).status_code == 200


def test_bodies_beyond_the_room_are_429_and_the_others_are_answered(models: Path) -> None:
    size = 1_000_000
    settings = Settings(models=models, max_body_mb=1, max_bodies_mb=3, max_pixels=9)
    with serving(settings) as client:
        first, second = (begin(client, size, b"x" * (size - 1)) for _ in range(2))
        time.sleep(0.2)
        refused = client.post("/v1/classify", content=b"x" * size, headers=RAW)
        assert "2,625,000 are allowed" in assert_problem(refused, 429, "queue-full")["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        small = client.post("/v1/classify", content=b"x" * 1000, headers=RAW)
        assert_problem(small, 415, "not-an-image")  # an eighth of the room is for such
        with first, second:
            first.sendall(b"x")
            assert first.recv(4096).startswith(b"HTTP/1.1 415 "), "read whole, and found to be no image"
        time.sleep(0.2)
        later = client.post("/v1/classify", content=b"x" * size, headers=RAW)
        assert_problem(later, 415, "not-an-image")
