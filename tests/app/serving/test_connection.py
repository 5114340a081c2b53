"""Limits of a connection over real sockets: the time and size of heads, idle time, half-closing, their number."""

import json
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from load import post
from support import assert_problem, eventually, running, serving

from app.bundle.drawings import garment
from app.bundle.encode import png
from app.serving.connection import MAX_HEAD
from app.settings import Settings

IMAGE = png(garment("bag"))
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: graft\r\n\r\n"
TENSOR = {"name": "image", "shape": [1, 6, 4, 1], "datatype": "UINT8", "data": list(range(24))}
FAST = post("/v1/classify", IMAGE, "image/png")
PATHS = {  # by where they are answered
    "fast": FAST,
    "with parameters": post("/v1/classify?top_k=1", IMAGE, "image/png"),
    "v2": post("/v2/models/tiny/infer", json.dumps({"inputs": [TENSOR]}).encode(), "application/json"),
    "get": HEALTH,
}
on_every_path = pytest.mark.parametrize("request_", PATHS.values(), ids=PATHS)


@pytest.fixture(scope="module")
def address(models: Path) -> Iterator[str]:
    with running(300, GRAFT_MODELS=str(models), GRAFT_HEAD_TIMEOUT_S="1") as (_, address, _):
        yield address


def connected(address: str) -> socket.socket:
    where = urlsplit(address)
    return socket.create_connection((where.hostname or "", where.port or 0), timeout=20)


def until_closed(connection: socket.socket) -> bytes:
    output = b""
    while more := connection.recv(65536):
        output += more
    return output


def status_of(connection: socket.socket) -> int:
    return answer_of(connection)[0]


def answer_of(connection: socket.socket) -> tuple[int, bytes]:
    """(status, body) of one answer; reads nothing after it."""
    with connection.makefile("rb", buffering=0) as output:
        status = int(output.readline().split()[1])
        length = 0
        while (line := output.readline()) != b"\r\n":
            assert line, "the connection ended within a head"
            if line.lower().startswith(b"content-length: "):
                length = int(line.split()[1])
        body = b""
        while len(body) < length:
            body += output.read(length - len(body)) or pytest.fail("the connection ended within an answer")
        return status, body


def with_headers(request: bytes, headers: bytes) -> bytes:
    line, _, rest = request.partition(b"\r\n")
    return line + b"\r\n" + headers + rest


def in_pieces(data: bytes, size: int) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def problem_of(output: bytes) -> dict[str, object]:
    head, _, body = output.rpartition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    problem: dict[str, object] = json.loads(body)
    assert f"x-request-id: {problem['request_id']}".encode() in head
    assert head.startswith(f"HTTP/1.1 {problem['status']} {problem['title']}\r\n".encode())
    return problem


def dribble(connection: socket.socket, data: bytes) -> float:
    """Sends a byte every 50 ms until the server closes; returns the seconds until then."""
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
def test_a_head_that_arrives_a_byte_at_a_time_is_408(address: str, before: bytes) -> None:
    with connected(address) as slow:
        if before:
            slow.sendall(before)
            assert status_of(slow) == 200
        seconds = dribble(slow, b"GET /healthz HTTP/1.1\r\nHost: graft\r\nX-Long: " + b"x" * 200)
        assert 0.8 < seconds < 5
        problem = problem_of(until_closed(slow))
    assert problem["type"] == "urn:graft:problem:head-too-slow"
    assert "within 1 s" in str(problem["detail"])


@pytest.mark.parametrize("sentence", [b"", b"\r\n" * 100], ids=["nothing", "lines that say nothing"])
def test_an_idle_connection_is_closed_without_an_answer(address: str, sentence: bytes) -> None:
    with connected(address) as idle:
        start = time.monotonic()
        dribble(idle, sentence)
        assert until_closed(idle) == b""
        assert 0.8 < time.monotonic() - start < 5


def test_a_connection_in_use_is_kept_and_a_slow_body_is_not_a_slow_head(address: str) -> None:
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


@pytest.fixture(scope="module")
def patient(models: Path) -> Iterator[str]:
    """A service whose heads may take 2 s, and whose connections may be idle for long."""
    with running(300, GRAFT_MODELS=str(models), GRAFT_HEAD_TIMEOUT_S="2", GRAFT_KEEP_ALIVE_S="60") as (_, address, _):
        yield address


def answered_on_every_path(address: str, opened: ExitStack) -> list[tuple[socket.socket, bytes]]:
    """Connections on which a request was answered, and the request."""
    kept = [(opened.enter_context(connected(address)), request) for request in PATHS.values()]
    for connection, request in kept:
        connection.sendall(request)
        assert status_of(connection) == 200
    return kept


def test_the_time_of_a_head_begins_with_its_first_byte(patient: str) -> None:
    with ExitStack() as opened:
        kept = answered_on_every_path(patient, opened)
        for _ in range(2):
            time.sleep(2.2)
            for connection, request in kept:
                connection.sendall(request[:20])
            time.sleep(0.3)
            for connection, request in kept:
                connection.sendall(request[20:])
                assert status_of(connection) == 200


def test_a_head_that_stalls_after_an_answer_is_408(patient: str) -> None:
    with ExitStack() as opened:
        kept = answered_on_every_path(patient, opened)
        time.sleep(1)
        start = time.monotonic()
        for connection, request in kept:
            connection.sendall(request[:20])
        for connection, _ in kept:
            assert problem_of(until_closed(connection))["type"] == "urn:graft:problem:head-too-slow"
            assert time.monotonic() - start >= 1.9


@pytest.mark.parametrize(("keep_alive_s", "head_timeout_s"), [(1, 60), (2, 1)])
def test_a_keep_alive_connection_is_closed_after_the_set_idle_time(
    models: Path, keep_alive_s: float, head_timeout_s: float
) -> None:
    settings = Settings(models=models, keep_alive_s=keep_alive_s, head_timeout_s=head_timeout_s)
    with serving(settings) as client, ExitStack() as opened:
        kept = answered_on_every_path(str(client.base_url), opened)
        for _ in range(2):
            time.sleep(0.2)
            answered = time.monotonic()
            for connection, request in kept:
                connection.sendall(request)
                assert status_of(connection) == 200
        for connection, _ in kept:
            assert until_closed(connection) == b""
            assert time.monotonic() - answered >= keep_alive_s - 0.05


@pytest.mark.parametrize("size", [None, 40, 1], ids=["at once", "in pieces", "byte by byte"])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@on_every_path
def test_an_upgrade_is_ignored(address: str, request_: bytes, protocol: bytes, size: int | None) -> None:
    """As `curl --http2` sends it."""
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    asks = with_headers(request_, upgrade)
    with connected(address) as plain, connected(address) as upgrading:
        plain.sendall(request_)
        expected = answer_of(plain)
        assert expected[0] == 200
        upgrading.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in in_pieces(asks * 2 + FAST + asks + HEALTH, size or 1 << 20):
            upgrading.sendall(piece)
        found = [answer_of(upgrading) for _ in range(5)]
    assert [found[at] for at in (0, 1, 3)] == [expected] * 3
    assert [status for status, _ in found] == [200] * 5


def test_an_upgrade_with_a_body_in_chunks_is_ignored(address: str) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n"
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)
    with connected(address) as upgrading:
        upgrading.sendall((head + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n" + chunks) * 500 + HEALTH)
        for _ in range(500):
            assert b"results" in answer_of(upgrading)[1]
        assert status_of(upgrading) == 200


@pytest.mark.parametrize("target", [b"graft:443", b"/v1/classify"])
def test_connect_is_refused_and_nothing_after_it_is_read(address: str, target: bytes) -> None:
    with connected(address) as tunnel:
        tunnel.sendall(b"CONNECT " + target + b" HTTP/1.1\r\nHost: graft:443\r\n\r\n" + HEALTH)
        output = until_closed(tunnel)
    assert re.match(rb"HTTP/1.1 4\d\d ", output)
    assert output.count(b"HTTP/1.1") == 1


def test_curl_with_http2_is_answered(address: str, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None or "HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("curl is not installed, or was built without HTTP/2")
    (tmp_path / "bag.png").write_bytes(IMAGE)
    for path in ("/v1/classify", "/v1/classify?top_k=1"):
        command = [curl, "--silent", "--show-error", "--http2", "--max-time", "20", "-w", " %{http_code}"]
        done = subprocess.run(
            [*command, "-F", f"image=@{tmp_path / 'bag.png'}", address + path], capture_output=True, text=True
        )
        assert done.stdout.endswith(" 200"), done.stdout + done.stderr


def filled(request: bytes, size: int, by: str) -> bytes:
    """The request with a head of `size` bytes."""
    missing = size - request.index(b"\r\n\r\n") - 4
    match by:
        case "a long header":
            return with_headers(request, b"X-Long: " + b"x" * (missing - 10) + b"\r\n")
        case "spaces":
            return with_headers(request, b"X-Long:" + b" " * (missing - 10) + b"x\r\n")
        case "many headers":
            lines = [b"X-%05d: %s\r\n" % (at, b"x" * 90) for at in range(missing // 101 - 1)]
            return with_headers(request, b"".join([*lines, b"X: " + b"x" * (missing - 101 * len(lines) - 5) + b"\r\n"]))
        case _:
            target = request.split()[1]
            mark = b"&" if b"?" in target else b"?"
            return request.replace(target, target + mark + b"x" * (missing - 1), 1)


def send_until_answered(connection: socket.socket, data: bytes, size: int) -> None:
    """The server may refuse and close before everything was sent."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for piece in in_pieces(data, size):
            connection.sendall(piece)
    except OSError:
        pass


@pytest.mark.parametrize("size", [1 << 20, 1000], ids=["at once", "in pieces"])
@pytest.mark.parametrize("by", ["a long header", "spaces", "many headers", "a long URL"])
@on_every_path
def test_a_head_of_more_than_64_kb_is_431_and_one_of_64_kb_is_not(
    patient: str, request_: bytes, by: str, size: int
) -> None:
    with connected(patient) as kept:
        for _ in range(2):
            send_until_answered(kept, filled(request_, MAX_HEAD, by), size)
            assert status_of(kept) == 200
    for many in (MAX_HEAD + 1, 300_000):
        for before in (b"", request_):
            with connected(patient) as large:
                large.sendall(before)
                if before:
                    assert status_of(large) == 200
                send_until_answered(large, filled(request_, many, by), size)
                problem = problem_of(until_closed(large))
            assert (problem["status"], problem["type"]) == (431, "urn:graft:problem:head-too-large")


@pytest.mark.parametrize("more", [0, 1])
def test_a_head_that_arrives_byte_by_byte_has_the_same_limit(models: Path, more: int) -> None:
    with serving(Settings(models=models, head_timeout_s=300)) as client, connected(str(client.base_url)) as slow:
        send_until_answered(slow, filled(FAST, MAX_HEAD + more, "a long header"), 1)
        assert status_of(slow) == (431 if more else 200)


@pytest.mark.parametrize(
    "before", [HEALTH * 400, FAST * 50, PATHS["with parameters"] * 50], ids=["get", "fast", "others"]
)
def test_bytes_before_a_head_in_its_segment_do_not_count_for_it(patient: str, before: bytes) -> None:
    """A segment ends within the head of the last request, far below the limit."""
    last = filled(HEALTH, 40_000, "a long header")
    with connected(patient) as pipelining:
        pipelining.sendall(before + last[:20_000])
        for _ in range(before.count(b"Host: ")):
            assert status_of(pipelining) == 200
        pipelining.sendall(last[20_000:])
        assert status_of(pipelining) == 200


def test_trailers_after_a_chunked_body_are_limited_too(patient: str) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(patient) as endless:
        endless.sendall(head + b"1\r\nx\r\n0\r\nX-Long: ")
        sent = 0
        try:
            while sent < 64 << 20:
                endless.sendall(b"x" * 4096)
                sent += 4096
            pytest.fail(f"{sent:,} bytes were taken")
        except OSError:
            pass
    with connected(patient) as good:
        good.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        good.sendall(head)
        for byte in IMAGE * 8:  # 8 KB of a body, 40 KB around it, in segments of their own
            good.sendall(b"1\r\n")
            good.sendall(bytes([byte]) + b"\r\n")
        good.sendall(b"0\r\nX-After: short\r\n\r\n")
        assert status_of(good) in (200, 415, 422)


@pytest.mark.parametrize("times", [1, 3])
@on_every_path
def test_a_client_that_half_closes_after_its_request_is_answered(address: str, request_: bytes, times: int) -> None:
    with connected(address) as half:
        half.sendall(request_ * times)
        half.shutdown(socket.SHUT_WR)
        assert [status_of(half) for _ in range(times)] == [200] * times
        assert until_closed(half) == b""


@on_every_path
def test_the_duration_of_a_request_begins_with_its_complete_head(models: Path, request_: bytes) -> None:
    operation = {b"healthz": "healthz", b"infer": "infer"}.get(request_.split()[1].rpartition(b"/")[2], "classify")
    head, split, body = request_.partition(b"\r\n\r\n")
    if not body:
        head, split, body = head, b"\r\nContent-Length: 2\r\n\r\n", b"{}"
    with serving(Settings(models=models)) as client, connected(str(client.base_url)) as asking:

        def taken(many: int) -> float:
            def value(name: str) -> float:
                found = re.search(
                    rf'graft_request_seconds_{name}{{operation="{operation}"}} (\S+)', client.get("/metrics").text
                )
                return float(found[1]) if found else 0.0

            assert eventually(lambda: value("count") == many)
            return value("sum")

        before = 0.0
        for many, pause in enumerate((0.02, 0.2), 1):  # within the time that the fast path waits for a body, and beyond
            asking.sendall(head + split + body[:1])
            time.sleep(pause)
            asking.sendall(body[1:])
            status = status_of(asking)
            assert status == 200
            if request_ is not HEALTH:  # which is answered before its body has come
                # A busy machine may read the head late, and so see a part of the pause alone.
                assert taken(many) - before >= pause / 4
                before = taken(many)


def test_a_head_that_does_not_end_is_431(address: str) -> None:
    with connected(address) as endless:
        endless.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
        output = b""
        endless.settimeout(0.01)
        for _ in range(200):
            try:
                endless.sendall(b"x" * 4096)
                output = endless.recv(65536)
                break
            except TimeoutError:
                continue
        assert problem_of(output)["type"] == "urn:graft:problem:head-too-large"


def test_malformed_http_is_400_with_a_problem(address: str) -> None:
    with connected(address) as stranger:
        stranger.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert problem_of(until_closed(stranger))["type"] == "urn:graft:problem:malformed-request"


def test_a_body_in_malformed_chunks_is_400_and_ends_the_connection(address: str) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(address) as stranger:
        stranger.sendall(head + b"3\r\nabc\r\n")
        time.sleep(0.1)
        stranger.sendall(b"0x3\r\nabc\r\n0\r\n\r\n" + HEALTH)
        output = until_closed(stranger)
    assert problem_of(output)["type"] == "urn:graft:problem:malformed-request"
    assert output.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("ambiguous", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize("path", [b"/v1/classify", b"/v1/models"])
def test_a_body_that_could_end_in_two_places_is_400(address: str, path: bytes, ambiguous: bytes) -> None:
    """Or a proxy in front may take a part of a body for the next request."""
    head = b"POST %s HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: %d\r\n" % (path, len(HEALTH))
    with connected(address) as smuggler:
        smuggler.sendall(head + ambiguous + b"\r\n" + HEALTH)
        output = until_closed(smuggler)
    assert problem_of(output)["type"] == "urn:graft:problem:malformed-request"
    assert output.count(b"HTTP/1.1") == 1


def test_a_client_that_half_closes_without_a_request_is_disconnected(address: str) -> None:
    whole = post("/v1/classify", IMAGE, "image/png")
    for sent in (b"", whole[:20], whole[:-10], whole):
        with connected(address) as half:
            half.sendall(sent)
            half.shutdown(socket.SHUT_WR)
            start = time.monotonic()
            until_closed(half)
            assert time.monotonic() - start < 0.8, "it is not kept until its time is over"
    assert httpx.post(f"{address}/v1/classify", content=IMAGE, headers={"content-type": "image/png"}).status_code == 200


def test_connections_above_the_limit_are_503_except_for_health(models: Path) -> None:
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
