import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from support import serving

from app.settings import Settings
from benchmarks import load
from benchmarks.workloads import Request

SEEN = '{"requests": 300, "microseconds": 2000000, "p50": 1500, "p99": 9000, "max": 12000, %s}'
ERRORS = '"connect": 1, "read": 2, "write": 3, "status": 4, "timeout": 5'


class Recorder:
    """Remembers every body; the last byte says how it is answered."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        status = 503 if body.endswith(b"!") else 200
        parts = [body[:3], body[3:]]  # of no declared length: sent in chunks
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": parts[0], "more_body": True})
        await send({"type": "http.response.body", "body": parts[1]})


@pytest.fixture
def recorded(models: Path) -> Iterator[tuple[Recorder, int]]:
    recorder = Recorder()
    app = FastAPI()
    app.mount("/", recorder)
    with serving(Settings(models=models), app) as client:
        yield recorder, client.base_url.port or 0


def requested(*bodies: bytes) -> list[Request]:
    return [Request("/", {"Content-Type": "text/plain"}, body) for body in bodies]


def test_rates_are_told_in_seconds_times_in_milliseconds_and_errors_together() -> None:
    seen = load.parsed(f"Running 2s test\n  150 requests/sec\n\n{SEEN % ERRORS}\n")
    assert seen == load.Seen(300, per_second=150.0, p50_ms=1.5, p99_ms=9.0, most_ms=12.0, errors=15)


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [([5.0], 99, 5.0), (list(range(1, 101)), 50, 50), (list(range(1, 101)), 99, 99), ([3, 1, 2], 100, 3)],
)
def test_a_percentile_is_a_value_that_was_seen(values: list[float], percent: float, found: float) -> None:
    assert load.percentile(values, percent) == found


def test_an_answer_is_read_to_its_end_whether_its_length_is_told_or_not(recorded: tuple[Recorder, int]) -> None:
    _, port = recorded
    [one] = requested(b"x" * 70_000)
    assert load.answered(port, one) == (200, one.body)


def test_a_burst_asks_everything_at_once_and_counts_what_failed(recorded: tuple[Recorder, int]) -> None:
    recorder, port = recorded
    seen = load.burst(port, requested(*(b"%03d" % number for number in range(40)), b"refused!"), times=2, pause_s=0)
    assert (seen.requests, seen.errors) == (80, 2)
    assert sorted(recorder.bodies) == sorted([*(b"%03d" % number for number in range(40)), b"refused!"] * 2)
    assert 0 < seen.p50_ms <= seen.p99_ms <= seen.most_ms


def test_a_burst_against_nobody_counts_errors_and_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(load.Skipped, match="nothing of a burst"):
        load.burst(port, requested(b"a", b"b"), times=1)


def test_the_probe_measures_until_it_is_left(recorded: tuple[Recorder, int]) -> None:
    recorder, port = recorded
    with load.Probe(port, "/healthz") as probe:
        while len(recorder.bodies) < 3:
            pass
    assert len(probe.times_ms) >= 2
    assert min(probe.times_ms) > 0


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_the_bodies_in_turn(recorded: tuple[Recorder, int], tmp_path: Path) -> None:
    recorder, port = recorded
    bodies = [b"a", b"\0\r\n\r\n\xff" * 1000, b"refused!"]
    load.write_requests(tmp_path / "requests", requested(*bodies))
    seen = load.steady(port, tmp_path / "requests", connections=1, seconds=1, core=0)
    first = bodies.index(recorder.bodies[0])  # wrk tries the script once before it asks
    assert recorder.bodies[:4] == [bodies[(first + turn) % 3] for turn in range(4)]
    assert seen.requests >= len(recorder.bodies) - 1  # the last may have come too late
    assert abs(seen.errors - seen.requests / 3) <= 1
