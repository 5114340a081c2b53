"""What a client may do to its connection, over real sockets: heads that come slowly or never end, and too many."""

import json
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from load import post
from support import assert_problem, running

from app.bundle.drawings import garment
from app.bundle.encode import png

IMAGE = png(garment("bag"))
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: graft\r\n\r\n"


@pytest.fixture(scope="module")
def address(models: Path) -> Iterator[str]:
    with running(GRAFT_MODELS=str(models), GRAFT_HEAD_TIMEOUT_S="1") as (_, address, _):
        yield address


def connected(address: str) -> socket.socket:
    where = urlsplit(address)
    return socket.create_connection((where.hostname or "", where.port or 0), timeout=20)


def until_closed(connection: socket.socket) -> bytes:
    told = b""
    while more := connection.recv(65536):
        told += more
    return told


def status_of(connection: socket.socket) -> int:
    """Of one answer, read whole."""
    told = b""
    while b"\r\n\r\n" not in told:
        told += connection.recv(65536)
    head, _, body = told.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(told.split()[1])


def problem_of(told: bytes) -> dict[str, object]:
    head, _, body = told.rpartition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    problem: dict[str, object] = json.loads(body)
    assert f"x-request-id: {problem['request_id']}".encode() in head
    assert head.startswith(f"HTTP/1.1 {problem['status']} {problem['title']}\r\n".encode())
    return problem


def dribble(connection: socket.socket, data: bytes) -> float:
    """A byte every 50 ms, until the other side has had enough; seconds until then."""
    start = time.monotonic()
    connection.settimeout(0.05)
    for byte in data:
        try:
            connection.sendall(bytes([byte]))
            if connection.recv(1, socket.MSG_PEEK) is not None:
                break
        except TimeoutError:
            continue
        except OSError:
            break
    connection.settimeout(20)
    return time.monotonic() - start


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "later"])
def test_a_head_that_comes_a_byte_at_a_time_is_408(address: str, before: bytes) -> None:
    with connected(address) as slow:
        if before:
            slow.sendall(before)
            assert status_of(slow) == 200
        seconds = dribble(slow, b"GET /healthz HTTP/1.1\r\nHost: graft\r\nX-Long: " + b"x" * 200)
        assert 0.8 < seconds < 5
        problem = problem_of(until_closed(slow))
    assert problem["type"] == "urn:graft:problem:head-too-slow"
    assert "within 1 s" in str(problem["detail"])


@pytest.mark.parametrize("said", [b"", b"\r\n" * 100], ids=["nothing", "lines that say nothing"])
def test_a_connection_on_which_nothing_is_asked_is_closed_without_a_word(address: str, said: bytes) -> None:
    with connected(address) as idle:
        start = time.monotonic()
        dribble(idle, said)
        assert until_closed(idle) == b""
        assert 0.8 < time.monotonic() - start < 5


def test_a_connection_that_asks_again_in_time_is_kept_and_a_slow_body_is_not_a_slow_head(address: str) -> None:
    with connected(address) as kept:
        for _ in range(4):
            kept.sendall(HEALTH)
            assert status_of(kept) == 200
            time.sleep(0.6)
        request = post("/v1/classify", IMAGE, "image/png")
        kept.sendall(request[:-10])
        time.sleep(1.5)
        kept.sendall(request[-10:])
        assert status_of(kept) == 200


def test_a_head_that_does_not_end_is_431(address: str) -> None:
    with connected(address) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        told = b""
        endless.settimeout(0.01)
        for _ in range(200):
            try:
                endless.sendall(b"x" * 4096)
                told = endless.recv(65536)
                break
            except TimeoutError:
                continue
        assert problem_of(told)["type"] == "urn:graft:problem:head-too-large"


def test_what_is_not_http_is_400_in_our_shape(address: str) -> None:
    with connected(address) as stranger:
        stranger.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert problem_of(until_closed(stranger))["type"] == "urn:graft:problem:malformed-request"


def test_who_closes_one_half_has_left_and_nothing_is_kept_of_him(address: str) -> None:
    whole = post("/v1/classify", IMAGE, "image/png")
    for sent in (b"", whole[:20], whole[:-10], whole):
        with connected(address) as half:
            half.sendall(sent)
            half.shutdown(socket.SHUT_WR)
            start = time.monotonic()
            until_closed(half)
            assert time.monotonic() - start < 0.8, "it is not kept until its time is over"
    assert httpx.post(f"{address}/v1/classify", content=IMAGE, headers={"content-type": "image/png"}).status_code == 200


def test_more_connections_than_there_may_be_are_turned_away_and_health_is_told_to_them(models: Path) -> None:
    settings = {"GRAFT_MODELS": str(models), "GRAFT_MAX_CONNECTIONS": "4", "GRAFT_HEAD_TIMEOUT_S": "2"}
    with running(**settings) as (process, address, _), ExitStack() as opened:
        _, most = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] >= min(264, most)
        for _ in range(4):
            opened.enter_context(connected(address))
        time.sleep(0.2)
        refused = httpx.post(f"{address}/v1/classify", content=IMAGE, headers={"content-type": "image/png"})
        assert "more than the 4 connections" in assert_problem(refused, 503, "too-many-connections")["detail"]
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        healthy = httpx.get(f"{address}/readyz")
        assert (healthy.status_code, healthy.headers["connection"]) == (200, "close")
        for _ in range(4):
            opened.enter_context(connected(address))
        time.sleep(0.2)
        with connected(address) as beyond:
            assert until_closed(beyond) == b""
        time.sleep(2.5)  # nothing was asked on them
        after = httpx.get(f"{address}/metrics")
        assert after.status_code == 200
        assert 'graft_requests_refused_total{type="too-many-connections"} 1.0' in after.text
